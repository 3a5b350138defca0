"""Whether the kernels may be used here: a Hopper GPU on which they have given the right results.

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
import jax.numpy as jnp
import numpy as np

from slicedice import cache
from slicedice.kernels import reference
from slicedice.kernels.groups import Groups

log = logging.getLogger(__name__)

SECONDS = 600
"""After which the check has failed; it compiles and runs 42 kernels."""
ROUNDING = 2**-7
"""Of bfloat16 results of bfloat16 hidden values, relative to the norm of a group's results."""
KERNELS = Path(__file__).parent
SOURCES = (*KERNELS.glob("*.py"), *(KERNELS.parent / name for name in ("groups.py", "reference.py", "varying.py")))
DRIVER = Path("/proc/driver/nvidia/version")
"""Where Linux says which driver runs the GPU; JAX tells of the CUDA runtime alone."""


@functools.cache
def available() -> bool:
    """Whether the device is a Hopper GPU, and every kernel has passed `check` on it, in this process or one before."""
    device = jax.devices()[0]
    capability = getattr(device, "compute_capability", None)
    if jax.default_backend() != "gpu" or capability != "9.0":
        log.info("pallas_gpu is for GPUs of compute capability 9.0, not for %s", device.device_kind)
        return False
    known = _kept(device)
    failure = _read(known)
    source = "" if failure is None else f", which is known from {known}; without that file it is checked again"
    if failure is None:
        with cache.alone(known) if known else contextlib.nullcontext():
            failure = _read(known)  # another process may have found out while we waited
            if failure is None:
                failure, lasts = _failure(device)
                if lasts:
                    _keep(known, failure)
    if failure:
        log.warning("pallas_gpu is not used: its check %s on this device%s", failure, source)
    else:
        log.info("pallas_gpu passed its check on %s%s", device.device_kind, source)
    return not failure


def _failure(device: Any) -> tuple[str, bool]:
    """How the check fails in a process of its own, "" if it does not, and whether that is worth keeping.

    Wrong results and a kernel that hangs are; what else goes wrong, as where memory is short, may be of the moment.
    """
    # The check needs little, and the device may be all but full with what this process has set aside.
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", f"from {__name__} import check; check()"]
    log.info("pallas_gpu is being checked on %s, at first use", device.device_kind)
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


def _kept(device: Any) -> Path | None:
    """Where the outcome is kept; None if there is no home folder."""
    try:
        driver = DRIVER.read_text()
    except OSError:
        driver = ""
    versions = version("jax"), version("jaxlib"), device.client.platform_version, driver
    code = (path.read_text() for path in sorted(SOURCES))
    key = hashlib.sha256("\n".join((device.device_kind, *versions, *code)).encode()).hexdigest()[:12]
    try:
        return cache.folder() / f"pallas_gpu-{key}.json"
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
        log.info("what came of the check of pallas_gpu is not kept: %s", error)


def check(seed: int | None = None) -> None:
    """Runs every kernel on small random problems: ragged groups, empty ones, and NaN in rows of none.

    Raises:
      AssertionError: a result is off; the message names it.
    """
    # Imported when run: the package imports this module.
    from slicedice.kernels import pallas_gpu

    rng = np.random.default_rng(seed)

    def normal(*shape: int, depth: int = 1) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape) / depth**0.5, jnp.bfloat16)

    @jax.jit
    def run(x, dy, gate, up, down, groups):
        return {
            "gmm": pallas_gpu.gmm(x, gate, groups, transpose_rhs=False, dtype=jnp.float32),
            "transposed gmm": pallas_gpu.gmm(x, down, groups, transpose_rhs=True, dtype=jnp.bfloat16),
            "tgmm": pallas_gpu.tgmm(x, dy, groups, dtype=jnp.float32),
            "ffn": pallas_gpu.ffn(x, gate, up, down, groups)[0],
            "ffn gradients": pallas_gpu.ffn_backward(x, gate, up, down, groups, (), dy),
        }

    # Tiles of 64 rows and of 128; rows that leave at any offset and at multiples of eight; a narrow F and a wide one.
    # Axes in pieces of 16 columns, of 64, and narrower than a piece.
    for sizes, members, alignment, d, f in (
        ([[5, 0, 70, 1], [0, 33, 0, 2]], 2, 1, 80, 48),
        ([[264, 0, 8, 200]], 1, 8, 144, 112),
        ([[120, 90]], 1, 1, 128, 176),
        ([[0, 9, 70]], 1, 1, 192, 56),
        ([[0, 9, 4]], 1, 1, 8, 8),
    ):
        sizes = np.array(sizes)
        rows, number = 8 * (sizes.sum(1).max() // 8 + 2), sizes.shape[1]
        groups = Groups(jnp.asarray(sizes.reshape(-1), jnp.int32), members, alignment)
        inside = groups.inside(members * rows)[:, None]
        x, dy = (jnp.where(inside, normal(members * rows, d), jnp.nan) for _ in range(2))
        gate, up, down = (normal(sizes.size, *shape, depth=shape[0]) for shape in ((d, f), (d, f), (f, d)))
        got = jax.tree.map(lambda out: np.asarray(out, np.float64), run(x, dy, gate, up, down, groups))
        for member in range(members):

            def own(a: jax.Array, each: int, member: int = member) -> jax.Array:
                return a[member * each : (member + 1) * each]

            matrices = own(gate, number), own(up, number), own(down, number)
            want = _reference(own(x, rows), *matrices, sizes[member], own(dy, rows))
            for (path, ours), exact in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
                name, ours = jax.tree_util.keystr(path), own(ours, exact.shape[0])
                for g, part in enumerate(reference.slices(sizes[member])):
                    part = g if ours.ndim == 3 else part
                    error, norm = np.linalg.norm(ours[part] - exact[part]), np.linalg.norm(exact[part])
                    # Raised and not asserted, since Python may be told to leave assertions out.
                    if not error <= ROUNDING * norm:
                        raise AssertionError(f"{name}, group {g} of {sizes}: error {error:.3g} of {norm:.3g}")
                if ours.ndim == 2 and np.any(ours[sizes[member].sum() :]):
                    raise AssertionError(f"{name}: rows of no group are not zero")


def _reference(x: Any, gate: Any, up: Any, down: Any, sizes: Any, dy: Any) -> dict[str, Any]:
    """The same in float64."""
    ours = reference.expert_ffn(x, gate, up, down, sizes, dy)
    return {
        "gmm": reference.grouped_matmul(x, gate, sizes, np.zeros((x.shape[0], gate.shape[2]))).out,
        "transposed gmm": reference.grouped_matmul(
            x, down.swapaxes(1, 2), sizes, np.zeros((x.shape[0], down.shape[1]))
        ).out,
        "tgmm": reference.grouped_matmul(x, np.zeros((len(sizes), x.shape[1], dy.shape[1])), sizes, dy).drhs,
        "ffn": ours.out,
        "ffn gradients": tuple(ours[1:]),
    }
