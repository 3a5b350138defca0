"""Held-out cross-entropy by domain. Imports `model`, `moe`, `data` and `spec`; knows no grid and no store."""

from slicedice.evaluation.cross_entropy import Scores, evaluate, held_out

__all__ = ["Scores", "evaluate", "held_out"]
