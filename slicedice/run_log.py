"""What is logged while a run is trained, in a file of its own."""

import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

from slicedice.store import Claim, Onlooker
from slicedice.store.drafts import Draft

log = logging.getLogger("slicedice.work")

LANE = "lane "
"""How the names of lanes' threads begin, as `training.lanes` has it, which is not imported for JAX's sake."""


@contextlib.contextmanager
def log_to(path: Path, claim: Claim | Onlooker) -> Iterator[None]:
    """Sends what is logged meanwhile to a file as well, until another process logs there."""
    draft = Draft(path, goes_on=True, wanted=lambda: not claim.is_taken)
    handler = logging.FileHandler(draft.path)
    thread = threading.current_thread().name  # a lane's; what no lane says is logged for all

    def wanted(record: logging.LogRecord) -> bool:
        lane = record.threadName or ""
        return not claim.is_taken and (lane == thread or not lane.startswith(LANE))

    handler.addFilter(wanted)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
        try:
            draft.close()
        except OSError as error:
            log.warning("%s is not all uploaded: %s", path, error)
