"""The TPU kernels, interpreted: tiles far smaller than a TPU's, so that every seam between tiles is crossed.

The contract that all implementations share is tested elsewhere; here it is what these kernels are made of. The
interpreter fills memory that nobody has written with NaN and stops at reads past the end and at races.
"""

import functools
import sys
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from slicedice.kernels import reference
from slicedice.kernels.groups import Groups
from slicedice.kernels.pallas_tpu import ffn, ffn_backward, gmm, tgmm, tiles
from slicedice.kernels.pallas_tpu.visits import most_visits, visits_of
from tests.kernels.contract import TOLERANCE, UNOPTIMISED, running

pytestmark = pytest.mark.skipif(jax.default_backend() != "cpu", reason="interpreted on the CPU")
PIECES = tiles.Pieces((16, 128), (16, 128), (16, 128), (16, 128), (128, 128))
PHASES = [Phase.explicit, Phase.generate]  # shrinking would compile for minutes
BUDGET = {"bytes": 400 * 1024}
CUT = {
    ("ffn", "float32"): {1: 130, 40: 250, 136: 750},
    ("ffn", "bfloat16"): {1: 90, 40: 150, 136: 400},
    ("ffn_backward", "float32"): {1: 300, 40: 500, 136: 1400},
    ("ffn_backward", "bfloat16"): {1: 200, 40: 400, 136: 1100},
}
"""By kernel and dtype, KiB that hold the network of so wide a model where F is cut at 128, not where it is cut less."""
NO_NETWORK = 300
"""KiB that hold products, and no network of D = 136."""
CHIPS = (("TPU_V5E", 1), ("TPU_V5P", 2), ("TPU_V6E", 1), ("TPU_7X", 1))


@pytest.fixture(scope="module", autouse=True)
def small_tiles():
    """32 rows, widths cut where a whole one takes more than `BUDGET`, and pieces of the least size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "MOST_ROWS", 32)
        patch.setattr(tiles.Chip, "budget", property(lambda chip: BUDGET["bytes"]))
        patch.setitem(tiles.PIECES, 5, PIECES)
        yield


class Layout(NamedTuple):
    """Rows in all, and for each group, in order, its rows; the models folded together are equally many rows each."""

    rows: int
    members: int
    sizes: np.ndarray
    slices: list[slice]

    def groups(self) -> Groups:
        return Groups(jnp.asarray(self.sizes, jnp.int32), members=self.members)

    def outside(self) -> np.ndarray:
        outside = np.ones(self.rows, bool)
        for rows in self.slices:
            outside[rows] = False
        return outside


def layout(sizes, tail: int = 0) -> Layout:
    """Of sizes [members, groups]."""
    sizes = np.asarray(sizes, np.int32)
    each = max(1, int(sizes.sum(1).max()) + tail)
    slices = [
        slice(int(member * each + end - size), int(member * each + end))
        for member, row in enumerate(sizes)
        for size, end in zip(row, np.cumsum(row), strict=True)
    ]
    return Layout(each * sizes.shape[0], sizes.shape[0], sizes.reshape(-1), slices)


LAYOUTS = st.builds(
    layout,
    st.integers(1, 5).flatmap(
        lambda groups: st.lists(
            st.lists(st.sampled_from([0, 0, 1, 5, 32, 33, 70]), min_size=groups, max_size=groups),
            min_size=1,
            max_size=2,
        )
    ),
    st.sampled_from([0, 3, 70]),
)
"""One model or two, with every kind of group and tail beside a tile of 32 rows."""


def rows_of(rng: np.random.Generator, where: Layout, width: int, dtype: str, bad: float) -> jax.Array:
    """Unit-scale rows, those of no group being `bad`."""
    return jnp.where(where.outside()[:, None], bad, jnp.asarray(rng.standard_normal((where.rows, width)), dtype))


def assert_close(got, want: np.ndarray, scale: np.ndarray, where: Layout) -> None:
    """Every group's error is that of rounding, relative to sums of magnitudes; rows of no group are exactly zero."""
    values, tolerance = np.asarray(got, np.float64), TOLERANCE[str(got.dtype)]
    for g, rows in enumerate(where.slices):
        part = g if values.ndim == 3 else rows
        error, most = np.linalg.norm(values[part] - want[part]), np.linalg.norm(scale[part])
        assert error <= tolerance * most, f"group {g}: relative error {error / most:.2g}"
    if values.ndim == 2:
        np.testing.assert_array_equal(values[where.outside()], 0.0)


