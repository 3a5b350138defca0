"""Several processes on one run: each reads its share, all decide alike, and the first one writes."""

import jax
import numpy as np
from jax.experimental import multihost_utils

PATIENCE_SECONDS = 60
"""Without a sign of life, after which a process counts as lost; the others then end."""


def join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Makes this process one of several; must come before JAX looks for devices.

    Args:
      coordinator: HOST:PORT of the first process; None, as with the rest, where JAX finds out from Slurm, Kubernetes
        or a TPU pod.
      processes: how many there are.
      process: which this is, from 0.
    """
    jax.distributed.initialize(coordinator, processes, process, heartbeat_timeout_seconds=PATIENCE_SECONDS)


def leads() -> bool:
    """Whether this is the first process, or the only one."""
    return jax.process_index() == 0


def greatest(number: int) -> int:
    """The greatest of all processes' numbers, so that all decide alike; each has to ask, at the same point."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.int32(number)).max())
