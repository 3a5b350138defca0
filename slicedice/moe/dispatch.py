"""Moving tokens to rows sorted by expert and back, with gradients that gather too.

The gradient of a gather is a scatter, unless one knows the way back: a row is read by one assignment, so
both directions, forward and backward, are gathers here.
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
    """

    token_of_row: Int[Array, " M"]
    assignment_of_row: Int[Array, " M"]
    row_of_assignment: Int[Array, "T K"]
    group_sizes: Int[Array, " E"]


def plan(assignment: Assignment, n: int, alignment: int) -> Plan:
    """Lays out the kept assignments in rows sorted by expert, each expert beginning at a multiple of `alignment`."""
    tokens, k = assignment.experts.shape
    total = tokens * k
    rows = -(-(total + min(n, total) * (alignment - 1)) // alignment) * alignment
    order, counts = sort_by_expert(assignment.experts, assignment.kept, n)
    sizes = -(-counts // alignment) * alignment
    shift = (jnp.cumsum(sizes) - sizes) - (jnp.cumsum(counts) - counts)
    expert = assignment.experts.reshape(-1)[order]
    kept = jnp.arange(total) < counts.sum()
    row = jnp.where(kept, jnp.arange(total, dtype=jnp.int32) + shift[expert], rows)
    assignment_of_row = jnp.full(rows, total, jnp.int32).at[row].set(order, mode="drop", unique_indices=True)
    row_of_assignment = jnp.zeros(total, jnp.int32).at[order].set(row, unique_indices=True)
    token_of_row = jnp.where(assignment_of_row < total, assignment_of_row // k, 0)
    return Plan(token_of_row, assignment_of_row, row_of_assignment.reshape(tokens, k), sizes)


@jax.custom_vjp
def dispatch(x: Float[Array, "T D"], plan: Plan) -> Float[Array, "M D"]:
    """Copies tokens to their rows. Rows of fill hold token 0; `combine` gives them no weight."""
    return x[plan.token_of_row]


def _dispatch_forward(x, plan):
    return dispatch(x, plan), plan


def _dispatch_backward(plan, grad):
    # Float32, since k gradients add up in it.
    per_expert, kept = _of_assignments(grad, plan)
    return jnp.einsum("tkd,tk->td", per_expert, kept, preferred_element_type=jnp.float32).astype(grad.dtype), None


dispatch.defvjp(_dispatch_forward, _dispatch_backward)


@jax.custom_vjp
def combine(rows: Float[Array, "M D"], weights: Float[Array, "T K"], plan: Plan) -> Float[Array, "T D"]:
    """Adds up each token's expert outputs by weight, in float32; what was dropped adds zero."""
    return _combine_forward(rows, weights, plan)[0]


def _combine_forward(rows, weights, plan):
    outputs, kept = _of_assignments(rows, plan)
    total = jnp.einsum("tkd,tk->td", outputs, weights * kept, preferred_element_type=jnp.float32)
    return total.astype(rows.dtype), (rows, weights, plan)


def _combine_backward(residuals, grad):
    rows, weights, plan = residuals
    outputs, kept = _of_assignments(rows, plan)
    dweights = jnp.einsum("tkd,td->tk", outputs, grad, preferred_element_type=jnp.float32) * kept
    weight_of_row = weights.reshape(-1).at[plan.assignment_of_row].get(mode="fill", fill_value=0)
    drows = grad[plan.token_of_row] * weight_of_row[:, None].astype(grad.dtype)
    return drows.astype(rows.dtype), dweights.astype(weights.dtype), None


combine.defvjp(_combine_forward, _combine_backward)


def _of_assignments(rows: Float[Array, "M D"], plan: Plan) -> tuple[Float[Array, "T K D"], Float[Array, "T K"]]:
    """The row of each assignment, and 1 where it has one, 0 where it was dropped and the row is another's.

    Clipping an index costs nothing; filling in zeros would pass over all of [T, K, D] once more.
    """
    kept = plan.row_of_assignment < rows.shape[0]
    return rows.at[plan.row_of_assignment].get(mode="clip"), kept.astype(jnp.float32)


def all_offered(mask: Bool[Array, " T"], k: int) -> Bool[Array, "T K"]:
    """Every assignment of every token that is not padding."""
    return jnp.broadcast_to(mask[:, None], (mask.shape[0], k))