def products(lhs, rhs, other, where: Layout) -> tuple[np.ndarray, np.ndarray]:
    """`gmm` of lhs and rhs, and `tgmm` of lhs and other, in float64."""
    lhs, rhs, other = (np.asarray(x, np.float64) for x in (lhs, rhs, other))
    out, outer = np.zeros_like(other), np.zeros_like(rhs)
    for g, rows in enumerate(where.slices):
        out[rows], outer[g] = lhs[rows] @ rhs[g], lhs[rows].T @ other[rows]
    return out, outer


def called(kernel: Any, *arguments: Any, **how: Any) -> Any:
    """A kernel's results, with `Groups` in place of a layout."""

    def compute(arrays: dict[int, Any]) -> Any:
        return kernel(*(arrays[i] if i in arrays else x.groups() for i, x in enumerate(arguments)), **how)

    arrays = {i: x for i, x in enumerate(arguments) if not isinstance(x, Layout)}
    return jax.block_until_ready(jax.jit(compute, compiler_options=UNOPTIMISED)(arrays))


def check_products(k: int, n: int, where: Layout, dtype: str, bad: float, seed: int) -> None:
    """`gmm`, either way that its matrices may lie, and `tgmm` against the reference."""
    rng = np.random.default_rng(seed)
    lhs, other = (rows_of(rng, where, width, dtype, bad) for width in (k, n))
    rhs = jnp.asarray(rng.standard_normal((where.sizes.size, k, n)), dtype)
    with running("pallas_tpu"):
        got = called(gmm, lhs, rhs, where, transpose_rhs=False, dtype=dtype)
        turned = called(gmm, lhs, rhs.swapaxes(1, 2), where, transpose_rhs=True, dtype=dtype)
        outer = called(tgmm, lhs, other, where, dtype=dtype)
    want, scale = products(lhs, rhs, other, where), products(abs(lhs), abs(rhs), abs(other), where)
    assert_close(got, want[0], scale[0], where)
    assert_close(turned, want[0], scale[0], where)
    assert_close(outer, want[1], scale[1], where)
    np.testing.assert_array_equal(np.asarray(outer, np.float64)[where.sizes == 0], 0.0)


def random_layouts(dtype: str):
    """Draws layouts, dtypes, seeds and what lies past the last group; one in `dtype`, always the same, comes first."""

    def decorate(test):
        draws = given(
            where=LAYOUTS,
            dtype=st.sampled_from(["float32", "bfloat16"]),
            bad=st.sampled_from([np.nan, np.inf]),
            seed=st.integers(0, 2**32 - 1),
        )
        few = settings(max_examples=2, deadline=None, database=None, phases=PHASES)
        first = example(where=layout([[0, 33, 70], [5, 0, 33]], 70), dtype=dtype, bad=np.nan, seed=0)
        return first(few(draws(test)))

    return decorate


@pytest.mark.parametrize(
    ("k", "n"), [(600, 40), *(pytest.param(*x, marks=pytest.mark.long) for x in ((129, 600), (300, 300), (40, 1)))]
)
@random_layouts("bfloat16")
def test_products_of_random_layouts(k: int, n: int, where: Layout, dtype: str, bad: float, seed: int):
    check_products(k, n, where, dtype, bad, seed)


