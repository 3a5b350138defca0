"""Whether the grouped products may be used here: what `first_use` has a process of its own run."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from slicedice.kernels import reference
from slicedice.kernels.groups import Groups
from slicedice.kernels.pallas_gpu import first_use

ROUNDING = 2**-7
"""Of bfloat16 results of bfloat16 hidden values, relative to the norm of a group's results."""
KERNELS = Path(__file__).parent
SOURCES = (*KERNELS.glob("*.py"), *(KERNELS.parent / name for name in ("groups.py", "reference.py", "varying.py")))


# Tiles of 64 rows and of 128; rows that leave at any offset and at multiples of eight; a narrow F and a wide one.
# Axes in pieces of 16 columns, of 64, and narrower than a piece.
PROBLEMS = (
    ([[5, 0, 70, 1], [0, 33, 0, 2]], 1, 80, 48),
    ([[264, 0, 8, 200]], 8, 144, 112),
    ([[120, 90]], 1, 128, 176),
    ([[0, 9, 70]], 1, 192, 56),
    ([[0, 9, 4]], 1, 8, 8),
)
"""That `check` tries: for each model the rows of its groups; the multiple of rows at which they begin; D and F."""


def available() -> bool:
    """Whether the device is a Hopper GPU, and every kernel has passed `check` on it, in this process or one before."""
    return first_use.passed("pallas_gpu", __name__, SOURCES)


def check(seed: int | None = None) -> None:
    """Runs every kernel on small random problems: ragged groups, empty ones, and NaN in rows of none.

    Raises:
      AssertionError: a result is off; the message names it.
    """
    rng = np.random.default_rng(seed)

    def normal(*shape: int, depth: int = 1) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape) / depth**0.5, jnp.bfloat16)

    run = jax.jit(lambda *arrays: every_kernel(*arrays))  # of its own: what was traced before may be of other kernels
    for sizes, alignment, d, f in PROBLEMS:
        sizes = np.array(sizes)
        rows, (members, number) = rows_of(sizes), sizes.shape
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


def rows_of(sizes: np.ndarray) -> int:
    """How many rows each model of a problem has: more than its groups, and a multiple of eight."""
    return int(8 * (sizes.sum(1).max() // 8 + 2))


def every_kernel(x: Array, dy: Array, gate: Array, up: Array, down: Array, groups: Groups) -> dict[str, Any]:
    """What each kernel gives, by its name; float32 and bfloat16."""
    from slicedice.kernels import pallas_gpu  # when run: the package imports this module

    return {
        "gmm": pallas_gpu.gmm(x, gate, groups, transpose_rhs=False, dtype=jnp.float32),
        "transposed gmm": pallas_gpu.gmm(x, down, groups, transpose_rhs=True, dtype=jnp.bfloat16),
        "tgmm": pallas_gpu.tgmm(x, dy, groups, dtype=jnp.float32),
        "ffn": pallas_gpu.ffn(x, gate, up, down, groups)[0],
        "ffn gradients": pallas_gpu.ffn_backward(x, gate, up, down, groups, (), dy),
    }


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
