"""The expert FFN of every implementation against the same in NumPy and float64, expert by expert."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slicedice.kernels import expert_ffn
from slicedice.kernels.reference import FFNGradients, slices
from slicedice.kernels.reference import expert_ffn as looped
from tests.kernels import contract
from tests.kernels.contract import DTYPE, EVERY, INTERPRETED, few_draws, options, running

RELATIVE = {"float32": 1e-5, "bfloat16": 2**-7}
"""Of errors, relative to the size of the exact result."""
ROUNDING = {"float32": 3e-9, "bfloat16": 0.0}
"""Of errors, relative to the magnitudes that a result is a sum of: what cancels out leaves a result that is small
beside its rounding. Experts of many values have enough of them that this is rare in bfloat16."""
ROUNDING_OF_FEW = ROUNDING | {"bfloat16": 2**-8}
"""The same for draws with a handful of values, each of which may cancel out: hidden values and results are rounded."""


def computed(implementation: str, alignment: int = 1):
    """The function under test with its gradients, compiled; arguments as `reference.expert_ffn`'s."""

    def both(rows, gate, up, down, sizes, grad):
        def ffn(rows, gate, up, down):
            return expert_ffn(rows, gate, up, down, sizes, implementation=implementation, alignment=alignment)

        out, pull = jax.vjp(ffn, rows, gate, up, down)
        return FFNGradients(out, *pull(grad))

    compiled = jax.jit(both, compiler_options=options(implementation))

    def run(*arrays):
        with running(implementation):
            return jax.block_until_ready(compiled(*arrays))

    return run


def draw(rng, rows: int, d: int, f: int, sizes, *, tail: float = np.nan, dtype="float32") -> Any:
    """(rows, gate, up, down, sizes, grad) such that the hidden values are of unit scale."""
    sizes = np.asarray(sizes, np.int32)

    def normal(*shape, scale=1.0):
        return jnp.asarray(scale * rng.standard_normal(shape), dtype)

    inside = jnp.arange(rows)[:, None] < sizes.sum()
    x, grad = (jnp.where(inside, normal(rows, d), jnp.asarray(tail, dtype)) for _ in range(2))
    matrices = [normal(sizes.size, *shape, scale=shape[0] ** -0.5) for shape in ((d, f), (d, f), (f, d))]
    return x, *matrices, sizes, grad


def check(got: FFNGradients, *arrays, rounding=ROUNDING) -> None:
    """Asserts the error of each expert's part of each array; all else is exactly zero."""
    contract.check(got, looped(*arrays), scales(*arrays), arrays[4], tolerance=rounding, relative=RELATIVE)


def scales(rows, gate, up, down, sizes, grad) -> FFNGradients:
    """Sums of magnitudes that rounding errors grow with, such that what cancels out counts too.

    silu and its derivative change by about as much as their argument does, and are at most that, and 1.1.
    """
    rows, gate, up, down, grad = (np.abs(np.asarray(x, np.float64)) for x in (rows, gate, up, down, grad))
    scale = FFNGradients(*map(np.zeros_like, (rows, rows, gate, up, down)))
    for e, part in enumerate(slices(sizes)):
        a, b, dhidden = rows[part] @ gate[e], rows[part] @ up[e], grad[part] @ down[e].T
        da, db = dhidden * b * (1 + a), dhidden * a
        scale.out[part], scale.drows[part] = (a * b) @ down[e], da @ gate[e].T + db @ up[e].T
        scale.dgate[e], scale.dup[e] = rows[part].T @ da, rows[part].T @ db
        scale.ddown[e] = (a * b).T @ grad[part]
    return scale


