"""The feed-forward network of each expert, SwiGLU, as one kernel: its hidden values never leave VMEM."""

import functools
import logging
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
from slicedice.kernels.pallas_tpu.gmm import gmm
from slicedice.kernels.pallas_tpu.inside import WHOLE, dot, for_each_piece, row_mask, select
from slicedice.kernels.pallas_tpu.parts import in_parts
from slicedice.kernels.pallas_tpu.visits import Visits, visits_of
from slicedice.kernels.varying import result

log = logging.getLogger(__name__)


@in_parts
def ffn(
    rows: Float[Array, "M D"],
    gate: Float[Array, "E D F"],
    up: Float[Array, "E D F"],
    down: Float[Array, "E F D"],
    groups: Groups,
) -> tuple[Float[Array, "M D"], tuple[()]]:
    """Applies to each row the network of its expert, `down(silu(x gate) * (x up))`.

    Args:
      rows: [M, D].
      gate: [E, D, F].
      up: [E, D, F].
      down: [E, F, D].
      groups: which rows belong to which expert.

    Returns:
      [M, D] in the dtype of `rows`, zeros for rows of no expert whatever they hold; products are summed in float32.
      And what is saved for the gradients: nothing, they compute it again.

    Where D is too wide for VMEM, it is three grouped products instead, whose hidden values go through HBM.

    Raises:
      ValueError: one model has more experts than scalar memory can list.
    """
    (m, d), (experts, _, f) = rows.shape, gate.shape
    if 0 in (m, d, f, experts):
        return jnp.zeros_like(rows), ()
    compute = tiles.compute_dtype(rows.dtype, gate.dtype, up.dtype, down.dtype)
    flipped, weights = orientation(d, f), oriented(gate, up, down)
    try:
        tm, (tf,), vmem = plan((m, d, f), experts, (rows.dtype, gate.dtype, up.dtype, down.dtype))
    except tiles.TooWideError as error:
        log.warning("the expert FFN of D = %d is three grouped products: %s", d, error)
        return composed.ffn(gmm, rows, gate, up, down, groups)[0], ()
    visits, count = visits_of(groups, m, tm, every_group=False, every_tile=True)

    def weight(flip: bool) -> pl.BlockSpec:
        def index(visit: Any, part: Any, *scalars: Any):
            group = Visits(*scalars).group[visit]
            return (group, part, WHOLE) if flip else (group, WHOLE, part)

        return pl.BlockSpec((None, *block_of(d, tf, flip)), index)

    call = pl.pallas_call(
        functools.partial(_kernel, f=f, flipped=flipped, dtype=compute),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(visits),
            grid=(count, pl.cdiv(f, tf)),
            in_specs=[
                pl.BlockSpec((tm, d), lambda visit, part, *s: (Visits(*s).tile_to_read(visit, tm), WHOLE)),
                *(weight(flip) for flip in flipped),
            ],
            out_specs=pl.BlockSpec((tm, d), lambda visit, part, *s: (Visits(*s).tile(visit), WHOLE)),
            scratch_shapes=[
                pltpu.VMEM((tm, tf), compute),
                *([pltpu.VMEM((tm, d), jnp.float32)] if tf < f else []),
            ],
        ),
        out_shape=result((m, d), rows.dtype, rows, gate, up, down, groups.sizes),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary", "arbitrary"), vmem_limit_bytes=tiles.vmem_limit(vmem)
        ),
        cost_estimate=pl.CostEstimate(
            flops=6 * m * d * f,
            transcendentals=m * f,
            bytes_accessed=2 * rows.nbytes + gate.nbytes + up.nbytes + down.nbytes,
        ),
        name="ffn",
    )
    return call(*visits, rows, *weights), ()


