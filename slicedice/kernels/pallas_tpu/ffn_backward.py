"""The gradients of the experts' feed-forward network, as one kernel that is given no more than its inputs.

It walks the visits once for every part of the hidden width that fits VMEM with its weights and their gradients,
which at fine granularity is all of it: then rows, weights and all gradients cross HBM exactly once, and no
[M, F] array exists.
"""

import functools
import logging
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from slicedice.kernels import composed
from slicedice.kernels.groups import Groups
from slicedice.kernels.pallas_tpu import tiles
from slicedice.kernels.pallas_tpu.ffn import block_of, hidden_part, orientation, oriented, width_part
from slicedice.kernels.pallas_tpu.gmm import gmm
from slicedice.kernels.pallas_tpu.inside import (
    WHOLE,
    accumulators,
    add,
    dot,
    for_each_piece,
    row_mask,
    select,
    select_into,
)
from slicedice.kernels.pallas_tpu.parts import in_parts
from slicedice.kernels.pallas_tpu.tgmm import tgmm
from slicedice.kernels.pallas_tpu.visits import Visits, visits_of
from slicedice.kernels.varying import result

log = logging.getLogger(__name__)


@in_parts
def ffn_backward(
    rows: Float[Array, "M D"],
    gate: Float[Array, "E D F"],
    up: Float[Array, "E D F"],
    down: Float[Array, "E F D"],
    groups: Groups,
    saved: tuple[()],
    grad: Float[Array, "M D"],
) -> tuple[Float[Array, "M D"], Float[Array, "E D F"], Float[Array, "E D F"], Float[Array, "E F D"]]:
    """The gradients of `ffn` in all of its inputs; rows of no expert are never seen, NaN included.

    Args:
      rows: [M, D].
      gate: [E, D, F].
      up: [E, D, F].
      down: [E, F, D].
      groups: which rows belong to which expert.
      saved: by `ffn`, nothing.
      grad: of the result of `ffn`, [M, D].

    Returns:
      The gradients of `rows`, `gate`, `up` and `down`, in their dtypes: zeros for rows of no expert and for experts
      of no rows. Sums are in float32.

    Where D is too wide for VMEM, with large F past 9,984 columns of bfloat16 or 7,168 of float32 in 64 MiB, it is eight
    grouped products instead, whose hidden values and gradients go through HBM. Two of these make anew what
    `composed.ffn` would have saved: so it does not matter whether the forward pass, which fits wider D, was one kernel.

    Raises:
      ValueError: one model has more experts than scalar memory can list.
    """
    del saved
    (m, d), (experts, _, f) = rows.shape, gate.shape
    if 0 in (m, d, f, experts):
        return jnp.zeros_like(rows), jnp.zeros_like(gate), jnp.zeros_like(up), jnp.zeros_like(down)
    compute = tiles.compute_dtype(rows.dtype, gate.dtype, up.dtype, down.dtype, grad.dtype)
    flipped, weights = orientation(d, f), oriented(gate, up, down)
    try:
        tm, (tf,), vmem = plan((m, d, f), experts, (rows.dtype, gate.dtype, up.dtype, down.dtype, grad.dtype))
    except tiles.TooWideError as error:
        log.warning("the gradients of the expert FFN of D = %d are eight grouped products: %s", d, error)
        return composed.gradients(SimpleNamespace(gmm=gmm, tgmm=tgmm), rows, gate, up, down, groups, grad)
    parts = pl.cdiv(f, tf)
    drows_dtype = rows.dtype if parts == 1 else jnp.dtype(jnp.float32)
    visits, count = visits_of(groups, m, tm, every_group=True, every_tile=True)

    def weight(flip: bool) -> pl.BlockSpec:
        def index(part: Any, visit: Any, *scalars: Any):
            group = Visits(*scalars).group[visit]
            return (group, part, WHOLE) if flip else (group, WHOLE, part)

        return pl.BlockSpec((None, *block_of(d, tf, flip)), index)

    read = pl.BlockSpec((tm, d), lambda part, visit, *s: (Visits(*s).tile_to_read(visit, tm), WHOLE))
    inputs = (rows, grad, *weights, groups.sizes)
    call = pl.pallas_call(
        functools.partial(_kernel, f=f, flipped=flipped, dtype=compute),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(visits),
            grid=(parts, count),
            in_specs=[read, read, *(weight(flip) for flip in flipped)],
            out_specs=[
                pl.BlockSpec((None, tm, d), lambda part, visit, *s: (part, Visits(*s).tile(visit), WHOLE)),
                *(weight(flip) for flip in flipped),
            ],
            scratch_shapes=[
                *[pltpu.VMEM((tm, tf), compute)] * 3,
                pltpu.VMEM((tm, max(d, tf)), compute),
                pltpu.VMEM((max(d, tf), tm), compute),
                *(accumulators(block_of(d, tf, flip), w.dtype) for flip, w in zip(flipped, weights, strict=True)),
            ],
        ),
        out_shape=[
            result((parts, m, d), drows_dtype, *inputs),
            *(result(w.shape, w.dtype, *inputs) for w in weights),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=tiles.vmem_limit(vmem)
        ),
        cost_estimate=pl.CostEstimate(
            flops=16 * m * d * f,
            transcendentals=m * f,
            bytes_accessed=parts * (2 * rows.nbytes + m * d * drows_dtype.itemsize)
            + 2 * sum(w.nbytes for w in weights),
        ),
        name="ffn_backward",
    )
    drows, *gradients = call(*visits, rows, grad, *weights)
    drows = drows[0] if parts == 1 else drows.sum(0).astype(rows.dtype)
    natural = (False, False, True)
    dgate, dup, ddown = (
        jnp.swapaxes(x, 1, 2) if flip != usual else x
        for x, flip, usual in zip(gradients, flipped, natural, strict=True)
    )
    return drows, dgate, dup, ddown


