"""Sums over logits, rows times a matrix, that never leave a Hopper GPU's chip: two kernels of a softmax.

Both are attention in which keys are the values too. A block keeps 64 rows of one side for each consumer. The other side
goes by in steps: their products with the block's rows are logits, in registers; these become shares of the softmax,
and as bfloat16 meet the same step again. So a step is fetched once for two products.

`over_vocabulary` keeps tokens, and does not know a token's sum before it has seen all of the vocabulary: shares are of
the highest logit so far. `over_tokens` keeps entries of the vocabulary, and is told the sums. A softmax with both
gradients takes four products and two exponentials a logit, where a pass for the sums and one for each gradient would
take five and three. One pass for both gradients would have to add those of entries up in memory: 2 D times as many
numbers as there are logits, over the rows of a block.

Widths are multiples of 16, not powers of two, which is why 48 is not padded. Pallas' other GPU compiler, Triton, wants
the latter, and from JAX 0.11 on warns that it is about to be removed.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from slicedice.kernels.pallas_gpu import inside, tiles
from slicedice.kernels.varying import vary_as

LOG2E = math.log2(math.e)
WIDEST = 128
"""Of rows that the kernels take: of wider ones the sums do not fit registers."""
STAGES = 4
"""Slots of the ring that steps go through."""
_BLOCK, _TILE = inside.BLOCK_ROWS, plgpu.Layout.WGMMA
_ROW, _COLUMN = _TILE.reduce(1), _TILE.reduce(0)
_INDEX: Any = ((),) if jax.__version_info__ < (0, 11) else ()
"""JAX 0.10 wants an index beside what is loaded, and later versions none."""


class Tiling(NamedTuple):
    """Sizes of both kernels.

    Attributes:
      consumers: warpgroups that multiply; each keeps 64 rows.
      entries: of the vocabulary that go by at once.
      tokens: likewise.
      registers: of a consumer's thread, as many as the producer's leave.
    """

    consumers: int
    entries: int
    tokens: int
    registers: int

    @classmethod
    def of(cls, width: int) -> "Tiling":
        """For rows of this width, such that nothing spills.

        A thread holds half a step of logits, a quarter of shares, the width in sums, and three quarters of a step of
        facts about tokens. Three consumers rather than two, so that some multiply while others take exponentials: at a
        width of 48 two are a fifth slower on an H200, and smaller steps a seventh (docs/performance.md).
        """
        if width > 96:
            return cls(2, 128, 128, 232)
        return cls(3, 128 if width <= 64 else 64, 64, 152)

    @property
    def rows(self) -> int:
        """That a block keeps."""
        return _BLOCK * self.consumers


class Softmax(NamedTuple):
    """Of the logits of each token, in powers of two.

    Attributes:
      mix: the entries of the vocabulary, weighed by their shares.
      log_z: log2 of the sum over entries of 2^(logit * log2(e)).
    """

    mix: Float[Array, "L T D"]
    log_z: Float[Array, "L T"]


def over_vocabulary(rows: Float[Array, "L T D"], head: Float[Array, "L V D"], *, entries: int, mixed: bool) -> Softmax:
    """Takes the softmax of each token's logits, rows @ head.T, and the mix of the head's rows that it makes.

    Shares are rounded to bfloat16 relative to the highest so far, which is 1. So that of an entry that has most of the
    softmax is not rounded, and what is left of it to 1, which is its gradient where it is the target, is exact.

    `jax.vmap` makes one call of more models.

    Args:
      rows: of tokens, of several models; bfloat16, as `padded` makes them.
      head: likewise.
      entries: of the vocabulary, without what it is padded by.
      mixed: whether `mix` is wanted; otherwise it is zeros.
    """
    return _folded(partial(_over_vocabulary, entries, mixed))(rows, head)


def _over_vocabulary(entries: int, mixed: bool, rows: Array, head: Array) -> Softmax:
    members, tokens, width = rows.shape
    tiling = Tiling.of(width)
    step = tiling.entries
    steps = pl.cdiv(entries, step)
    parts = _parts(members * (tokens // tiling.rows), steps)

    def consume(at: "_At", own: Any, slot_of: Callable[[Any], Any], outputs: Sequence[Any]):
        def advance(i: Any, carry: Any):
            mix, highest, total = carry
            begin = (at.low + i) * step
            with slot_of(i) as (head_step,):
                logits = _multiplied(own, head_step.transpose((1, 0)))
                if entries % step:
                    entry = begin + plgpu.broadcasted_iota(jnp.int32, logits.shape, 1, layout=_TILE)
                    logits = jnp.where(entry < entries, logits, -jnp.inf)
                higher = jnp.maximum(highest, logits.max(axis=1) * LOG2E)
                fades = jnp.exp2(highest - higher)
                shares = jnp.exp2(logits * LOG2E - _across(higher, logits))
                total = total * fades + shares.sum(axis=1)
                if mixed:
                    # An accumulator cannot be scaled, so each step has its own.
                    mix = mix * _across(fades, mix) + _multiplied(shares.astype(jnp.bfloat16), head_step)
            return mix, higher, total

        start = _full(0, _TILE, _BLOCK, width), *(_full(x, _ROW, _BLOCK) for x in (-jnp.inf, 0))
        mix, *sums = jax.lax.fori_loop(0, at.steps, advance, start)
        outputs[0][at.member, at.part, at.rows] = mix
        for out, values in zip(outputs[1:], sums, strict=True):
            out[at.member, at.part, at.rows] = values

    column = jax.ShapeDtypeStruct((members, parts, tokens), jnp.float32)
    mix = jax.ShapeDtypeStruct((members, parts, tokens, width), jnp.float32)
    out = [mix, column, column]
    mix, highest, total = _call(consume, tiling, step, parts, steps, rows, [head], out, "over_vocabulary")
    top = highest.max(1)
    scale = jnp.exp2(highest - top[:, None])
    total = (scale * total).sum(1)
    mix = (scale[..., None] * mix).sum(1) / total[..., None]
    return Softmax(mix, top + jnp.log2(total))


def over_tokens(
    rows: Float[Array, "L T D"], head: Float[Array, "L V D"], facts: Float[Array, "L 3 T"]
) -> Float[Array, "L V D"]:
    """Sums up d(logits) times rows over tokens, for each entry of the vocabulary.

    d(logits) is weight * 2^(logit * log2(e) - log_z), less one at the target. `jax.vmap` makes one call of more models.

    Args:
      rows: of tokens, of several models; bfloat16, as `padded` makes them.
      head: likewise.
      facts: log_z, in powers of two, infinite for a token that does not count; weight; and target, -1 for none.
    """
    return _folded(_over_tokens)(rows, head, facts)


def _over_tokens(rows: Array, head: Array, facts: Array) -> Array:
    (members, tokens, width), (_, vocabulary, _) = rows.shape, head.shape
    tiling = Tiling.of(width)
    step, steps = tiling.tokens, tokens // tiling.tokens
    parts = _parts(members * (vocabulary // tiling.rows), steps)

    def consume(at: "_At", own: Any, slot_of: Callable[[Any], Any], outputs: Sequence[Any]):
        # As float32, which holds them exactly: a conversion takes as long as an exponential.
        entry = plgpu.broadcasted_iota(jnp.int32, (_BLOCK, step), 0, layout=_TILE) + at.first
        entry = entry.astype(jnp.float32)

        def sum_up(total: Any) -> Array:
            @pl.loop(0, at.steps)
            def _(i: Any):
                with slot_of(i) as (rows_step, facts_step):
                    log_z, weight, target = (_load(facts_step.at[j], _COLUMN) for j in range(3))
                    logits = _multiplied(own, rows_step.transpose((1, 0)))
                    slopes = jnp.exp2(logits * LOG2E - _along(log_z, logits)) * _along(weight, logits)
                    slopes = jnp.where(entry == _along(target, logits), slopes - 1, slopes)
                    plgpu.wgmma(total, slopes.astype(jnp.bfloat16), rows_step)
                    plgpu.wgmma_wait(0)

            return total[...]

        sums = pl.run_scoped(sum_up, plgpu.WGMMAAccumulatorRef((_BLOCK, width), jnp.float32))
        outputs[0][at.member, at.part, at.rows] = sums

    out = jax.ShapeDtypeStruct((members, parts, vocabulary, width), jnp.float32)
    (sums,) = _call(consume, tiling, step, parts, steps, head, [rows, facts], [out], "over_tokens")
    return sums.sum(1)


def padded(x: Float[Array, "N D"]) -> Float[Array, "N D"]:
    """With zeros up to a size that the kernels take, on either side of a product."""
    length, width = x.shape
    wide = tiles.round_up(width, 16)
    tiling = Tiling.of(wide)
    long = tiles.round_up(length, math.lcm(tiling.rows, tiling.entries, tiling.tokens))
    return jnp.pad(x, ((0, long - length), (0, wide - width)))


def _folded(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of arrays whose first axis is models, such that `jax.vmap` makes one call of more models."""
    single = jax.custom_batching.custom_vmap(function)

    @single.def_vmap
    def _fold(size: int, batched: Sequence[bool], *arrays: Array):
        each = [x if own else jnp.broadcast_to(x, (size, *x.shape)) for x, own in zip(arrays, batched, strict=True)]
        out = single(*(x.reshape(-1, *x.shape[2:]) for x in each))
        out = jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), out)
        return out, jax.tree.map(lambda _: True, out)

    return single


