"""Files that grow: in a folder, as they are; for a bucket, whose objects do not, on this machine, and uploaded whole.

Uploaded now and then, and when somebody is to find it whole: before a checkpoint, whose steps have to have their lines,
and at the end. What was written since is lost with the process, as are the steps since its last checkpoint.
"""

import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from slicedice.store.files import is_object, write_whole

log = logging.getLogger(__name__)

PUBLISH_SECONDS = 30.0
"""Between two uploads of a file that grows."""

LEAST_SECONDS = 1.0
"""Between two uploads of one object: the service refuses more."""


class Draft:
    """A file that grows. `path` is where it can be appended to, cut and replaced; `target` where others find it.

    Args:
      target: a file, or an object.
      goes_on: whether what is there is gone on from.
      wanted: asked before each upload; False leaves others what they find there.
    """

    def __init__(self, target: Path, *, goes_on: bool = False, wanted: Callable[[], bool] = lambda: True):
        self.target, self.path, self._wanted = target, target, wanted
        self._folder: Path | None = None
        if not is_object(target):
            return
        self._folder = Path(tempfile.mkdtemp(prefix="slicedice-"))
        self.path = self._folder / target.name
        if goes_on and target.exists():
            self.path.write_bytes(target.read_bytes())
        self._known, self._at = self._version(), -PUBLISH_SECONDS
        self._lock, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._live, name=f"upload of {target.name}", daemon=True)
        self._thread.start()

    def publish(self) -> None:
        """Has others find all that is written by now.

        Raises:
          OSError: the bucket does not take it.
        """
        if self._folder is None or not self._wanted():
            return
        with self._lock:
            version = self._version()
            if version == self._known:
                return
            time.sleep(max(0.0, self._at + LEAST_SECONDS - time.monotonic()))
            self._at = time.monotonic()
            write_whole(self.target, self.path.read_bytes())
            self._known = version

    def close(self) -> None:
        """Publishes it, and removes what this machine has of it; fails as `publish` does."""
        if self._folder is None:
            return
        self._over.set()
        self._thread.join()
        try:
            self.publish()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _live(self) -> None:
        pause = LEAST_SECONDS  # at first, when something is most likely to go wrong, it is seen soon
        while not self._over.wait(pause):
            pause = min(2 * pause, PUBLISH_SECONDS)
            try:
                self.publish()
            except OSError as error:
                log.warning("%s is not uploaded: %s", self.target, error)

    def _version(self) -> tuple[int, int] | None:
        """What changes with the content; None if there is no file."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        return found.st_size, found.st_mtime_ns
