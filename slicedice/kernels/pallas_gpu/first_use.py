"""Whether kernels may be used here: a Hopper GPU on which they have given the right results.

They were written without a GPU, and ran on one kind, so the first use on a kind of device is checked, in a process of
its own: should a kernel hang, there is something to end. What came of it is kept in the user's cache folder, in a file
named by all that it depends on, so that the runs of a sweep do not all check the same; without such a folder every
process checks.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from slicedice import cache

log = logging.getLogger(__name__)

SECONDS = 600
"""After which a check has failed; that of the grouped products compiles and runs 41 kernels."""
DRIVER = Path("/proc/driver/nvidia/version")
"""Where Linux says which driver runs the GPU; JAX tells of the CUDA runtime alone."""


@functools.cache
def passed(name: str, check: str, sources: tuple[Path, ...]) -> bool:
    """Whether the device is a Hopper GPU, and kernels have passed their check on it, in this process or one before.

    Args:
      name: of the kernels, for the log and for the file that keeps the outcome.
      check: the module that holds their `check()`, which raises an AssertionError where a result is off.
      sources: the code that the outcome depends on.
    """
    device = jax.devices()[0]
    capability = getattr(device, "compute_capability", None)
    if jax.default_backend() != "gpu" or capability != "9.0":
        log.info("%s is for GPUs of compute capability 9.0, not for %s", name, device.device_kind)
        return False
    known = _kept(name, sources, device)
    failure = _read(known)
    source = "" if failure is None else f", which is known from {known}; without that file it is checked again"
    if failure is None:
        with cache.alone(known) if known else contextlib.nullcontext():
            failure = _read(known)  # another process may have found out while we waited
            if failure is None:
                log.info("%s is being checked on %s, at first use", name, device.device_kind)
                failure, lasts = _failure(check)
                if lasts:
                    _keep(known, failure)
    if failure:
        log.warning("%s is not used: its check %s on this device%s", name, failure, source)
    else:
        log.info("%s passed its check on %s%s", name, device.device_kind, source)
    return not failure


def _failure(check: str) -> tuple[str, bool]:
    """How the check fails in a process of its own, "" if it does not, and whether that is worth keeping.

    Wrong results and a kernel that hangs are; what else goes wrong, as where memory is short, may be of the moment.
    """
    # The check needs little, and the device may be all but full with what this process has set aside.
    # A traceback that JAX has shortened ends with words about that, and not with what went wrong.
    environment = os.environ | {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "JAX_TRACEBACK_FILTERING": "off",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, "-c", f"from {check} import check; check()"]
    try:
        subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f"did not come to an end in {SECONDS} s", True
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines()[-1:] or [f"exit status {error.returncode}"])[0]
        return f"failed: {reason}", reason.startswith("AssertionError")
    except OSError as error:
        return f"could not be started: {error}", False
    return "", True


def _kept(name: str, sources: tuple[Path, ...], device: Any) -> Path | None:
    """Where the outcome is kept; None if there is no home folder."""
    try:
        driver = DRIVER.read_text()
    except OSError:
        driver = ""
    versions = version("jax"), version("jaxlib"), device.client.platform_version, driver
    code = (path.read_text() for path in sorted(sources))
    key = hashlib.sha256("\n".join((device.device_kind, *versions, *code)).encode()).hexdigest()[:12]
    try:
        return cache.folder() / f"{name}-{key}.json"
    except RuntimeError:
        return None


def _read(path: Path | None) -> str | None:
    """How the check failed, "" if it did not; None where that is not known."""
    try:
        failure = json.loads(path.read_text())["failure"] if path else None
    except (OSError, ValueError, TypeError, KeyError):  # none yet, or damaged
        return None
    return failure if isinstance(failure, str) else None


def _keep(path: Path | None, failure: str) -> None:
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            made.write_text(json.dumps({"failure": failure}))
            made.replace(path)  # at once, for other processes that look for it now
    except OSError as error:
        log.info("what came of the check of %s is not kept: %s", path.stem, error)
