"""Grouped matmul: rows sorted by group, each group times its own matrix. Knows arrays, and nothing else."""

from slicedice.kernels.grouped_matmul import IMPLEMENTATIONS, choose, grouped_matmul, row_alignment

__all__ = ["IMPLEMENTATIONS", "choose", "grouped_matmul", "row_alignment"]
