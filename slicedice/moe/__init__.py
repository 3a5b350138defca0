"""The Mixture-of-Experts layer: routing, dispatch and combine, expert sets. Imports only `kernels`."""

from slicedice.moe.experts import RoutedExperts, SwiGLU
from slicedice.moe.layer import LayerAux, MoELayer, Place, RouterBias, Routing, SetAux

__all__ = ["LayerAux", "MoELayer", "Place", "RoutedExperts", "RouterBias", "Routing", "SetAux", "SwiGLU"]
