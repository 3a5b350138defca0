"""The Mixture-of-Experts layer: routing, dispatch and combine, expert sets. Imports only `kernels`."""

from slicedice.moe.experts import RoutedExperts, SwiGLU
from slicedice.moe.layer import LayerAux, MoELayer, RouterBias, Routing, SetAux
from slicedice.moe.native_experts import Stack

__all__ = ["LayerAux", "MoELayer", "RoutedExperts", "RouterBias", "Routing", "SetAux", "Stack", "SwiGLU"]
