"""Rows times the matrix of their group."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from slicedice.kernels.groups import Groups
from slicedice.kernels.pallas_tpu import tiles
from slicedice.kernels.pallas_tpu.inside import dot, for_each_piece, row_mask, select
from slicedice.kernels.pallas_tpu.parts import in_parts
from slicedice.kernels.pallas_tpu.visits import Visits, visits_of
from slicedice.kernels.varying import result


@in_parts
def gmm(
    lhs: Float[Array, "M K"], rhs: Float[Array, "G ..."], groups: Groups, *, transpose_rhs: bool, dtype: DTypeLike
) -> Float[Array, "M N"]:
    """Multiplies each row with the matrix of its group; rows of no group come out as zeros, whatever they hold.

    Args:
      lhs: rows, [M, K].
      rhs: a matrix for each group, [G, K, N], or [G, N, K] with `transpose_rhs`.
      groups: which rows belong to which.
      transpose_rhs: whether `rhs` comes with its last two axes swapped.
      dtype: of the result; products are summed in float32.

    Returns:
      [M, N].

    Raises:
      ValueError: one model has more groups than scalar memory can list.
    """
    (m, k), n = lhs.shape, rhs.shape[1 if transpose_rhs else 2]
    if 0 in (m, n, k, *rhs.shape):
        return jnp.zeros((m, n), dtype)
    if tiles.flips(*rhs.shape[1:]):
        rhs, transpose_rhs = jnp.swapaxes(rhs, 1, 2), not transpose_rhs
    compute = tiles.compute_dtype(lhs.dtype, rhs.dtype)
    tm, (tk, tn), vmem = plan((m, k, n), rhs.shape[0], (lhs.dtype, rhs.dtype, dtype), transpose_rhs)
    visits, count = visits_of(groups, m, tm, every_group=False, every_tile=True)

    def matrix(column: Any, visit: Any, depth: Any, *scalars: Any):
        group = Visits(*scalars).group[visit]
        return (group, column, depth) if transpose_rhs else (group, depth, column)

    call = pl.pallas_call(
        functools.partial(_kernel, k=k, transpose=transpose_rhs, dtype=compute),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(visits),
            grid=(pl.cdiv(n, tn), count, pl.cdiv(k, tk)),
            in_specs=[
                pl.BlockSpec((tm, tk), lambda column, visit, depth, *s: (Visits(*s).tile_to_read(visit, tm), depth)),
                pl.BlockSpec((None, tn, tk) if transpose_rhs else (None, tk, tn), matrix),
            ],
            out_specs=pl.BlockSpec((tm, tn), lambda column, visit, depth, *s: (Visits(*s).tile(visit), column)),
            scratch_shapes=[pltpu.VMEM((tm, tn), jnp.float32)] if tk < k else [],
        ),
        out_shape=result((m, n), dtype, lhs, rhs, groups.sizes),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=tiles.vmem_limit(vmem)
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * m * k * n,
            transcendentals=0,
            bytes_accessed=lhs.nbytes * pl.cdiv(n, tn) + rhs.nbytes + m * n * jnp.dtype(dtype).itemsize,
        ),
        name="gmm",
    )
    return call(*visits, lhs, rhs)


def plan(
    sizes: tuple[int, int, int], groups: int, dtypes: tuple[DTypeLike, DTypeLike, DTypeLike], transpose_rhs: bool
) -> tiles.Plan:
    """Tiles for M, K and N and the dtypes of `lhs`, `rhs` and the result: widths are those of K and N."""
    m, k, n = sizes
    lhs, rhs, out = dtypes
    seconds = tiles.matmul_seconds(k, n, tiles.compute_dtype(lhs, rhs))
    rows = tiles.row_tile(m, groups, row_seconds=seconds, piece=tiles.chip().pieces.product[0])

    def used(tm: int, tk: int, tn: int) -> int:
        blocks = (((tm, tk), lhs), ((tn, tk) if transpose_rhs else (tk, tn), rhs), ((tm, tn), out))
        scratch = tiles.block_bytes((tm, tn), jnp.float32, 1) if tk < k else 0
        return sum(tiles.block_bytes(*block) for block in blocks) + scratch

    return tiles.plan(rows, (k, n), used)


def _kernel(*refs: Any, k: int, transpose: bool, dtype: Any):
    visits, (lhs, rhs, out, *scratch) = Visits(*refs[:4]), refs[4:]
    visit, depth = pl.program_id(1), pl.program_id(2)
    (tm, tk), tn = lhs.shape, out.shape[1]
    low, high = visits.bounds(visit, tm)

    @pl.when(visits.first_of_tile(visit) & (depth == 0))
    def _():
        out[...] = jnp.zeros_like(out)

    def piece(rows: Any, columns: Any, shape: tuple[int, int]):
        x, w = lhs[rows, :], rhs[columns, :] if transpose else rhs[:, columns]
        if k % tk:  # What the last tile holds past K is no part of the arrays, and may be NaN.
            left = k - depth * tk
            x = select(jax.lax.broadcasted_iota(jnp.int32, x.shape, 1) < left, x)
            w = select(jax.lax.broadcasted_iota(jnp.int32, w.shape, int(transpose)) < left, w)
        product = dot(x, w, 1, int(transpose), dtype)
        if scratch:
            (total,) = scratch
            product += jnp.where(depth == 0, 0.0, total[rows, columns])
            total[rows, columns] = product
        mine = row_mask(shape, low - rows.start, high - rows.start)
        before = out[rows, columns].astype(jnp.float32)
        out[rows, columns] = jnp.where(mine, product, before).astype(out.dtype)

    @pl.when(low < high)
    def _():
        for_each_piece(tm, tn, tiles.chip().pieces.product, piece, (low, high))