def rounded_twice(rows, gate, up, down, sizes, grad) -> reference.FFNGradients:
    """What is left, in float64 and in units of a rounding, where hidden values are rounded once, and results once.

    Errors are independent, so that their squares add up: of a result, and of the terms that it sums. Roundings spread
    over +-1, times a value's distance to the next power of two, which makes 0.42 in the mean. Every further rounding of
    a sum, as if it were kept in bfloat16 from one tile to the next, adds as much again. Where few are rounded, or few
    are so large that the others do not count, chance adds to it.
    """
    x, wg, wu, wd, dy = (np.asarray(array, np.float64) for array in (rows, gate, up, down, grad))
    left = reference.FFNGradients(*(value**2 for value in reference.expert_ffn(rows, gate, up, down, sizes, grad)))
    for e, part in enumerate(reference.slices(sizes)):
        a, b, dhidden = x[part] @ wg[e], x[part] @ wu[e], dy[part] @ wd[e].T
        sigmoid = 0.5 * (1 + np.tanh(a / 2))
        hidden, da, db = a * sigmoid * b, dhidden * b * sigmoid * (1 + a * (1 - sigmoid)), dhidden * a * sigmoid
        left.out[part] += hidden**2 @ wd[e] ** 2
        left.drows[part] += da**2 @ wg[e].T ** 2 + db**2 @ wu[e].T ** 2
        left.dgate[e] += (x[part] ** 2).T @ da**2
        left.dup[e] += (x[part] ** 2).T @ db**2
        left.ddown[e] += (hidden**2).T @ dy[part] ** 2
        for values, at in zip(left, (part, part, e, e, e), strict=True):
            if values[at].any():
                count = values[at].sum() ** 2 / (values[at] ** 2).sum()  # as many of one size vary as much together
                rounded = min(count, len(x[part]) * min(wg.shape[1:]))
                values[at] = (0.48 + 2 * rounded**-0.5) ** 2 * values[at]
    return reference.FFNGradients(*map(np.sqrt, left))


def cut(d: int, dtype: str) -> dict[str, int]:
    """What `CUT` has for a width and a dtype, by kernel."""
    return {kernel: kib[d] for (kernel, of), kib in CUT.items() if of == dtype}


def check_networks(d: int, f: int, where: Layout, dtype: str, bad: float, seed: int, kib: dict[str, int]) -> None:
    """Both of the network's kernels in so many KiB of VMEM, against the reference."""
    rng = np.random.default_rng(seed)
    rows, grad = (rows_of(rng, where, d, dtype, bad) for _ in range(2))
    gate, up, down = (
        jnp.asarray(rng.standard_normal((where.sizes.size, *shape)) * shape[0] ** -0.5, dtype)
        for shape in ((d, f), (d, f), (f, d))
    )
    with running("pallas_tpu"), pytest.MonkeyPatch.context() as patch:
        patch.setitem(BUDGET, "bytes", kib["ffn"] * 1024)
        out, saved = called(ffn, rows, gate, up, down, where)
        patch.setitem(BUDGET, "bytes", kib["ffn_backward"] * 1024)
        got = reference.FFNGradients(out, *called(ffn_backward, rows, gate, up, down, where, saved, grad))
    # The reference knows one model: rows are brought together, and the results taken apart again.
    order = np.concatenate([np.arange(x.start, x.stop) for x in where.slices])
    together = rows[order], gate, up, down, where.sizes, grad[order]
    for name, values in got._asdict().items():
        want, most = (getattr(function(*together), name) for function in (reference.expert_ffn, rounded_twice))
        if want.ndim == 2:
            apart = np.zeros((2, where.rows, d))
            apart[:, order] = want, most
            want, most = apart
        assert values.dtype == dtype
        assert_close(values, want, most, where)
        if want.ndim == 3:
            np.testing.assert_array_equal(np.asarray(values, np.float64)[where.sizes == 0], 0.0)


@pytest.mark.parametrize(
    ("d", "f"), [(40, 300), *(pytest.param(*x, marks=pytest.mark.long) for x in ((136, 129), (136, 300), (1, 40)))]
)
@random_layouts("float32")
def test_networks_of_random_layouts(d: int, f: int, where: Layout, dtype: str, bad: float, seed: int):
    check_networks(d, f, where, dtype, bad, seed, cut(d, dtype))


@pytest.mark.long
def test_networks_sum_bfloat16_in_float32(rng):
    """Over 20 tiles of rows and 3 of the hidden width: kept in bfloat16 between tiles, sums would show it."""
    check_networks(40, 300, layout([[640]]), "bfloat16", np.nan, int(rng.integers(2**32)), cut(40, "bfloat16"))


@pytest.mark.long
def test_networks_too_wide_for_vmem(rng):
    """Where not even the least tiles fit, they are made of grouped products."""
    where, kib = layout([[0, 33], [5, 0]], 20), {"ffn": NO_NETWORK, "ffn_backward": NO_NETWORK}
    check_networks(136, 129, where, "float32", np.nan, int(rng.integers(2**32)), kib)


