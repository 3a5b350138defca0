"""Held-out cross-entropy by domain. Imports `model` and `data`; knows no grid and no store."""

from slicedice.evaluation.cross_entropy import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]
