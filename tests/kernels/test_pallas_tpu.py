"""The TPU kernels, interpreted: tiles far smaller than a TPU's, so that every seam between tiles is crossed.

The contract that all implementations share is tested elsewhere; here it is what these kernels are made of. The
interpreter fills memory that nobody has written with NaN and stops at reads past the end and at races.
"""

import sys
from itertools import product
from typing import NamedTuple

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
from tests.kernels.contract import TOLERANCE, running

pytestmark = pytest.mark.skipif(jax.default_backend() != "cpu", reason="interpreted on the CPU")
PIECES = tiles.Pieces((16, 128), (16, 128), (16, 128), (16, 128), (128, 128))
PHASES = [Phase.explicit, Phase.generate]  # shrinking would compile for minutes
BUDGET = {"bytes": 400 * 1024}
WIDTHS = {1: 280, 40: 470, 136: 1400}
"""KiB that hold the backward pass of so wide a model if F is cut at 128, not if it is a whole 300."""
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


def assert_close(got, want: np.ndarray, scale: np.ndarray, where: Layout, *, times: float = 1.0) -> None:
    """Every group's error is that of rounding, relative to sums of magnitudes; rows of no group are exactly zero."""
    values, tolerance = np.asarray(got, np.float64), times * TOLERANCE[str(got.dtype)]
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


@pytest.mark.parametrize(("k", "n"), [(600, 40), (129, 600), (300, 300), (40, 1)])
@example(where=layout([[0, 33, 70], [5, 0, 33]], 70), dtype="bfloat16", bad=np.nan, seed=0)
@settings(max_examples=2, deadline=None, database=None, phases=PHASES)
@given(
    where=LAYOUTS,
    dtype=st.sampled_from(["float32", "bfloat16"]),
    bad=st.sampled_from([np.nan, np.inf]),
    seed=st.integers(0, 2**32 - 1),
)
def test_products_of_random_layouts(k: int, n: int, where: Layout, dtype: str, bad: float, seed: int):
    rng = np.random.default_rng(seed)
    lhs, other = (rows_of(rng, where, width, dtype, bad) for width in (k, n))
    rhs = jnp.asarray(rng.standard_normal((where.sizes.size, k, n)), dtype)
    with running("pallas_tpu"):
        got = gmm(lhs, rhs, where.groups(), transpose_rhs=False, dtype=dtype)
        turned = gmm(lhs, rhs.swapaxes(1, 2), where.groups(), transpose_rhs=True, dtype=dtype)
        outer = tgmm(lhs, other, where.groups(), dtype=dtype)
    want, scale = products(lhs, rhs, other, where), products(abs(lhs), abs(rhs), abs(other), where)
    assert_close(got, want[0], scale[0], where)
    assert_close(turned, want[0], scale[0], where)
    assert_close(outer, want[1], scale[1], where)
    np.testing.assert_array_equal(np.asarray(outer, np.float64)[where.sizes == 0], 0.0)


@pytest.mark.parametrize(("d", "f"), [(40, 300), (136, 129), (136, 300), (1, 40)])
@example(where=layout([[0, 33, 70], [5, 0, 33]], 70), dtype="float32", bad=np.nan, seed=0)
@settings(max_examples=2, deadline=None, database=None, phases=PHASES)
@given(
    where=LAYOUTS,
    dtype=st.sampled_from(["float32", "bfloat16"]),
    bad=st.sampled_from([np.nan, np.inf]),
    seed=st.integers(0, 2**32 - 1),
)
def test_networks_of_random_layouts(d: int, f: int, where: Layout, dtype: str, bad: float, seed: int):
    rng = np.random.default_rng(seed)
    rows, grad = (rows_of(rng, where, d, dtype, bad) for _ in range(2))
    gate, up, down = (
        jnp.asarray(rng.standard_normal((where.sizes.size, *shape)) * shape[0] ** -0.5, dtype)
        for shape in ((d, f), (d, f), (f, d))
    )
    with running("pallas_tpu"), pytest.MonkeyPatch.context() as patch:
        patch.setitem(BUDGET, "bytes", WIDTHS[d] * 1024)
        out, saved = ffn(rows, gate, up, down, where.groups())
        got = reference.FFNGradients(out, *ffn_backward(rows, gate, up, down, where.groups(), saved, grad))
    # The reference knows one model: rows are brought together, and the results taken apart again.
    order = np.concatenate([np.arange(x.start, x.stop) for x in where.slices])
    together = reference.expert_ffn(rows[order], gate, up, down, where.sizes, grad[order])
    for name, values in got._asdict().items():
        want = np.asarray(getattr(together, name))
        if want.ndim == 2:
            apart = np.zeros((where.rows, d))
            apart[order] = want
            want = apart
        assert values.dtype == dtype
        # Values are of unit scale, and the hidden ones sums of D and F of these: roots of both bound the rounding.
        scale = np.full_like(want, (1 + d**0.5) * (1 + f**0.5) if want.ndim == 2 else 1 + 3 * where.sizes.max() ** 0.5)
        assert_close(values, want, scale, where, times=4)
        if want.ndim == 3:
            np.testing.assert_array_equal(np.asarray(values, np.float64)[where.sizes == 0], 0.0)


def test_widths_are_cut_in_these_tests(monkeypatch: pytest.MonkeyPatch):
    """What fits the tests' VMEM at once would leave the tails of cut widths untested."""
    plans = {name: sys.modules[f"slicedice.kernels.pallas_tpu.{name}"].plan for name in ("gmm", "tgmm", "ffn_backward")}
    dtypes = jnp.dtype("float32"), jnp.dtype("bfloat16")
    for dtype in dtypes:
        assert max(plans["gmm"]((200, 600, 600), 5, (dtype,) * 3, False).widths) < 600
        assert max(plans["tgmm"]((200, 600, 600), 5, (dtype,) * 3).widths) < 600
    for dtype, (d, kib) in product(dtypes, WIDTHS.items()):
        monkeypatch.setitem(BUDGET, "bytes", kib * 1024)
        assert plans["ffn_backward"]((200, d, 300), 5, (dtype,) * 5).widths < (300,)


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
