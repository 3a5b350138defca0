"""Grouped matmul: rows sorted by group, each group times its own matrix. Knows arrays, and nothing else."""

from slicedice.kernels.expert_ffn import expert_ffn
from slicedice.kernels.grouped_matmul import grouped_matmul, transposed_grouped_matmul
from slicedice.kernels.implementations import IMPLEMENTATIONS, choose, is_native, row_alignment

__all__ = [
    "IMPLEMENTATIONS",
    "choose",
    "expert_ffn",
    "grouped_matmul",
    "is_native",
    "row_alignment",
    "transposed_grouped_matmul",
]