def test_widths_are_cut_in_these_tests(monkeypatch: pytest.MonkeyPatch):
    """What fits the tests' VMEM at once would leave the tails of cut widths untested."""
    names = "gmm", "tgmm", "ffn", "ffn_backward"
    plans = {name: sys.modules[f"slicedice.kernels.pallas_tpu.{name}"].plan for name in names}
    for dtype in (jnp.dtype("float32"), jnp.dtype("bfloat16")):
        assert max(plans["gmm"]((200, 600, 600), 5, (dtype,) * 3, False).widths) < 600
        assert max(plans["tgmm"]((200, 600, 600), 5, (dtype,) * 3).widths) < 600
    number = {"ffn": 4, "ffn_backward": 5}
    for (name, dtype), (d, f) in product(CUT, [(1, 300), (40, 300), (136, 129), (136, 300)]):
        monkeypatch.setitem(BUDGET, "bytes", CUT[name, dtype][d] * 1024)
        assert plans[name]((200, d, f), 5, (jnp.dtype(dtype),) * number[name]).widths == (128,)
    monkeypatch.setitem(BUDGET, "bytes", NO_NETWORK * 1024)
    for name, dtypes in number.items():
        with pytest.raises(tiles.TooWideError, match=r"no tiles of widths \(129,\)"):
            plans[name]((58, 136, 129), 4, (jnp.dtype("float32"),) * dtypes)


