"""Training one run: optimizer, the compiled step, the loop, checkpoints. Knows no grid and no store."""

from slicedice.training.checkpoint import CheckpointError, Checkpoints
from slicedice.training.gradients import Hyper, routing_of
from slicedice.training.loop import Diverged, Stopped, train
from slicedice.training.program import Program, TrainState

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "Diverged",
    "Hyper",
    "Program",
    "Stopped",
    "TrainState",
    "routing_of",
    "train",
]
