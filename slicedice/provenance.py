"""Where a result comes from: code, packages, devices, data. Recorded beside it, never part of a run's id."""

import datetime
import functools
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from slicedice import __version__

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


ENVIRONMENT = (
    "CUDA_VISIBLE_DEVICES",
    "GLIBC_TUNABLES",
    "JAX_DEFAULT_MATMUL_PRECISION",
    "JAX_ENABLE_X64",
    "JAX_NUM_CPU_DEVICES",
    "JAX_PLATFORMS",
    "LIBTPU_INIT_ARGS",
    "NVIDIA_TF32_OVERRIDE",
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_JOB_ID",
    "SLURM_JOB_NODELIST",
    "TPU_ACCELERATOR_TYPE",
    "XLA_FLAGS",
)
"""Variables that change how a run is computed, or say where it was. No others are recorded: they may hold secrets."""


def provenance(fingerprint: str) -> dict[str, Any]:
    """Describes this process; asks JAX for its devices.

    Args:
      fingerprint: of the token store that was trained on.
    """
    import jax

    device = jax.devices()[0]
    return {
        "slicedice": __version__,
        "git_revision": git_revision(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": device.platform,
        "device": device.device_kind if device.platform != "cpu" else processor(),
        "devices": jax.device_count(),
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        "data_fingerprint": fingerprint,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def processor() -> str:
    """The model of this machine's processor, or its architecture where that is not told."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


@functools.cache
def code() -> str:
    """This package's version, and its commit if that is known, as `git_revision` gives it."""
    return "-".join(filter(None, (__version__, git_revision())))


def git_revision() -> str | None:
    """The commit of the checkout that this package runs from, with "+changes" if it has any; None outside one."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != folder.parent.resolve():
            return None  # a repository that this package is merely installed in
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
