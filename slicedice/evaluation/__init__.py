"""Evaluation: held-out text, whole documents of named sets, multiple choice. Imports `model`, `moe`, `data` and `spec`.

Knows no grid and no store. Importing it imports no JAX, so that a sweep can ask whether what it names is there; what a
model computes is in `scoring`.
"""

from slicedice.evaluation.asked import Asked, Evaluation, copy_tasks, find, find_all
from slicedice.evaluation.cross_entropy import Scores, evaluate, held_out
from slicedice.evaluation.documents import Settings
from slicedice.evaluation.sets import HELD_OUT

__all__ = [
    "HELD_OUT",
    "Asked",
    "Evaluation",
    "Scores",
    "Settings",
    "copy_tasks",
    "evaluate",
    "find",
    "find_all",
    "held_out",
]
