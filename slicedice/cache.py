"""Where things are kept that are made once for a machine: compiled code, what came of a check, what a compiler said."""

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from slicedice import machine

log = logging.getLogger(__name__)


def folder() -> Path:
    """The user's cache folder for it, which may not be there yet.

    Raises:
      RuntimeError: there is no home folder.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slicedice"


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Waits until no other process of this machine makes the same file, for as long as that takes.

    A lock of the system's, which ends with its process. Where there can be none, several make the file at once.
    """
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(path.with_suffix(".lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            log.info("%s is made without a lock: %s", path, error)
        yield


def use_compilation_cache() -> None:
    """Lets all processes of this user share compiled programs, in the folder JAX is told, or the user's cache folder.

    JAX is told by JAX_COMPILATION_CACHE_DIR, or by `jax.config` as `jax_compilation_cache_dir`.

    Not in the store: what is compiled is executed, and a store may be someone else's. On CPU they are kept by number of
    threads: the compiler cuts loops into as many parts, of which JAX's own keys know nothing. A program
    is kept however fast it was compiled: a run has few (on CPU three), and a small step too is compiled once.

    Raises:
      RuntimeError: there is no home folder.
    """
    import jax

    shared = jax.config.jax_compilation_cache_dir or str(folder() / "compilation")  # pyright: ignore[reportAttributeAccessIssue]
    own = f"/{machine.threads()}-threads"
    if not machine.has_accelerator() and not shared.endswith(own):
        shared += own
    jax.config.update("jax_compilation_cache_dir", shared)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