@EVERY
def test_random_shapes(implementation: str):
    @few_draws(max_examples=2 if implementation == "pallas_gpu" else 6)
    @given(
        sizes=st.lists(st.sampled_from([0, 0, 1, 2, 7, 13, 64]), min_size=1, max_size=7),
        tail=st.sampled_from([0, 1, 11]),
        d=st.sampled_from([1, 2, 7, 16, 83]),
        f=st.sampled_from([1, 3, 8, 13, 83]),
        alignment=st.sampled_from([1, 1, 2, 8]),
        bad=st.sampled_from([np.nan, np.inf]),
        seed=st.integers(0, 2**32 - 1),
    )
    def compare(sizes, tail, d, f, alignment, bad, seed):
        sizes = [size * alignment for size in sizes]
        rows = max(1, sum(sizes) // alignment + tail) * alignment
        arrays = draw(np.random.default_rng(seed), rows, d, f, sizes, tail=bad, dtype=DTYPE[implementation])
        check(computed(implementation, alignment)(*arrays), *arrays, rounding=ROUNDING_OF_FEW)

    compare()


@pytest.mark.long
@EVERY
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_wide_experts_of_many_rows(implementation: str, dtype: str, rng):
    """More rows, width and hidden width than a tile or task has, none a multiple of anything; Zipf's sizes."""
    small = {"pallas_tpu": (300, 131, 261), "pallas_gpu": (150, 131, 150)}
    rows, d, f = small[implementation] if implementation in INTERPRETED else (900, 197, 331)
    share = 1 / np.arange(1.0, 8) ** 1.5
    arrays = draw(rng, rows, d, f, rng.permutation(rng.multinomial(rows - 5, share / share.sum())), dtype=dtype)
    check(computed(implementation)(*arrays), *arrays)


@EVERY
@pytest.mark.parametrize("narrow", [{0}, {1, 2, 3}, {0, 5}, {3}])
def test_mixed_dtypes(implementation: str, narrow: set[int], rng):
    """Some operands, by place, in bfloat16: results have their operands' dtypes, and those of float32 its accuracy."""
    arrays = draw(rng, 30, 16, 8, [7, 0, 13, 2])
    arrays = [x.astype(jnp.bfloat16) if i in narrow else x for i, x in enumerate(arrays)]
    arrays[5] = arrays[5].astype(arrays[0].dtype)  # a cotangent has its result's
    got = computed(implementation)(*arrays)
    assert [x.dtype for x in got] == [arrays[0].dtype, *(x.dtype for x in arrays[:4])]
    check(got, *arrays, rounding=ROUNDING_OF_FEW)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("spoiled", FFNGradients._fields)
def test_the_comparison_sees_one_expert_that_is_off(spoiled: str, dtype: str, rng):
    sizes = [40, 0, 60]
    arrays = draw(rng, 105, 40, 24, sizes, dtype=dtype)
    right = FFNGradients(*(jnp.asarray(x, dtype) for x in looped(*arrays)))
    check(right, *arrays)
    values = getattr(right, spoiled)
    part = 2 if values.ndim == 3 else slice(40, 100)
    with pytest.raises(AssertionError, match=f"{spoiled} of group 2"):
        check(right._replace(**{spoiled: values.at[part].multiply(1.02)}), *arrays)


@EVERY
def test_experts_without_rows_have_no_gradient(implementation: str, rng):
    function = computed(implementation)
    for sizes in ([0, 0, 0], [0, 9, 0], [4, 0, 5]):
        arrays = draw(rng, 12, 5, 4, sizes, dtype=DTYPE[implementation])
        got = function(*arrays)
        for name in ("dgate", "dup", "ddown"):
            np.testing.assert_array_equal(getattr(got, name)[np.array(sizes) == 0], 0.0, f"{name} of {sizes}")
        check(got, *arrays, rounding=ROUNDING_OF_FEW)


@EVERY
def test_large_values_saturate(implementation: str):
    """silu(x) is x or 0 where exp would overflow, and its gradient 1 or 0."""
    dtype = DTYPE[implementation]
    x = jnp.array([[-1e4], [-95.0], [95.0], [1e4]], dtype)
    one = jnp.ones((1, 1, 1), dtype)
    got = computed(implementation)(x, one, one, one, np.array([4], np.int32), jnp.ones((4, 1), dtype))
    want = looped(x, one, one, one, [4], np.ones((4, 1)))
    tolerance = {"float32": 1e-6, "bfloat16": 2**-7}[dtype]
    for name in ("out", "drows"):
        ours = np.asarray(getattr(got, name), np.float64)
        np.testing.assert_allclose(ours, getattr(want, name), rtol=tolerance, atol=1e-30)


def test_shapes_that_do_not_fit():
    x, gate, down = jnp.ones((8, 2)), jnp.ones((3, 2, 5)), jnp.ones((3, 5, 2))
    with pytest.raises(ValueError, match=r"do not fit \[M, D\], \[E, D, F\], \[E, D, F\], \[E, F, D\], \[E\]"):
        expert_ffn(x, gate, gate, gate, jnp.zeros(3, int))
    with pytest.raises(ValueError, match="at most M = 8"):
        expert_ffn(x, gate, gate, down, jnp.array([3, 3, 3]))
