"""Grouped matmul in row blocks, in plain XLA: cost in proportion to rows, on any device, the CPU first.

Rows are laid out so that every group begins at a multiple of the block, hence each block of rows meets one
matrix, and a batched product over blocks does the work. Blocks are taken some at a time, so that the copies
of the matrices they meet stay in cache, and the loop ends with the last block in use.
"""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from slicedice.kernels import composed
from slicedice.kernels.groups import Groups

NEEDS_ZEROS = True

CHUNK_BYTES = 32 * 2**20
"""Of matrices copied for one batched product: about a core's share of cache."""


def row_alignment(rows: int, groups: int) -> int:
    """Rows in a block: about a quarter of the mean group, so that filling up costs at most a quarter more rows."""
    quarter = max(1, rows // max(groups, 1) // 4)
    return min(128, max(8, 1 << (quarter.bit_length() - 1)))


def gmm(lhs: Array, rhs: Array, groups: Groups, *, transpose_rhs: bool, dtype: np.dtype) -> Array:
    """[M, K], [G, K, N] -> [M, N]; with `transpose_rhs`, of [G, N, K]."""
    if 0 in (*lhs.shape, *rhs.shape):
        return jnp.zeros((lhs.shape[0], rhs.shape[1 if transpose_rhs else 2]), dtype)
    function = functools.partial(_gmm, transpose_rhs=transpose_rhs, chunk_bytes=CHUNK_BYTES)
    whole = groups.without_holes(lhs.shape[0])
    if _in_place(whole, lhs.shape[0]):
        out = function(lhs, rhs, whole.sizes, whole.alignment)
    else:
        out = _unaligned(function, lhs, rhs, whole.sizes, moves_back=True)
    # Rows of no group met some group's matrix, where a NaN would make NaN of their zeros.
    return groups.select(out).astype(dtype)


def tgmm(lhs: Array, rhs: Array, groups: Groups, *, dtype: np.dtype) -> Array:
    """[M, K], [M, N] -> [G, K, N]."""
    if 0 in (*lhs.shape, *rhs.shape, *groups.sizes.shape):
        return jnp.zeros((groups.sizes.shape[0], lhs.shape[1], rhs.shape[1]), dtype)
    groups = groups.without_holes(lhs.shape[0])
    function = functools.partial(_tgmm, chunk_bytes=CHUNK_BYTES)
    if _in_place(groups, lhs.shape[0]):
        return function(lhs, rhs, groups.sizes, groups.alignment).astype(dtype)
    return _unaligned(function, lhs, rhs, groups.sizes, moves_back=False).astype(dtype)


ffn = functools.partial(composed.ffn, gmm)
ffn_backward = functools.partial(composed.ffn_backward, sys.modules[__name__])


def _in_place(groups: Groups, rows: int) -> bool:
    """Whether blocks as high as groups are aligned will do: lower ones than we choose copy a matrix each too often."""
    return groups.alignment >= row_alignment(rows, groups.sizes.shape[0])


# Compiled once for a shape even where a caller is not, who would compile the loop anew at every call.
@functools.partial(jax.jit, static_argnames=("alignment", "transpose_rhs", "chunk_bytes"))
def _gmm(lhs: Array, rhs: Array, group_sizes: Array, alignment: int, *, transpose_rhs: bool, chunk_bytes: int) -> Array:
    matrix = rhs.shape[1] * rhs.shape[2]
    blocks, group_of_block, chunk, chunks = _chunks(lhs, matrix, group_sizes, alignment, chunk_bytes)

    def product(rows, groups):
        form = "bmk,bnk->bmn" if transpose_rhs else "bmk,bkn->bmn"
        return _einsum(form, rows, rhs[groups])

    def body(i, out):
        rows, groups = (jax.lax.dynamic_slice_in_dim(x, i * chunk, chunk) for x in (blocks, group_of_block))
        return jax.lax.dynamic_update_slice_in_dim(out, product(rows, groups), i * chunk, 0)

    if chunk == blocks.shape[0]:
        out = product(blocks, group_of_block)
    else:
        out = jnp.zeros((*blocks.shape[:2], rhs.shape[1 if transpose_rhs else 2]), jnp.float32)
        out = jax.lax.fori_loop(0, chunks, body, out)
    return out.reshape(-1, out.shape[2])[: lhs.shape[0]]


@functools.partial(jax.jit, static_argnames=("alignment", "chunk_bytes"))
def _tgmm(lhs: Array, grad: Array, group_sizes: Array, alignment: int, *, chunk_bytes: int) -> Array:
    matrix = lhs.shape[1] * grad.shape[1]
    blocks, group_of_block, chunk, chunks = _chunks(lhs, matrix, group_sizes, alignment, chunk_bytes)
    grads = _in_blocks(grad, alignment, blocks.shape[0])

    def add(out, rows, cotangents, groups):
        return out.at[groups].add(_einsum("bmk,bmn->bkn", rows, cotangents), indices_are_sorted=True)

    def body(i, out):
        return add(out, *(jax.lax.dynamic_slice_in_dim(x, i * chunk, chunk) for x in (blocks, grads, group_of_block)))

    out = jnp.zeros((group_sizes.shape[0], lhs.shape[1], grad.shape[1]), jnp.float32)
    if chunk == blocks.shape[0]:
        return add(out, blocks, grads, group_of_block)
    return jax.lax.fori_loop(0, chunks, body, out)


def _einsum(form: str, one: Array, other: Array) -> Array:
    # By default GPUs and TPUs multiply float32 as if it had ten bits or seven.
    return jnp.einsum(form, one, other, preferred_element_type=jnp.float32, precision=jax.lax.Precision.HIGHEST)


def _chunks(lhs: Array, matrix: int, group_sizes: Array, block: int, chunk_bytes: int):
    """Cuts rows into blocks, names each block's group, and chooses how many blocks to take at a time."""
    count = lhs.shape[0] // block
    chunk = max(1, min(count, chunk_bytes // (4 * matrix)))
    padded = -(-count // chunk) * chunk
    ends = jnp.cumsum(group_sizes) // block
    groups = jnp.searchsorted(ends, jnp.arange(padded), side="right", method="sort")
    # Blocks past the last group are all of rows that come out as zero or go in as zero: any group serves.
    groups = jnp.minimum(groups, group_sizes.shape[0] - 1)
    return _in_blocks(lhs, block, padded), groups, chunk, -(-ends[-1] // chunk)


def _in_blocks(rows: Array, block: int, count: int) -> Array:
    rows = jnp.pad(rows, ((0, count * block - rows.shape[0]), (0, 0)))
    return rows.reshape(count, block, rows.shape[1])


def _unaligned(function, lhs: Array, other: Array, group_sizes: Array, *, moves_back: bool) -> Array:
    """Moves groups to multiples of a block and calls `function`.

    Args:
      function: `_gmm` or `_tgmm`.
      lhs: rows.
      other: rows too for `_tgmm`, matrices for `_gmm`.
      group_sizes: of the rows as they are.
      moves_back: whether the result is rows, as it is for `_gmm`.
    """
    rows, groups = lhs.shape[0], group_sizes.shape[0]
    block = row_alignment(rows, groups)
    aligned_sizes = -(-group_sizes // block) * block
    # The most that aligned groups can take: each may waste block - 1 rows, but only if it has one.
    capacity = max(1, -(-(rows + min(groups, rows) * (block - 1)) // block)) * block
    shift = (jnp.cumsum(aligned_sizes) - aligned_sizes) - (jnp.cumsum(group_sizes) - group_sizes)
    group = jnp.searchsorted(jnp.cumsum(group_sizes), jnp.arange(rows), side="right", method="sort")
    # Rows past the last group go nowhere: an index out of range is dropped on the way in.
    place = jnp.where(group < groups, jnp.arange(rows) + shift[jnp.minimum(group, groups - 1)], capacity)

    def align(x):
        return jnp.zeros((capacity, x.shape[1]), x.dtype).at[place].set(x, mode="drop", unique_indices=True)

    if not moves_back:
        return function(align(lhs), align(other), aligned_sizes, block)
    return function(align(lhs), other, aligned_sizes, block).at[place].get(mode="fill", fill_value=0)
