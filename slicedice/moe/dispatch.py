"""Moving tokens to rows sorted by expert and back, with gradients of their own.

The gradient of a gather is a scatter, unless one knows the way back: a row is read by one assignment, so where rows
have all assignments, both directions, forward and backward, are gathers here. Where they have a few of them, those of
one device's experts, going through all assignments would cost more than going through the rows, which is then done.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from slicedice.moe.routing import Assignment, sort_by_expert


class Plan(NamedTuple):
    """Where rows come from and go to. Row M (one past the last) stands for nowhere.

    token_of_row: token that a row holds; rows without one read token 0.
    assignment_of_row: which of the T*K assignments a row serves, T*K for none.
    row_of_assignment: row that serves an assignment, M for none.
    group_sizes: rows of each expert, fill included.
    lost: kept assignments for which there was no row left.
    """

    token_of_row: Int[Array, " M"]
    assignment_of_row: Int[Array, " M"]
    row_of_assignment: Int[Array, "T K"]
    group_sizes: Int[Array, " E"]
    lost: Int[Array, ""]


def plan(assignment: Assignment, n: int, alignment: int, room: int | None = None) -> Plan:
    """Lays out the kept assignments in rows sorted by expert, each expert beginning at a multiple of `alignment`.

    Args:
      assignment: experts from 0 to n - 1.
      n: experts.
      alignment: of the first row of each.
      room: assignments that there are rows for, at the least; None for all.
    """
    tokens, k = assignment.experts.shape
    total = tokens * k
    room = total if room is None else min(room, total)
    rows = -(-(room + min(n, room) * (alignment - 1)) // alignment) * alignment
    order, place, counts = sort_by_expert(assignment.experts, assignment.kept, n)
    if rows == total and alignment == 1:  # rows are places: no sums over experts, no scatter
        used = counts.sum()
        assignment_of_row = jnp.where(jnp.arange(total) < used, order, total)
        row_of_assignment, sizes, lost = jnp.where(place < used, place, rows), counts, jnp.int32(0)
    else:
        sizes = -(-counts // alignment) * alignment
        ends = jnp.cumsum(sizes)
        shift = (ends - sizes) - (jnp.cumsum(counts) - counts)
        kept = assignment.kept.reshape(-1)
        row = jnp.minimum(place + shift[assignment.experts.reshape(-1)], rows)
        row_of_assignment = jnp.where(kept, row, rows)
        index = jnp.arange(total, dtype=jnp.int32)
        assignment_of_row = jnp.full(rows, total, jnp.int32).at[row_of_assignment].set(index, mode="drop")
        sizes = jnp.diff(jnp.minimum(ends, rows), prepend=0)
        lost = jnp.sum(kept & (row == rows))
    token_of_row = jnp.where(assignment_of_row < total, assignment_of_row // k, 0)
    return Plan(token_of_row, assignment_of_row, row_of_assignment.reshape(tokens, k), sizes, lost)


@jax.custom_vjp
def dispatch(x: Float[Array, "T D"], plan: Plan) -> Float[Array, "M D"]:
    """Copies tokens to their rows. Rows of fill hold token 0; `combine` gives them no weight."""
    return x[plan.token_of_row]


def _dispatch_forward(x, plan):
    return dispatch(x, plan), plan


def _dispatch_backward(plan, grad):
    ones = jnp.ones(plan.row_of_assignment.shape, jnp.float32)
    return _sum_by_token(grad, ones, plan).astype(grad.dtype), None


dispatch.defvjp(_dispatch_forward, _dispatch_backward)


@jax.custom_vjp
def combine(rows: Float[Array, "M D"], weights: Float[Array, "T K"], plan: Plan) -> Float[Array, "T D"]:
    """Adds up each token's expert outputs by weight, in float32; what was dropped adds zero."""
    return _combine_forward(rows, weights, plan)[0]


def _combine_forward(rows, weights, plan):
    return _sum_by_token(rows, weights, plan).astype(rows.dtype), (rows, weights, plan)


def _combine_backward(residuals, grad):
    rows, weights, plan = residuals
    grad_of_row = grad[plan.token_of_row]
    drows = grad_of_row * of_rows(weights, plan)[:, None].astype(grad.dtype)
    by_row = jnp.einsum("md,md->m", rows, grad_of_row, preferred_element_type=jnp.float32)
    dweights = by_row.at[plan.row_of_assignment].get(mode="fill", fill_value=0)
    return drows.astype(rows.dtype), dweights.astype(weights.dtype), None


combine.defvjp(_combine_forward, _combine_backward)


def _sum_by_token(rows: Float[Array, "M D"], weights: Float[Array, "T K"], plan: Plan) -> Float[Array, "T D"]:
    """The sum of each token's rows by weight, in float32."""
    tokens, k = weights.shape
    if tokens * k <= rows.shape[0]:
        # Clipping an index costs nothing; filling in zeros would pass over all of [T, K, D] once more.
        of_assignments = rows.at[plan.row_of_assignment].get(mode="clip")
        kept = plan.row_of_assignment < rows.shape[0]
        return jnp.einsum("tkd,tk->td", of_assignments, weights * kept, preferred_element_type=jnp.float32)
    weighted = rows * of_rows(weights, plan)[:, None]
    return jnp.zeros((tokens, rows.shape[1]), jnp.float32).at[plan.token_of_row].add(weighted)


def of_rows(weights: Float[Array, "T K"], plan: Plan) -> Float[Array, " M"]:
    """The weight of the assignment that each row serves; 0 for none."""
    return weights.reshape(-1).at[plan.assignment_of_row].get(mode="fill", fill_value=0)


def all_offered(mask: Bool[Array, " T"], k: int) -> Bool[Array, "T K"]:
    """Every assignment of every token that is not padding."""
    return jnp.broadcast_to(mask[:, None], (mask.shape[0], k))