class _At(NamedTuple):
    """Where a consumer is: its model, part, first row and all its rows; its first step, and how many there are."""

    member: Any
    part: Any
    first: Any
    rows: Any
    low: Any
    steps: Any


def _call(
    consume: Callable[..., None],
    tiling: Tiling,
    step: int,
    parts: int,
    steps: int,
    kept: Array,
    passing: Sequence[Array],
    out: Sequence[jax.ShapeDtypeStruct],
    name: str,
) -> Sequence[Array]:
    """Runs `consume(at, own, slot_of, outputs)` in every consumer of a block for each tile and part.

    Args:
      consume: `own` are its rows of `kept`; `slot_of(i)` is a context in which step i of each of `passing` is there.
      tiling: sizes.
      step: rows of a step.
      parts: in which the steps are taken, by a block each.
      steps: of `passing`, in all parts.
      kept: [L, N, D], bfloat16.
      passing: [L, M, D], bfloat16, and perhaps [L, K, M].
      out: of the results.
      name: of the kernel.
    """
    (members, length, width), consumers = kept.shape, tiling.consumers

    def body(*refs: Any):
        kept_ref, refs = refs[0], refs[1:]
        passing_refs, refs = refs[: len(passing)], refs[len(passing) :]
        outputs, (own, rings, kept_full, full, empty) = refs[: len(out)], refs[len(out) :]
        member, tile, part, warpgroup = (jax.lax.axis_index(n) for n in ("member", "tile", "part", "warpgroup"))
        low, high = (jax.lax.div(i * steps, jnp.int32(parts)) for i in (part, part + 1))
        base = tile * tiling.rows

        @pl.when(warpgroup == consumers)
        def _produce():
            plgpu.set_max_registers(40, action="decrease")
            plgpu.copy_gmem_to_smem(kept_ref.at[member, pl.ds(base, tiling.rows)], own, kept_full.at[0])

            @pl.loop(0, high - low)
            def _fetch(i: Any):
                along = pl.ds((low + i) * step, step)
                sources = [passing_refs[0].at[member, along], *(ref.at[member, :, along] for ref in passing_refs[1:])]
                inside.fetch(i, STAGES, full, empty, list(zip(sources, rings, strict=True)))

            inside.drain(high - low, STAGES, empty)

        @pl.when(warpgroup < consumers)
        def _consume():
            plgpu.set_max_registers(tiling.registers, action="increase")
            plgpu.barrier_wait(kept_full.at[0])

            @contextlib.contextmanager
            def slot_of(i: Any):
                slot = jax.lax.rem(i, jnp.int32(STAGES))
                plgpu.barrier_wait(full.at[slot])
                yield [ring.at[slot] for ring in rings]
                plgpu.barrier_arrive(empty.at[slot])

            first = base + warpgroup * _BLOCK
            at = _At(member, part, first, pl.ds(first, _BLOCK), low, high - low)
            consume(at, own.at[pl.ds(warpgroup * _BLOCK, _BLOCK)], slot_of, outputs)

    body.__name__ = name
    swizzle = inside.swizzle((width, width))
    call = plgpu.kernel(
        body,
        out_type=tuple(out),
        scratch_types=[
            inside.operand((tiling.rows, width), swizzle),
            [
                inside.operand((STAGES, step, width), swizzle),
                *(plgpu.SMEM((STAGES, x.shape[1], step), x.dtype) for x in passing[1:]),
            ],
            plgpu.Barrier(num_barriers=1),
            plgpu.Barrier(num_arrivals=len(passing), num_barriers=STAGES),
            plgpu.Barrier(num_arrivals=consumers, num_barriers=STAGES),
        ],
        grid=(members, length // tiling.rows, parts),
        grid_names=("member", "tile", "part"),
        num_threads=consumers + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )
    # Indices are int32 throughout; under `jax_enable_x64` Python's numbers beside them would be int64.
    with jax.enable_x64(False):
        return [vary_as(x, kept, *passing) for x in call(kept, *passing)]


def _parts(tiles_: int, steps: int) -> int:
    """In how many parts steps are taken, so that processors have equally much to do: at most 8."""
    processors = tiles.processors()
    return min(range(1, min(8, steps) + 1), key=lambda parts: -(-tiles_ * parts // processors) / parts)


def _multiplied(left: Any, right: Any) -> Array:
    """A product of bfloat16, `left` being in registers or not, in float32."""

    def multiply(total: Any) -> Array:
        plgpu.wgmma(total, left, right)
        return total[...]

    return pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef((left.shape[0], right.shape[1]), jnp.float32))


def _load(values: Any, layout: Any) -> Array:
    return plgpu.load(values, *_INDEX, layout=layout, optimized=False)


def _full(value: float, layout: Any, *shape: int) -> Array:
    return plgpu.layout_cast(jnp.full(shape, value, jnp.float32), layout)


def _across(values: Array, like: Array) -> Array:
    """A value for each row, in all its columns."""
    return jax.lax.broadcast_in_dim(values, like.shape, [0])


def _along(values: Array, like: Array) -> Array:
    """A value for each column, in all its rows."""
    return jax.lax.broadcast_in_dim(values, like.shape, [1])
