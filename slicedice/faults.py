"""What errors of training say, statuses that workers end with, and how several processes fail together."""

from slicedice.store import Kind
from slicedice.store.files import BucketError

AGAIN = 75
"""Exit status of a process that is to be started again: it was told to stop and left runs, or lost the others."""

DISK_FULL = 28
"""Exit status of a worker that could not write: nothing else that writes there will fare better."""

OTHERS_SECONDS = 60
"""How long a process that failed waits for the others to fail alike."""

TENSORSTORE_GAVE_UP = "retry attempts failed"
"""In what TensorStore, with which Orbax reads and writes arrays, says of a bucket after a quarter of an hour."""

LOST_PEER_WORDS = "Gloo", "heartbeat", "oordination service", "UNAVAILABLE", "DEADLINE_EXCEEDED"


class LostPeerError(RuntimeError):
    """What this process cannot go on without is lost: another process of the run, or the store's bucket.

    status: what it ends with.
    """

    def __init__(self, message: str, status: int = AGAIN):
        super().__init__(message)
        self.status = status


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device was out of memory, while training or while reading a checkpoint."""
    if "RESOURCE_EXHAUSTED" in str(error):
        return True
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)


def is_bucket_gone(error: BaseException) -> bool:
    """Whether the store's bucket did not answer, though it was asked again and again."""
    if (isinstance(error, BucketError) and error.passes) or TENSORSTORE_GAVE_UP in str(error):
        return True
    return error.__cause__ is not None and is_bucket_gone(error.__cause__)


def is_lost_peer(error: BaseException) -> bool:
    """Whether another process of the run is gone, by the words of those who notice: Gloo, and JAX's coordination."""
    if any(word in str(error) for word in LOST_PEER_WORDS):
        return True
    return error.__cause__ is not None and is_lost_peer(error.__cause__)


def wait_for_all(what: str, kind: Kind) -> None:
    """Waits until every process has failed alike, and comes to `what`, which no two waits may share.

    Raises:
      LostPeerError: one has not, in a minute. It waits for what this one will not send any more.
    """
    import jax
    from orbax.checkpoint import multihost

    if jax.process_count() > 1:
        try:
            # No collective: a process that has memory enough waits in one of the step's.
            multihost.get_barrier_sync_fn()(key=what, timeout_ms=1000 * OTHERS_SECONDS)
        except Exception as error:
            # To start again alone would not help.
            raise LostPeerError(f"{kind} in this process alone", 1) from error
