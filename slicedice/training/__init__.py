"""Training one run: optimizer, the compiled step, the loop, checkpoints. Knows no grid and no store."""

from slicedice.training import compilations, packing
from slicedice.training.checkpoint import CheckpointError, Checkpoints
from slicedice.training.gradients import Hyper, routing_of
from slicedice.training.lanes import Lane, Lanes
from slicedice.training.loop import Diverged, Stopped, train
from slicedice.training.program import Program, TrainState

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "Diverged",
    "Hyper",
    "Lane",
    "Lanes",
    "Program",
    "Stopped",
    "TrainState",
    "compilations",
    "packing",
    "routing_of",
    "train",
]
