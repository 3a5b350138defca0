"""Where the kernels keep what is made once for a machine: compiled code, and what came of a check."""

import os
from pathlib import Path


def folder() -> Path:
    """The user's cache folder for it, which may not be there yet.

    Raises:
      RuntimeError: there is no home folder.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slicedice"
