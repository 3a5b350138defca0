"""What the tests of every implementation share: which can run here, draws, and comparison group by group."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu

from slicedice.kernels import IMPLEMENTATIONS, choose, native, reference

PLATFORM = jax.default_backend()
# Of one product summed in float32, and of one rounding to bfloat16.
TOLERANCE = {"float32": 1e-6, "bfloat16": 2**-8}

_CANNOT = {
    "native": pytest.mark.skipif(PLATFORM != "cpu" or not native.available(), reason="needs the CPU and C++"),
    "pallas_tpu": pytest.mark.skipif(PLATFORM not in ("cpu", "tpu"), reason="needs a TPU, or the CPU to interpret it"),
    "pallas_gpu": pytest.mark.skipif(
        PLATFORM != "gpu" or choose() != "pallas_gpu", reason="needs a Hopper GPU on which the kernels pass their check"
    ),
}
EVERY = pytest.mark.parametrize(
    "implementation", [pytest.param(name, marks=_CANNOT.get(name, ())) for name in IMPLEMENTATIONS]
)
INTERPRETED = {"pallas_tpu"} if PLATFORM == "cpu" else set()
"""Implementations whose kernels are interpreted here, at seconds a call: they are given fewer and smaller draws."""


@contextlib.contextmanager
def running(implementation: str) -> Iterator[None]:
    """Lets the implementation run on this machine: a TPU kernel on CPU is interpreted.

    The interpreter fills memory that nobody has written with NaN, stops at reads past the end, and tells of races.
    """
    if implementation not in INTERPRETED:
        yield
        return
    how = pltpu.InterpretParams(uninitialized_memory="nan", detect_races=True, out_of_bounds_reads="raise")
    with pltpu.force_tpu_interpret_mode(how):
        yield
    # JAX before 0.12 prints that there is a race, and goes on.
    assert not (interpret_pallas_call.races and interpret_pallas_call.races.races_found)


def draw(
    rng: np.random.Generator, rows: int, k: int, n: int, sizes, *, tail: float = np.nan, dtypes=("float32",) * 3
) -> Any:
    """Unit-scale (lhs, rhs, sizes, cotangent), rows past the last group of lhs and cotangent being `tail`."""
    sizes = np.asarray(sizes, np.int32)
    shapes = ((rows, k), (sizes.size, k, n), (rows, n))
    lhs, rhs, cotangent = (jnp.asarray(rng.standard_normal(s), dtype) for s, dtype in zip(shapes, dtypes, strict=True))
    inside = jnp.arange(rows)[:, None] < sizes.sum()
    return jnp.where(inside, lhs, tail), rhs, sizes, jnp.where(inside, cotangent, tail)


def magnitudes(function: Any, *arrays: Any):
    """What `function` of `reference` makes of absolute values: the scale that rounding errors grow with."""
    return function(*(x if np.issubdtype(x.dtype, np.integer) else np.abs(np.asarray(x, np.float64)) for x in arrays))


def check(got: Any, want: Any, scale: Any, sizes) -> None:
    """Asserts that every group's error is that of its dtype's rounding, and that all else is exactly zero.

    Args:
      got: named arrays; those of three axes are one matrix a group, the others rows.
      want: the same in float64.
      scale: sums of magnitudes, in the same form.
      sizes: rows of each group.
    """
    for name, values in got._asdict().items():
        tolerance = TOLERANCE[str(values.dtype)]
        values, exact, size = (np.asarray(x, np.float64) for x in (values, getattr(want, name), getattr(scale, name)))
        for g, rows in enumerate(reference.slices(sizes)):
            part = g if values.ndim == 3 else rows
            error, most = np.linalg.norm(values[part] - exact[part]), np.linalg.norm(size[part])
            assert error <= tolerance * most, f"{name} of group {g}: relative error {error / most:.2g}"
        if values.ndim == 2:
            np.testing.assert_array_equal(values[np.sum(sizes) :], 0.0, f"{name} past the last group")
