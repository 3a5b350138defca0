"""The transposed companion: for each group, the sum of outer products of its rows, which is a weight gradient."""

import functools
from typing import Any

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from slicedice.kernels.groups import Groups
from slicedice.kernels.pallas_tpu import tiles
from slicedice.kernels.pallas_tpu.inside import accumulators, add, dot, for_each_piece, select_into
from slicedice.kernels.pallas_tpu.parts import in_parts
from slicedice.kernels.pallas_tpu.visits import Visits, visits_of
from slicedice.kernels.varying import result


@in_parts
def tgmm(
    lhs: Float[Array, "M K"], rhs: Float[Array, "M N"], groups: Groups, *, dtype: DTypeLike
) -> Float[Array, "G K N"]:
    """Sums the outer products of the rows of each group; rows of no group are never seen, NaN included.

    Args:
      lhs: rows, [M, K].
      rhs: rows, [M, N].
      groups: which rows belong to which.
      dtype: of the result; products are summed in float32.

    Returns:
      [G, K, N], zeros for an empty group.

    Raises:
      ValueError: one model has more groups than scalar memory can list.
    """
    (m, k), n, number = lhs.shape, rhs.shape[1], groups.sizes.shape[0]
    if 0 in (m, k, n, number):
        return jnp.zeros((number, k, n), dtype)
    if tiles.flips(k, n):
        return jnp.swapaxes(tgmm(rhs, lhs, groups, dtype=dtype), 1, 2)
    compute = tiles.compute_dtype(lhs.dtype, rhs.dtype)
    tm, (tk, tn), vmem = plan((m, k, n), number, (lhs.dtype, rhs.dtype, dtype))
    visits, count = visits_of(groups, m, tm, every_group=True, every_tile=False)
    call = pl.pallas_call(
        functools.partial(_kernel, dtype=compute),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(visits),
            grid=(pl.cdiv(k, tk), pl.cdiv(n, tn), count),
            in_specs=[
                pl.BlockSpec((tm, tk), lambda row, column, visit, *s: (Visits(*s).tile_to_read(visit, tm), row)),
                pl.BlockSpec((tm, tn), lambda row, column, visit, *s: (Visits(*s).tile_to_read(visit, tm), column)),
            ],
            out_specs=pl.BlockSpec(
                (None, tk, tn), lambda row, column, visit, *s: (Visits(*s).group[visit], row, column)
            ),
            scratch_shapes=[
                pltpu.VMEM((tk, tm), compute),
                pltpu.VMEM((tm, tn), compute),
                *accumulators((tk, tn), dtype),
            ],
        ),
        out_shape=result((number, k, n), dtype, lhs, rhs, groups.sizes),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=tiles.vmem_limit(vmem)
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * m * k * n,
            transcendentals=0,
            bytes_accessed=lhs.nbytes * pl.cdiv(n, tn)
            + rhs.nbytes * pl.cdiv(k, tk)
            + number * k * n * jnp.dtype(dtype).itemsize,
        ),
        name="tgmm",
    )
    return call(*visits, lhs, rhs)


def plan(sizes: tuple[int, int, int], groups: int, dtypes: tuple[DTypeLike, DTypeLike, DTypeLike]) -> tiles.Plan:
    """Tiles for M, K and N and the dtypes of `lhs`, `rhs` and the result: widths are those of K and N."""
    m, k, n = sizes
    lhs, rhs, out = dtypes
    compute = tiles.compute_dtype(lhs, rhs)
    rows = tiles.row_tile(
        m, groups, row_seconds=tiles.matmul_seconds(k, n, compute), visit_seconds=tiles.pass_seconds((k, n))
    )

    def used(tm: int, tk: int, tn: int) -> int:
        blocks = (((tm, tk), lhs), ((tm, tn), rhs), ((tk, tn), out))
        scratch = sum(tiles.block_bytes(block, compute, 1) for block in ((tk, tm), (tm, tn)))
        return sum(tiles.block_bytes(*block) for block in blocks) + scratch + tiles.accumulator_bytes((tk, tn), out)

    return tiles.plan(rows, (k, n), used)


def _kernel(*refs: Any, dtype: Any):
    visits, (lhs, rhs, out, turned, chosen, *scratch) = Visits(*refs[:4]), refs[4:]
    visit = pl.program_id(2)
    low, high = visits.bounds(visit, lhs.shape[0])
    first, (k, n) = visits.first_of_group(visit), out.shape

    @pl.when(low >= high)
    def _():
        out[...] = jnp.zeros_like(out)

    def piece(rows: Any, columns: Any, shape: tuple[int, int]):
        add(out, scratch, rows, columns, first, dot(turned[rows, :], chosen[:, columns], 1, 0, dtype))

    @pl.when(low < high)
    def _():
        # Both: what lies outside the group may be NaN in either.
        select_into(turned, lhs, low, high, transpose=True)
        select_into(chosen, rhs, low, high)
        for_each_piece(k, n, tiles.chip().pieces.outer, piece)
