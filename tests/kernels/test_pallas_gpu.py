"""What the GPU kernels are made of: the list of visits, tiles, and models folded together, interpreted.

The contract that all implementations share is tested elsewhere, with the same interpreter.
"""

import logging
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from slicedice.kernels import blocks, pallas_gpu, reference
from slicedice.kernels.groups import Groups
from slicedice.kernels.pallas_gpu import tiles
from slicedice.kernels.pallas_gpu.visits import PIECE, most_visits, visits_of
from tests.kernels.contract import CAN_INTERPRET_GPU, check, draw, few_draws, magnitudes, running, slices

interpreted = pytest.mark.skipif(not CAN_INTERPRET_GPU, reason="needs the CPU and JAX 0.11 to interpret the kernels")


@few_draws(max_examples=40)
@given(
    number=st.sampled_from([1, 2, 7, 300, 16384]),
    mean=st.sampled_from([0, 1, 8, 64, 300]),
    members=st.sampled_from([1, 2, 4]),
    skew=st.sampled_from([0.1, 1.0, 100.0]),
    alignment=st.sampled_from([1, 8]),
    tile=st.sampled_from([64, 128]),
    tail=st.sampled_from([0, 1, 13, 500]),
    seed=st.integers(0, 2**32 - 1),
)
def test_visits_hold_every_row_once(number, mean, members, skew, alignment, tile, tail, seed):
    rng = np.random.default_rng(seed)
    number = -(-number // members)
    total = min(number * mean, 500_000)
    sizes = np.stack([rng.multinomial(total, rng.dirichlet(np.full(number, skew) + 1e-3)) for _ in range(members)])
    sizes = sizes * alignment
    rows = (total + tail) * alignment * members
    length = max(-(-rows // PIECE) * PIECE, tile)
    groups = Groups(jnp.asarray(sizes.reshape(-1), jnp.int32), members, alignment)
    visits = jax.jit(partial(visits_of, groups, rows, tile, length))()
    count = int(visits.count[0])
    assert count <= most_visits(groups, rows, tile) == visits.group.shape[0]
    group, first, low, high = (np.asarray(x)[:count] for x in visits[:4])
    # In order, without a gap, each within its tile, and each tile within the arrays and where one may begin.
    np.testing.assert_array_equal(low, np.concatenate([[0], high])[:count])
    assert (high[-1] if count else 0) == rows
    assert np.all((first <= low) & (low < high) & (high <= first + tile))
    assert np.all((first >= 0) & (first + tile <= length) & (first % PIECE == 0))
    owner = np.full(rows, -1)
    for g, part in enumerate(slices(sizes, rows)):
        owner[part] = g
    np.testing.assert_array_equal(owner[low], group)
    np.testing.assert_array_equal(owner[high - 1], group)


def test_tiles_fit_the_chip():
    """At every width of the study, few rows a group or many, all kernels fit, and more than one step is in flight."""
    widths = sorted(
        {tiles.padded_widths(d * 4 // g)[0] for d in (48, 96, 240, 336, 432, 640, 832, 2048) for g in (1, 4, 64)}
    )
    for mean in (1, 8, 64, 512):
        for columns in widths:
            for lhs, rhs, sums in ((1, 1, 1), (1, 2, 2), (2, 3, 3), (2, 2, 1)):
                for dtype in ("bfloat16", "float32"):
                    t = tiles.products(64 * mean, 64, columns, lhs=lhs, rhs=rhs, sums=sums, out=jnp.dtype(dtype))
                    slot = 2 * tiles.STEP * (lhs * t.rows + rhs * t.columns)
                    staging = t.consumers * 2 * 64 * 64 * jnp.dtype(dtype).itemsize
                    assert t.stages >= 2
                    assert (t.stages * slot + staging) * t.blocks <= tiles.SHARED_BYTES
                    # A thread may have 255 registers, fewer with three warpgroups, or with two blocks.
                    assert sums * t.columns // 2 <= {(1, 1): 192, (1, 2): 64, (2, 1): 128}[t.consumers, t.blocks]
            for rows in widths:
                t = tiles.outer(rows, columns, rhs=2, out=jnp.float32)
                assert t.stages >= 2
                assert (
                    t.stages * 128 * (t.rows + 2 * t.columns) + t.consumers * 32768
                ) * t.blocks <= tiles.SHARED_BYTES
        for hidden in (1, 32, 64, 65, 128):
            for width in widths:
                t = tiles.fused(64 * mean, 64, width, hidden, jnp.bfloat16)
                assert t.stages >= 2
                assert t.hidden >= hidden


@pytest.mark.parametrize("mean", [1, 64, 512])
@pytest.mark.parametrize("width", [8, 56, 64, 80, 128, 832])
def test_no_piece_is_stored_beside_a_result_of_one_piece(width: int, mean: int):
    """Mosaic drops an axis of one piece and its index: on an H200 such an expert's result was wrong."""
    rows = 64 * mean
    assert tiles.products(rows, 64, width, lhs=1, rhs=1, sums=1, out=jnp.bfloat16).columns <= tiles.round_up(width, 64)
    assert tiles.outer(width, width, rhs=1, out=jnp.bfloat16).columns <= tiles.round_up(width, 64)
    for hidden in (8, 64, 128):
        assert tiles.fused(rows, 64, width, hidden, jnp.bfloat16).columns <= tiles.round_up(width, 64)


@pytest.mark.parametrize(
    ("sizes", "padded"),
    [
        ((832, 52), (832, 56)),  # 16 bytes are 8 values, and 56 are no wider than a piece of 64
        ((832, 208), (832, 208)),
        ((80, 52), (80, 64)),  # 80 is of pieces of 16, and so is what meets it
        ((832, 104), (832, 112)),
        ((1, 3), (8, 8)),
    ],
)
def test_widths_are_padded_no_further_than_they_have_to(sizes: tuple[int, int], padded: tuple[int, int]):
    assert tiles.padded_widths(*sizes) == padded


def test_matrices_that_fit_are_not_padded():
    """832 x 208 is multiplied where it lies; of 832 x 52 the axis of 52 alone is padded, to 56."""
    groups = Groups(jnp.full(4, 16))

    def padded(f: int) -> list[tuple[int, ...]]:
        shapes = (64, 832), (4, 832, f), (4, 832, f), (4, f, 832)
        network = jax.make_jaxpr(lambda rows, *matrices: pallas_gpu.ffn(rows, *matrices, groups=groups)[0])
        arrays = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes)
        pads = (e for e in network(*arrays).jaxpr.eqns if "pad" in (e.primitive.name, e.params.get("name", "")[1:]))
        return [e.outvars[0].aval.shape for e in pads if e.outvars[0].aval.shape != e.invars[0].aval.shape]

    assert padded(208) == []
    assert padded(52) == [(4, 832, 56), (4, 832, 56), (4, 56, 832)]


def test_row_alignment_never_outweighs_the_rows():
    assert pallas_gpu.row_alignment(4096, 4096) == 1
    assert pallas_gpu.row_alignment(4096, 8) == 8


def test_other_dtypes_go_to_row_blocks(rng, caplog):
    sizes = np.array([3, 0, 9])
    x, w, _, _ = draw(rng, 16, 6, 5, sizes)
    groups = Groups(jnp.asarray(sizes))
    assert not pallas_gpu.supports(x, w)
    pallas_gpu._say_other.cache_clear()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            got = pallas_gpu.gmm(x, w, groups, transpose_rhs=False, dtype=jnp.dtype("float32"))
            outer = pallas_gpu.tgmm(x, x, groups, dtype=jnp.dtype("float32"))
    want = blocks.gmm(groups.select(x), w, groups, transpose_rhs=False, dtype=jnp.dtype("float32"))
    np.testing.assert_array_equal(got, want)
    assert np.isfinite(outer).all()
    assert [r.message for r in caplog.records] == [
        f"{name} of float32 x float32: the Hopper kernels multiply bfloat16 only, blocks takes it"
        for name in ("gmm", "tgmm")
    ]


class Layout(NamedTuple):
    """Rows of each group of each model, [members, G]; every model has `rows` rows."""

    sizes: np.ndarray
    rows: int
    alignment: int = 1

    def groups(self) -> Groups:
        return Groups(jnp.asarray(self.sizes.reshape(-1), jnp.int32), len(self.sizes), self.alignment)

    def draw(self, rng: np.random.Generator, columns: int, bad: float) -> jax.Array:
        """Unit-scale rows, those of no group being `bad`."""
        total = self.rows * len(self.sizes)
        inside = self.groups().inside(total)[:, None]
        return jnp.where(inside, jnp.asarray(rng.standard_normal((total, columns)), jnp.bfloat16), bad)

    def of_each(self, function: Any, *arrays: Any) -> Any:
        """What `function` of `reference` makes of each model's arrays, brought together."""
        results = []
        for i, sizes in enumerate(self.sizes):
            each = (self.rows if x.ndim == 2 else len(sizes) for x in arrays)
            *own, grad = (x[i * n : (i + 1) * n] for x, n in zip(arrays, each, strict=True))
            results.append(function(*own, sizes, grad))
        return type(results[0])(*map(np.concatenate, zip(*results, strict=True)))


@st.composite
def layouts(draw) -> Layout:
    members, alignment = draw(st.sampled_from([(1, 1), (2, 1), (2, 1), (2, 8), (1, 12), (1, 64)]))
    number = draw(st.integers(1, 5))
    counts = st.lists(st.sampled_from([0, 0, 1, 7, 8, 63, 64, 65, 200]), min_size=number, max_size=number)
    sizes = -(-np.array([draw(counts) for _ in range(members)]) // alignment) * alignment
    tail = -(-draw(st.sampled_from([0, 3, 90])) // alignment) * alignment
    return Layout(sizes, max(int(sizes.sum(1).max()) + tail, alignment), alignment)


@pytest.mark.long
@interpreted
@example(layout=Layout(np.array([[0] * 20 + [500] + [0] * 19]), 511), k=32, n=48, dtype="float32", bad=np.nan, seed=0)
@example(layout=Layout(np.ones((1, 90), int), 111), k=32, n=48, dtype="float32", bad=np.nan, seed=0)
@few_draws(max_examples=2)
@given(
    layout=layouts(),
    k=st.sampled_from([1, 40, 80, 150]),
    n=st.sampled_from([3, 32, 52, 72, 200]),
    dtype=st.sampled_from(["bfloat16", "float32"]),
    bad=st.sampled_from([np.nan, np.inf]),
    seed=st.integers(0, 2**32 - 1),
)
def test_products_of_folded_models(layout: Layout, k: int, n: int, dtype: str, bad: float, seed: int):
    rng, groups = np.random.default_rng(seed), layout.groups()
    x, dy = layout.draw(rng, k, bad), layout.draw(rng, n, bad)
    w = jnp.asarray(rng.standard_normal((layout.sizes.size, k, n)), jnp.bfloat16)

    @jax.jit
    def run(x, w, dy):
        out = pallas_gpu.gmm(x, w, groups, transpose_rhs=False, dtype=dtype)
        dx = pallas_gpu.gmm(dy, w, groups, transpose_rhs=True, dtype=dtype)
        return reference.Gradients(out, dx, pallas_gpu.tgmm(x, dy, groups, dtype=dtype))

    with running("pallas_gpu"):
        got = jax.block_until_ready(run(x, w, dy))
    want = layout.of_each(reference.grouped_matmul, x, w, dy)
    scale = layout.of_each(partial(magnitudes, reference.grouped_matmul), x, w, dy)
    assert {str(values.dtype) for values in got} == {dtype}
    check(got, want, scale, layout.sizes)


@interpreted
@few_draws(max_examples=2)
@given(
    layout=layouts(),
    d=st.sampled_from([24, 80, 144]),
    f=st.sampled_from([3, 48, 52, 64, 100, 150]),
    bad=st.sampled_from([np.nan, np.inf]),
    seed=st.integers(0, 2**32 - 1),
)
def test_networks_of_folded_models(layout: Layout, d: int, f: int, bad: float, seed: int):
    rng, groups = np.random.default_rng(seed), layout.groups()
    x, dy = layout.draw(rng, d, bad), layout.draw(rng, d, bad)
    gate, up, down = (
        jnp.asarray(rng.standard_normal((layout.sizes.size, *shape)) / shape[0] ** 0.5, jnp.bfloat16)
        for shape in ((d, f), (d, f), (f, d))
    )

    @jax.jit
    def run(x, gate, up, down, dy):
        out, saved = pallas_gpu.ffn(x, gate, up, down, groups)
        return reference.FFNGradients(out, *pallas_gpu.ffn_backward(x, gate, up, down, groups, saved, dy))

    with running("pallas_gpu"):
        got = jax.block_until_ready(run(x, gate, up, down, dy))
    want = layout.of_each(reference.expert_ffn, x, gate, up, down, dy)
    # A few roundings to bfloat16, relative to a sum that little of cancels out at unit scale.
    check(got, want, want, layout.sizes, tolerance={"bfloat16": 2**-6})