def plan(
    sizes: tuple[int, int, int], experts: int, dtypes: tuple[DTypeLike, DTypeLike, DTypeLike, DTypeLike]
) -> tiles.Plan:
    """Tiles for M, D and F and the dtypes of `rows`, `gate`, `up` and `down`: the width is that of F."""
    m, d, f = sizes
    compute, flipped = tiles.compute_dtype(*dtypes), orientation(d, f)
    height = functools.partial(
        tiles.row_tile,
        m,
        experts,
        row_seconds=3 * tiles.matmul_seconds(d, f, compute),
        piece=tiles.chip().pieces.product[0],
    )

    def used(tm: int, tf: int) -> int:
        weights = zip(flipped, dtypes[1:], strict=True)
        return (
            2 * tiles.block_bytes((tm, d), dtypes[0])
            + sum(tiles.block_bytes(block_of(d, tf, flip), dtype) for flip, dtype in weights)
            + tiles.block_bytes((tm, tf), compute, 1)
            + (tiles.block_bytes((tm, d), jnp.float32, 1) if tf < f else 0)
        )

    whole = tiles.plan(height(), (f,), used)
    if whole.widths == (f,):
        return whole
    # Every visit reads all weights of its expert, so that tall tiles pay.
    reading = sum(tiles.block_bytes((f, d), dtype, 1) for dtype in dtypes[1:]) / tiles.chip().bandwidth
    return tiles.plan(height(visit_seconds=reading), (f,), used)


def orientation(d: int, f: int) -> tuple[bool, bool, bool]:
    """Whether each of the weights is best as [E, F, D] rather than [E, D, F]: whichever is smaller in memory."""
    first = tiles.flips(d, f)
    return first, first, not tiles.flips(f, d)


def oriented(gate: Array, up: Array, down: Array) -> tuple[Array, Array, Array]:
    """The weights as `orientation` has them."""
    swap = functools.partial(jnp.swapaxes, axis1=1, axis2=2)
    first, _, last = orientation(*gate.shape[1:])
    return swap(gate) if first else gate, swap(up) if first else up, down if last else swap(down)


def block_of(d: int, f: int, flipped: bool) -> tuple[int, int]:
    """The shape of a matrix as `orientation` has it."""
    return (f, d) if flipped else (d, f)


def hidden_part(matrix: Any, columns: Any, flip: bool) -> Any:
    """Of a block of weights, what belongs to some of its hidden values, as a matrix."""
    return matrix[columns, :] if flip else matrix[:, columns]


def width_part(matrix: Any, columns: Any, flip: bool, left: Any = None) -> Any:
    """Of a block of weights, some columns of the model's width, with zeros for hidden values past `left`, if given.

    There the last block of a width that is no multiple of the block's goes on past the array, and may hold NaN.
    """
    part = matrix[:, columns] if flip else matrix[columns, :]
    if left is None:
        return part
    return select(jax.lax.broadcasted_iota(jnp.int32, part.shape, 0 if flip else 1) < left, part)


def _kernel(*refs: Any, f: int, flipped: tuple[bool, bool, bool], dtype: Any):
    visits, (x, gate, up, down, out, hidden, *scratch) = Visits(*refs[:4]), refs[4:]
    visit, part = pl.program_id(0), pl.program_id(1)
    (tm, tf), d, pieces = hidden.shape, x.shape[1], tiles.chip().pieces
    low, high = visits.bounds(visit, tm)
    left = f - part * tf if f % tf else None

    @pl.when(visits.first_of_tile(visit) & (part == 0))
    def _():
        out[...] = jnp.zeros_like(out)

    def activate(rows: Any, columns: Any, shape: tuple[int, int]):
        gated, upped = (
            dot(x[rows, :], hidden_part(w, columns, flip), 1, int(flip), dtype)
            for w, flip in ((gate, flipped[0]), (up, flipped[1]))
        )
        active = gated * jax.nn.sigmoid(gated) * upped
        if left is not None:
            active = select(jax.lax.broadcasted_iota(jnp.int32, shape, 1) < left - columns.start, active)
        hidden[rows, columns] = active.astype(dtype)

    def project(rows: Any, columns: Any, shape: tuple[int, int]):
        product = dot(hidden[rows, :], width_part(down, columns, flipped[2], left), 1, int(not flipped[2]), dtype)
        if scratch:
            (total,) = scratch
            product += jnp.where(part == 0, 0.0, total[rows, columns])
            total[rows, columns] = product
        mine = row_mask(shape, low - rows.start, high - rows.start)
        out[rows, columns] = jnp.where(mine, product, out[rows, columns].astype(jnp.float32)).astype(out.dtype)

    @pl.when(low < high)
    def _():
        for_each_piece(tm, tf, tiles.lower_if_deep(pieces.activate, d), activate, (low, high))
        for_each_piece(tm, d, pieces.product, project, (low, high))
