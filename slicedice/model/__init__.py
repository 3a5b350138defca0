"""The language model around the MoE layer: attention, block, decoder. Imports `moe` and reads `spec`."""

from slicedice.model.decoder import Decoder

__all__ = ["Decoder"]