def plan(
    sizes: tuple[int, int, int], experts: int, dtypes: tuple[DTypeLike, DTypeLike, DTypeLike, DTypeLike, DTypeLike]
) -> tiles.Plan:
    """Tiles for M, D and F and the dtypes of `rows`, `gate`, `up`, `down` and `grad`: the width is that of F."""
    m, d, f = sizes
    compute, flipped = tiles.compute_dtype(*dtypes), orientation(d, f)
    rows, *weights, grad = dtypes
    height = tiles.row_tile(
        m,
        experts,
        row_seconds=8 * tiles.matmul_seconds(d, f, compute),
        visit_seconds=3 * tiles.pass_seconds((d, f)),
    )

    def used(tm: int, tf: int) -> int:
        matrices = (
            2 * tiles.block_bytes(block_of(d, tf, flip), dtype) + tiles.accumulator_bytes(block_of(d, tf, flip), dtype)
            for flip, dtype in zip(flipped, weights, strict=True)
        )
        drows = rows if tf == f else jnp.float32
        scratch = (*[(tm, tf)] * 3, (tm, max(d, tf)), (max(d, tf), tm))
        return (
            sum(matrices)
            + sum(tiles.block_bytes((tm, d), dtype) for dtype in (rows, grad, drows))
            + sum(tiles.block_bytes(shape, compute, 1) for shape in scratch)
        )

    return tiles.plan(height, (f,), used)


def _kernel(*refs: Any, f: int, flipped: tuple[bool, bool, bool], dtype: Any):
    visits, (x, grad, gate, up, down, drows, dgate, dup, ddown) = Visits(*refs[:4]), refs[4:13]
    (hidden, dgated, dupped, chosen, turned), totals = refs[13:18], refs[18:]
    part, visit = pl.program_id(0), pl.program_id(1)
    (tm, tf), d, pieces = hidden.shape, x.shape[1], tiles.chip().pieces
    low, high = visits.bounds(visit, tm)
    first = visits.first_of_group(visit)
    left = f - part * tf if f % tf else None

    @pl.when(visits.first_of_tile(visit))
    def _():
        drows[...] = jnp.zeros_like(drows)

    @pl.when((low >= high) & first)  # A group's later visits may be to tiles of no rows: its gradients stand by then.
    def _():
        for out in (dgate, dup, ddown):
            out[...] = jnp.zeros_like(out)

    def activate(rows: Any, columns: Any, shape: tuple[int, int]):
        """Recomputes the hidden values, and the gradients that enter them."""
        gated, upped, dhidden = (
            dot(y[rows, :], hidden_part(w, columns, flip), 1, int(flip), dtype)
            for y, w, flip in ((x, gate, flipped[0]), (x, up, flipped[1]), (grad, down, flipped[2]))
        )
        gates = jax.nn.sigmoid(gated)
        active = gated * gates
        slope = gates + active * (1.0 - gates)
        for into, value in ((hidden, active * upped), (dgated, dhidden * upped * slope), (dupped, dhidden * active)):
            if left is not None:
                value = select(jax.lax.broadcasted_iota(jnp.int32, shape, 1) < left - columns.start, value)
            into[rows, columns] = value.astype(dtype)

    def pull(rows: Any, columns: Any, shape: tuple[int, int]):
        """The gradient of the rows."""
        product = sum(
            dot(h[rows, :], width_part(w, columns, flip, left), 1, int(not flip), dtype)
            for h, w, flip in ((dgated, gate, flipped[0]), (dupped, up, flipped[1]))
        )
        mine = row_mask(shape, low - rows.start, high - rows.start)
        drows[rows, columns] = jnp.where(mine, product, drows[rows, columns].astype(jnp.float32)).astype(drows.dtype)

    def push(y: Any, flip: bool, *products: tuple[Any, Any, Any]):
        """The gradients of matrices of weights, from hidden values or their gradients and `y`, the rows' side."""
        # What lies outside the group may be NaN in either factor.
        rows_side, hidden_side = (chosen, turned) if flip else (turned, chosen)
        select_into(rows_side, y, low, high, transpose=not flip)
        for out, total, h in products:
            select_into(hidden_side, h, low, high, transpose=flip)

            def piece(rows: Any, columns: Any, shape: tuple[int, int], out: Any = out, total: Any = total):
                add(out, total, rows, columns, first, dot(turned[rows, :], chosen[:, columns], 1, 0, dtype))

            for_each_piece(out.shape[0], out.shape[1], pieces.outer, piece)

    @pl.when(low < high)
    def _():
        for_each_piece(tm, tf, pieces.gradients, activate, (low, high))
        for_each_piece(tm, d, pieces.pull, pull, (low, high))
        push(x, flipped[0], (dgate, totals[0], dgated), (dup, totals[1], dupped))
        push(grad, flipped[2], (ddown, totals[2], hidden))
