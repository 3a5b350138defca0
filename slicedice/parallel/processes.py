"""Several processes on one run: each reads its share, all decide alike, and the first one writes."""

import functools
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

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


class Vote:
    """The greatest of all processes' numbers, asked again and again while their devices are at work.

    What is asked goes through the devices, behind what they were given before: to wait for it after every step would
    leave them without the next one. So of several processes each is told what came of the time before.
    """

    def __init__(self) -> None:
        self._asked: jax.Array | None = None

    def greatest(self, number: int) -> int:
        """Of a process alone its own number; of several the greatest of the last call, 0 at first."""
        if jax.process_count() == 1:
            return number
        before, self._asked = self._asked, _greatest_of_all(number)
        return 0 if before is None else int(before.addressable_data(0)[0])


def _greatest_of_all(number: int) -> jax.Array:
    """[1], on the first device of every process; not waited for."""
    firsts = {device.process_index: device for device in reversed(jax.devices())}
    mesh = Mesh([firsts[process] for process in sorted(firsts)], ("process",))
    own = np.full(1, number, np.int32)
    numbers = jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec("process")), own)
    return _greatest(mesh)(numbers)


@functools.cache
def _greatest(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda x: x.max(keepdims=True), out_shardings=NamedSharding(mesh, PartitionSpec()))
