"""What launchers share whose workers are processes of this machine, and whose engine is the sweep itself."""

import contextlib
import os
from collections.abc import Iterator, Sequence

from slicedice.launching.protocol import Phase
from slicedice.machine import Slot
from slicedice.store import Launch
from slicedice.store.holder import Holder

GRACE_SECONDS = 60.0
"""For workers to finish a step and save a checkpoint when they are told to stop."""


@contextlib.contextmanager
def on_cores(slot: Slot) -> Iterator[None]:
    """Has processes started meanwhile inherit the slot's cores: XLA makes one thread for each core it sees."""
    if not slot.cores or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, slot.cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def phases(launch: Launch) -> Sequence[Phase]:
    """Everything waits that has not ended, as long as the sweep lives that launched it, as seen from this machine."""
    with contextlib.suppress(ValueError):
        if Holder.of_handle(launch.handles[0]).is_here():
            return [Phase.QUEUED] * len(launch.units)
    return [Phase.ENDED] * len(launch.units)
