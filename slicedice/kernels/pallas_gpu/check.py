"""Whether the kernels may be used here: a Hopper GPU on which they have just given the right results.

They were written without a GPU, so the first use on a device is checked, in a process of its own: should a kernel
hang, there is something to end. Run as a module, it is that process.
"""

import functools
import logging
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

from slicedice.kernels.groups import Groups

log = logging.getLogger(__name__)

SECONDS = 300
"""After which the check has failed; it takes about ten, most of them for compiling."""
ROUNDING = 2**-7
"""Of bfloat16 results of bfloat16 hidden values, relative to the norm of a group's results."""


@functools.cache
def available() -> bool:
    """Whether the device is a Hopper GPU, and every kernel has passed `check` on it, once for each process."""
    device = jax.devices()[0]
    capability = getattr(device, "compute_capability", None)
    if jax.default_backend() != "gpu" or capability != "9.0":
        log.info("pallas_gpu is for GPUs of compute capability 9.0, not for %s", device.device_kind)
        return False
    # The check needs little, and the device may be all but full with what this process has set aside.
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", __name__]
    try:
        subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        log.warning("pallas_gpu is not used: its check did not come to an end in %d s on this device", SECONDS)
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip().splitlines()[-1:] or [f"exit status {error.returncode}"]
        log.warning("pallas_gpu is not used: its check failed on this device: %s", reason[0])
    except OSError as error:
        log.warning("pallas_gpu is not used: its check could not be started: %s", error)
    else:
        log.info("pallas_gpu passed its check on %s", device.device_kind)
        return True
    return False


def check(seed: int | None = None) -> None:
    """Runs every kernel on small random problems: ragged groups, empty ones, and NaN in rows of none.

    Raises:
      AssertionError: a result is off; the message names it.
    """
    # Imported when run: the package imports this module.
    from slicedice.kernels import pallas_gpu

    rng = np.random.default_rng(seed)
    # Tiles of 64 rows and of 128; rows that leave at any offset, and at multiples of eight.
    for sizes, members, alignment, d, f in (
        ([5, 0, 70, 1, 0, 33, 0, 2], 2, 1, 80, 48),
        ([264, 0, 8, 200], 1, 8, 144, 112),
        ([120, 90], 1, 1, 128, 176),
    ):
        each = max(sum(half) for half in np.reshape(sizes, (members, -1))) + 16
        m, e = -(-each // 8) * 8 * members, len(sizes)
        groups = Groups(jnp.asarray(sizes, jnp.int32), members, alignment)
        inside = groups.inside(m)[:, None]
        x, dy = (jnp.where(inside, _normal(rng, (m, d), 1), jnp.nan) for _ in range(2))
        gate, up, down = (_normal(rng, (e, *shape), shape[0]) for shape in ((d, f), (d, f), (f, d)))

        @jax.jit
        def run(x, dy, gate, up, down, groups):
            return (
                pallas_gpu.gmm(x, gate, groups, transpose_rhs=False, dtype=jnp.float32),
                pallas_gpu.gmm(x, down, groups, transpose_rhs=True, dtype=jnp.bfloat16),
                pallas_gpu.tgmm(x, dy, groups, dtype=jnp.float32),
                pallas_gpu.ffn(x, gate, up, down, groups)[0],
                *pallas_gpu.ffn_backward(x, gate, up, down, groups, (), dy),
            )

        names = ("gmm", "gmm, transposed", "tgmm", "ffn", "ffn gradient: rows", "gate", "up", "down")
        starts = np.asarray(groups.starts(m))
        got = [np.asarray(out, np.float64) for out in run(x, dy, gate, up, down, groups)]
        want = _reference(x, dy, gate, up, down, starts, sizes)
        for name, ours, exact in zip(names, got, want, strict=True):
            for g, (start, size) in enumerate(zip(starts, sizes, strict=True)):
                part = g if ours.ndim == 3 else slice(start, start + size)
                error, norm = np.linalg.norm(ours[part] - exact[part]), np.linalg.norm(exact[part])
                assert error <= ROUNDING * norm, f"{name}, group {g} of {sizes}: error {error:.3g} of {norm:.3g}"
            if ours.ndim == 2:
                assert not np.any(ours[~np.asarray(inside)[:, 0]]), f"{name}: rows of no group are not zero"


def _normal(rng: np.random.Generator, shape: tuple[int, ...], depth: int) -> jax.Array:
    return jnp.asarray(rng.standard_normal(shape) / depth**0.5, jnp.bfloat16)


def _reference(x, dy, gate, up, down, starts, sizes) -> list[np.ndarray]:
    """The same in float64, group by group."""
    x, dy, gate, up, down = (np.asarray(a, np.float64) for a in (x, dy, gate, up, down))
    m, (e, d, f) = x.shape[0], gate.shape
    shapes = [(m, f), (m, f), (e, d, d), (m, d), (m, d), (e, d, f), (e, d, f), (e, f, d)]
    out = product, turned, outer, y, dx, dgate, dup, ddown = [np.zeros(shape) for shape in shapes]
    for g, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        part = slice(start, start + size)
        a, b = x[part] @ gate[g], x[part] @ up[g]
        product[part] = a
        turned[part] = x[part] @ down[g].T
        outer[g] = x[part].T @ dy[part]
        s = 1 / (1 + np.exp(-a))
        hidden, dhidden = a * s * b, dy[part] @ down[g].T
        y[part] = hidden @ down[g]
        da, db = dhidden * b * (s + a * s * (1 - s)), dhidden * a * s
        dx[part] = da @ gate[g].T + db @ up[g].T
        dgate[g], dup[g], ddown[g] = x[part].T @ da, x[part].T @ db, hidden.T @ dy[part]
    return list(out)


if __name__ == "__main__":
    check()