@pytest.mark.long
def test_many_groups_of_few_rows(rng):
    """Most have no row: the forward product passes them over, and their gradients are written all the same."""
    for groups in (4096, 256):
        where = layout(
            rng.permuted(np.arange(groups) % (groups // 64) == 0)[None] * rng.integers(1, 3, (1, groups)), tail=5
        )
        lhs, other = (rows_of(rng, where, width, "float32", np.nan) for width in (3, 2))
        rhs = jnp.asarray(rng.standard_normal((groups, 3, 2)), jnp.float32)
        want, scale = products(lhs, rhs, other, where), products(abs(lhs), abs(rhs), abs(other), where)
        with running("pallas_tpu"):
            assert_close(gmm(lhs, rhs, where.groups(), transpose_rhs=False, dtype="float32"), want[0], scale[0], where)
            if groups < 4096:
                assert_close(tgmm(lhs, other, where.groups(), dtype="float32"), want[1], scale[1], where)


@pytest.mark.long
def test_two_cores_share_the_work(rng, monkeypatch: pytest.MonkeyPatch):
    """A chip of two cores gives each some of the tiles of a "parallel" width: none is left out or raced for."""
    monkeypatch.setattr(pltpu, "InterpretParams", functools.partial(pltpu.InterpretParams, num_cores_or_threads=2))
    check_products(129, 600, layout([[0, 33, 70]], 5), "float32", np.nan, int(rng.integers(2**32)))
    check_networks(40, 300, layout([[0, 33]], 5), "float32", np.nan, int(rng.integers(2**32)), cut(40, "float32"))


def test_indices_of_64_bits(rng):
    """Under `jax_enable_x64`, where Python's integers are wider than a TPU's."""
    with jax.enable_x64(True):
        check_products(300, 40, layout([[0, 33, 5]], 3), "float32", np.nan, int(rng.integers(2**32)))


def listed(where: Layout, tile: int, *, every_group: bool, every_tile: bool) -> np.ndarray:
    """The visits, as (tile, group), one by one."""
    each, number = where.rows // where.members, where.sizes.size // where.members
    visits = []
    for g, rows in enumerate(where.slices):
        stop = (g // number + 1) * each if every_tile and g % number == number - 1 else rows.stop
        if stop > rows.start:
            visits += [(t, g) for t in range(rows.start // tile, (stop - 1) // tile + 1)]
        elif every_group:
            visits.append((min(rows.start // tile, (where.rows - 1) // tile), g))
    return np.array(visits)


@pytest.mark.parametrize("every_group", [False, True])
@pytest.mark.parametrize("every_tile", [False, True])
@pytest.mark.parametrize(
    ("members", "groups", "most"), [(1, 7, 50), (3, 4, 50), (2, 5, 1), (1, 16384, 3), (8, 512, 40)]
)
def test_list_of_visits(every_group: bool, every_tile: bool, members: int, groups: int, most: int, rng):
    for tile in (32, 128):
        sizes = rng.integers(0, most + 1, (members, groups)) * rng.integers(0, 2, (members, groups))
        where = layout(sizes, tail=int(rng.integers(0, 200)))
        visits, count = visits_of(where.groups(), where.rows, tile, every_group=every_group, every_tile=every_tile)
        want = listed(where, tile, every_group=every_group, every_tile=every_tile)
        number = np.arange(int(count))
        got = np.stack([visits.tile(number), visits.group[number]], 1)
        np.testing.assert_array_equal(got, want.reshape(-1, 2))
        assert count <= most_visits(where.rows, where.sizes.size, tile)
        # A tile that is left is never come back to, nor is a group: what they hold is written out when left.
        assert (np.diff(got, axis=0) >= 0).all()
        if every_tile:
            assert set(got[:, 0]) == set(range(-(-where.rows // tile)))
        if every_group:
            assert set(got[:, 1]) == set(range(where.sizes.size))


def test_groups_without_any_row(rng):
    where = layout([[0, 0, 0]], tail=70)
    lhs, other = (rows_of(rng, where, width, "float32", np.nan) for width in (3, 2))
    with running("pallas_tpu"):
        np.testing.assert_array_equal(
            gmm(lhs, jnp.ones((3, 3, 2)), where.groups(), transpose_rhs=False, dtype="float32"), np.zeros((70, 2))
        )
        np.testing.assert_array_equal(tgmm(lhs, other, where.groups(), dtype="float32"), np.zeros((3, 3, 2)))


def test_more_groups_than_scalar_memory_lists():
    with pytest.raises(ValueError, match="M = 8 rows in G = 65536 groups: their list does not fit"):
        gmm(jnp.ones((8, 2)), jnp.ones((65536, 2, 2)), Groups(jnp.zeros(65536, int)), transpose_rhs=False, dtype="f4")


@pytest.mark.long
def test_more_models_than_scalar_memory_lists(rng, monkeypatch: pytest.MonkeyPatch):
    """Three, of which two fit: they are called for in two parts, the last of one model."""
    where = layout(rng.integers(0, 20, (3, 2)), tail=7)
    listed_of_two = 4 * most_visits(2 * where.rows // 3, 4, tiles.LEAST_ROWS) + 12 * 4
    monkeypatch.setattr("slicedice.kernels.pallas_tpu.visits.SCALAR_BYTES", listed_of_two)
    check_products(40, 3, where, "float32", np.nan, int(rng.integers(2**32)))
    check_networks(40, 5, where, "float32", np.nan, int(rng.integers(2**32)), cut(40, "float32"))


@pytest.fixture
def chip(request, monkeypatch: pytest.MonkeyPatch) -> tiles.Chip:
    """A TPU generation as the tiles are chosen for it."""
    name, cores = request.param
    info = pltpu.get_tpu_info_for_chip(pltpu.ChipVersion[name], cores)
    monkeypatch.setattr(pltpu, "get_tpu_info", lambda: info)
    monkeypatch.setattr(tiles, "MOST_ROWS", 512)
    return tiles.chip()


@pytest.mark.parametrize("chip", CHIPS, indirect=True, ids=[name for name, _ in CHIPS])
def test_tiles_follow_the_rows_of_a_group(chip: tiles.Chip):
    seconds = tiles.matmul_seconds(832, 832, jnp.bfloat16)
    heights = [tiles.row_tile(2**18, groups, row_seconds=seconds) for groups in (4096, 1024, 128, 8, 1)]
    assert heights == sorted(heights)
    assert heights[0] == chip.columns, "tall tiles waste work on groups of 64 rows"
    assert heights[-1] == 512, "low tiles pay for steps in groups of 262,144 rows"
    # Rows that hardly cost anything are worth more of them in a tile, and so is computing no more than a part of it.
    assert tiles.row_tile(2**18, 512, row_seconds=seconds / 16) == 512
    assert tiles.row_tile(2**18, 4096, row_seconds=seconds, piece=64) == 512
    assert tiles.row_tile(5, 4096, row_seconds=seconds) == tiles.LEAST_ROWS
