"""Grouped matmul in row blocks, in plain XLA: cost in proportion to rows, on any device, the CPU first.

Rows are laid out so that every group begins at a multiple of the block, hence each block of rows meets one
matrix, and a batched product over blocks does the work. Blocks are taken some at a time, so that the copies
of the matrices they meet stay in cache, and the loop ends with the last block in use.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

CHUNK_BYTES = 32 * 2**20
"""Of matrices copied for one batched product: about a core's share of cache."""


def row_alignment(rows: int, groups: int) -> int:
    """Rows in a block: about a quarter of the mean group, so that filling up costs at most a quarter more rows."""
    quarter = max(1, rows // groups // 4)
    return min(128, max(8, 1 << (quarter.bit_length() - 1)))


def gmm(lhs: Array, rhs: Array, group_sizes: Array, alignment: int) -> Array:
    """[M, K], [G, K, N] -> [M, N] in float32."""
    if alignment == 1:
        return _unaligned(gmm, lhs, rhs, group_sizes)
    blocks, group_of_block, chunk, chunks = _chunks(lhs, rhs.shape[1] * rhs.shape[2], group_sizes, alignment)

    def body(i, out):
        rows = jax.lax.dynamic_slice_in_dim(blocks, i * chunk, chunk)
        matrices = rhs[jax.lax.dynamic_slice_in_dim(group_of_block, i * chunk, chunk)]
        product = jnp.einsum("bmk,bkn->bmn", rows, matrices, preferred_element_type=jnp.float32)
        return jax.lax.dynamic_update_slice_in_dim(out, product, i * chunk, 0)

    if chunk == blocks.shape[0]:
        out = jnp.einsum("bmk,bkn->bmn", blocks, rhs[group_of_block], preferred_element_type=jnp.float32)
        return out.reshape(-1, rhs.shape[2])[: lhs.shape[0]]
    out = jnp.zeros((*blocks.shape[:2], rhs.shape[2]), jnp.float32)
    out = jax.lax.fori_loop(0, chunks, body, out)
    return out.reshape(-1, rhs.shape[2])[: lhs.shape[0]]


def tgmm(lhs: Array, grad: Array, group_sizes: Array, alignment: int) -> Array:
    """[M, K], [M, N] -> [G, K, N] in float32."""
    if alignment == 1:
        return _unaligned(tgmm, lhs, grad, group_sizes)
    matrix = lhs.shape[1] * grad.shape[1]
    blocks, group_of_block, chunk, chunks = _chunks(lhs, matrix, group_sizes, alignment)
    grads = _in_blocks(grad, alignment, blocks.shape[0])

    if chunk == blocks.shape[0]:
        product = jnp.einsum("bmk,bmn->bkn", blocks, grads, preferred_element_type=jnp.float32)
        return jax.ops.segment_sum(product, group_of_block, group_sizes.shape[0], indices_are_sorted=True)

    def body(i, out):
        rows, cotangents, groups = (
            jax.lax.dynamic_slice_in_dim(x, i * chunk, chunk) for x in (blocks, grads, group_of_block)
        )
        product = jnp.einsum("bmk,bmn->bkn", rows, cotangents, preferred_element_type=jnp.float32)
        return out.at[groups].add(product, indices_are_sorted=True)

    out = jnp.zeros((group_sizes.shape[0], lhs.shape[1], grad.shape[1]), jnp.float32)
    return jax.lax.fori_loop(0, chunks, body, out)


def _chunks(lhs: Array, matrix: int, group_sizes: Array, block: int):
    """Cuts rows into blocks, names each block's group, and chooses how many blocks to take at a time."""
    count = lhs.shape[0] // block
    chunk = max(1, min(count, CHUNK_BYTES // (4 * matrix)))
    padded = -(-count // chunk) * chunk
    ends = jnp.cumsum(group_sizes) // block
    groups = jnp.searchsorted(ends, jnp.arange(padded), side="right", method="sort")
    # Blocks past the last group are all of rows that come out as zero or go in as zero: any group serves.
    groups = jnp.minimum(groups, group_sizes.shape[0] - 1)
    return _in_blocks(lhs, block, padded), groups, chunk, -(-ends[-1] // chunk)


def _in_blocks(rows: Array, block: int, count: int) -> Array:
    rows = jnp.pad(rows, ((0, count * block - rows.shape[0]), (0, 0)))
    return rows.reshape(count, block, rows.shape[1])


def _unaligned(function, lhs: Array, other: Array, group_sizes: Array) -> Array:
    """Moves groups to multiples of a block, calls `function`, and moves rows back if there are any."""
    rows, groups = lhs.shape[0], group_sizes.shape[0]
    block = row_alignment(rows, groups)
    aligned_sizes = -(-group_sizes // block) * block
    # The most that aligned groups can take: each may waste block - 1 rows, but only if it has one.
    capacity = -(-(rows + min(groups, rows) * (block - 1)) // block) * block
    shift = (jnp.cumsum(aligned_sizes) - aligned_sizes) - (jnp.cumsum(group_sizes) - group_sizes)
    group = jnp.searchsorted(jnp.cumsum(group_sizes), jnp.arange(rows), side="right", method="sort")
    # Rows past the last group go nowhere: an index out of range is dropped on the way in.
    place = jnp.where(group < groups, jnp.arange(rows) + shift[jnp.minimum(group, groups - 1)], capacity)

    def align(x):
        return jnp.zeros((capacity, x.shape[1]), x.dtype).at[place].set(x, mode="drop", unique_indices=True)

    if function is tgmm:
        return tgmm(align(lhs), align(other), aligned_sizes, block)
    return gmm(align(lhs), other, aligned_sizes, block).at[place].get(mode="fill", fill_value=0)
