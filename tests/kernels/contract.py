"""What the tests of every implementation share: which can run here, draws, and comparison group by group."""

import contextlib
import functools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, settings
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.experimental.pallas import tpu as pltpu

from slicedice.kernels import IMPLEMENTATIONS, choose, native, reference
from slicedice.kernels.pallas_gpu import tiles

PLATFORM = jax.default_backend()
# Of one product summed in float32, and of one rounding to bfloat16.
TOLERANCE = {"float32": 1e-6, "bfloat16": 2**-8}

CAN_INTERPRET_GPU = PLATFORM == "cpu" and hasattr(plgpu, "InterpretGPUParams")
"""The interpreter of JAX 0.10 lacks what these kernels are made of: copies past an array's end, transposed operands."""

_CANNOT = {
    "native": pytest.mark.skipif(PLATFORM != "cpu" or not native.available(), reason="needs the CPU and C++"),
    "pallas_tpu": pytest.mark.skipif(PLATFORM not in ("cpu", "tpu"), reason="needs a TPU, or the CPU to interpret it"),
    "pallas_gpu": pytest.mark.skipif(
        not CAN_INTERPRET_GPU and (PLATFORM != "gpu" or choose() != "pallas_gpu"),
        reason="needs a Hopper GPU on which the kernels pass their check, or the CPU and JAX 0.11 to interpret them",
    ),
}
EVERY = pytest.mark.parametrize(
    "implementation", [pytest.param(name, marks=_CANNOT.get(name, ())) for name in IMPLEMENTATIONS]
)
INTERPRETED = {"pallas_tpu", "pallas_gpu"} if PLATFORM == "cpu" else set()
"""Implementations whose kernels are interpreted here, at seconds a call: they are given fewer and smaller draws."""
UNOPTIMISED = {"xla_backend_optimization_level": 0}
"""Options of `jax.jit` for interpreted kernels: what is asked of them is theirs, and LLVM takes longer than they do."""
DTYPE = {name: "bfloat16" if name == "pallas_gpu" else "float32" for name in IMPLEMENTATIONS}
"""What an implementation's own kernels multiply: `pallas_gpu` gives anything but bfloat16 to `blocks`."""
few_draws = functools.partial(settings, deadline=None, database=None, phases=[Phase.explicit, Phase.generate])
"""Settings of a test whose every draw is compiled: it is not shrunk, which would take minutes."""


def options(implementation: str) -> dict[str, Any] | None:
    """Options of `jax.jit` with which the implementation's tests compile: those of a user, unless it is interpreted."""
    return UNOPTIMISED if implementation in INTERPRETED else None


@contextlib.contextmanager
def running(implementation: str) -> Iterator[None]:
    """Lets the implementation run on this machine: kernels for TPU and GPU are interpreted on CPU.

    The interpreters fill memory that nobody has written with NaN and tell of races; that for TPU stops at reads past
    the end, which on GPU read zeros.
    """
    if implementation not in INTERPRETED:
        yield
    elif implementation == "pallas_gpu":
        with _gpu_interpreted():
            yield
    else:
        how = pltpu.InterpretParams(uninitialized_memory="nan", detect_races=True, out_of_bounds_reads="raise")
        with pltpu.force_tpu_interpret_mode(how):
            yield
        # JAX before 0.12 prints that there is a race, and goes on.
        assert not (interpret_pallas_call.races and interpret_pallas_call.races.races_found)


@contextlib.contextmanager
def _gpu_interpreted() -> Iterator[None]:
    from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks

    # JAX 0.10 lacks both names.
    how = getattr(plgpu, "InterpretGPUParams")(detect_races=True, uninitialized_memory="nan")  # noqa: B009
    try:
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            # Few enough that each walks several pieces of work, and that the interpreter does not walk 132.
            patch.setattr(tiles, "processors", lambda: 3)
            patch.setattr(
                gpu_callbacks, "wgmma", functools.partial(_from_registers, gpu_callbacks, gpu_callbacks.wgmma)
            )
            # What is multiplied beside a group's own rows may be anything; it is never stored.
            warnings.filterwarnings("ignore", ".*encountered in matmul", RuntimeWarning)
            with getattr(plgpu, "force_gpu_interpret_mode")(how):  # noqa: B009
                yield
                jax.effects_barrier()
        assert not (gpu_callbacks._races and gpu_callbacks._races.races_found)
    finally:
        gpu_callbacks.reset_gpu_interpret_mode_state()


def _from_registers(
    callbacks: Any, wgmma: Any, *, a_allocation_key_as_array: Any, a_transforms: Any, **how: Any
) -> Any:
    """The interpreter's matrix instruction, and the one whose left operand is in registers, which that lacks."""
    left = a_allocation_key_as_array
    if np.ndim(left) != 2:
        return wgmma(a_allocation_key_as_array=left, a_transforms=a_transforms, **how)
    memory, thread = callbacks._get_shared_memory(), how["thread"]
    logging_info = callbacks.memory.GPULoggingInfo(how["mesh_location"], thread, how["source_info"])

    def place(operand: str) -> tuple[Any, Any]:
        key = callbacks.HostAllocationKey.from_array(how[f"{operand}_allocation_key_as_array"])
        transforms = callbacks._remove_noop_transforms(how[f"{operand}_transforms"])
        return key, memory.access(key, jax.tree.map(int, transforms))

    right, total = (memory.get_buffer_content(*place(x), thread, logging_info=logging_info)[0] for x in ("b", "acc"))
    total = total + np.matmul(np.asarray(left), right, dtype=total.dtype)
    memory.store_buffer_content(*place("acc"), total, thread, logging_info=logging_info)
    return how["token"]


def kept(cache: Path) -> list[Path]:
    """All that is in the kernels' folder of a cache but its locks."""
    return [path for path in (cache / "slicedice").iterdir() if path.suffix != ".lock"]


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


def check(got: Any, want: Any, scale: Any, sizes, *, tolerance=TOLERANCE, relative: dict[str, float] | None = None):
    """Asserts that every group's error is that of its dtype's rounding, and that all else is exactly zero.

    Args:
      got: named arrays; those of three axes are one matrix a group, the others rows.
      want: the same in float64.
      scale: sums of magnitudes, in the same form.
      sizes: rows of each group, [G]; or [members, G] of models of equally many rows each, one after another.
      tolerance: of errors relative to `scale`, by dtype.
      relative: of errors relative to `want`, beside that.
    """
    for name, values in got._asdict().items():
        dtype = str(values.dtype)
        values, exact, size = (np.asarray(x, np.float64) for x in (values, getattr(want, name), getattr(scale, name)))
        parts = range(np.size(sizes)) if values.ndim == 3 else slices(sizes, len(values))
        for g, part in enumerate(parts):
            error = np.linalg.norm(values[part] - exact[part])
            most = tolerance[dtype] * np.linalg.norm(size[part])
            if relative:
                most += relative[dtype] * np.linalg.norm(exact[part])
            assert error <= most, f"{name} of group {g}: an error of {error:.2g}, over {most:.2g}"
        if values.ndim == 2:
            outside = np.ones(len(values), bool)
            for part in parts:
                outside[part] = False
            np.testing.assert_array_equal(values[outside], 0.0, f"{name} in rows of no group")


def slices(sizes, rows: int) -> list[slice]:
    """Which of `rows` rows are each group's, of sizes [G] or [members, G] as for `check`."""
    sizes = np.atleast_2d(sizes)
    each = rows // len(sizes)
    return [
        slice(member * each + part.start, member * each + part.stop)
        for member, own in enumerate(sizes)
        for part in reference.slices(own)
    ]
