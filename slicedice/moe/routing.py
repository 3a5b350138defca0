"""Which experts a token goes to, what that costs in auxiliary losses, and who is dropped.

Everything here is a function of router logits. Tokens that are padding are routed nowhere and counted
nowhere.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from slicedice.kernels import is_native, native

MAXIMA = 8
"""Up to this k, taking the maximum k times beats a partial sort, where XLA compiles it: 0.9 against 2.3 ms for 4 of 128
on a CPU, whose own kernel takes 0.2."""


class Assignment(NamedTuple):
    """For every token its `k` experts, the weights of their outputs, and whether they take it."""

    experts: Int[Array, "T K"]
    weights: Float[Array, "T K"]
    kept: Bool[Array, "T K"]


def probabilities(logits: Float[Array, "T E"]) -> tuple[Float[Array, "T E"], Float[Array, " T"]]:
    """The softmax of router logits, and their logsumexp, of which `router_z_loss` is."""
    if is_native():
        return _native_probabilities(logits)
    return jax.nn.softmax(logits), jax.nn.logsumexp(logits, axis=1)


@jax.custom_vjp
def _native_probabilities(logits: Array) -> tuple[Array, Array]:
    shares, log_sums = native.softmax(logits)
    return shares, log_sums


def _native_forward(logits: Array):
    shares, log_sums = native.softmax(logits)
    return (shares, log_sums), shares


def _native_backward(shares: Array, grads: tuple[Array, Array]):
    return (native.softmax_backward(shares, *grads),)


_native_probabilities.defvjp(_native_forward, _native_backward)


def select(
    probabilities: Float[Array, "T E"], bias: Float[Array, " E"], k: int
) -> tuple[Int[Array, "T K"], Float[Array, "T K"]]:
    """Takes the `k` experts of highest probability plus bias; ties go to the lower index.

    The bias serves the selection only (loss-free balancing, arXiv 2408.15664): weights are the
    probabilities themselves, not renormalised over the chosen.

    Returns:
      Indices and weights of the chosen experts.
    """
    if is_native():
        return _native_select(probabilities, bias, k)
    experts = top_k_indices(jax.lax.stop_gradient(probabilities) + bias, k)
    if k > MAXIMA:
        return experts, jnp.take_along_axis(probabilities, experts, axis=1)
    # As sums over a comparison, the gradient needs no scatter.
    index = jnp.arange(probabilities.shape[1], dtype=jnp.int32)
    weights = [jnp.where(index == experts[:, i, None], probabilities, 0.0).sum(1) for i in range(k)]
    return experts, jnp.stack(weights, axis=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _native_select(probabilities: Array, bias: Array, k: int) -> tuple[Array, Array]:
    experts, weights = native.select(probabilities, bias, k)
    return experts, weights


def _native_select_forward(probabilities: Array, bias: Array, k: int):
    experts, weights = native.select(probabilities, bias, k)
    return (experts, weights), (experts, bias)


def _native_select_backward(k: int, residuals: tuple[Array, Array], grads: tuple[Array, Array]):
    del k
    experts, bias = residuals
    return native.select_backward(experts, grads[1], bias.shape[-1]), jnp.zeros_like(bias)


_native_select.defvjp(_native_select_forward, _native_select_backward)


def top_k_indices(scores: Float[Array, "T E"], k: int) -> Int[Array, "T K"]:
    """Indices of the `k` highest scores, highest first; ties go to the lower index."""
    if k > MAXIMA:
        return jax.lax.top_k(scores, k)[1]
    index, chosen = jnp.arange(scores.shape[1], dtype=jnp.int32), []
    for _ in range(k):
        best = jnp.where(scores == scores.max(1, keepdims=True), index, scores.shape[1]).min(1)
        chosen.append(best)
        scores = jnp.where(index == best[:, None], -jnp.inf, scores)
    return jnp.stack(chosen, axis=1)


def load(experts: Int[Array, "T K"], kept: Bool[Array, "T K"], n: int) -> Int[Array, " E"]:
    """How many tokens each expert is given, of those marked."""
    return jnp.zeros(n, jnp.int32).at[experts.reshape(-1)].add(kept.reshape(-1).astype(jnp.int32))


def load_balancing_loss(
    probabilities: Float[Array, "T E"], counts: Int[Array, " E"], mask: Bool[Array, " T"], k: int
) -> Float[Array, ""]:
    """(n/k) * sum_i (count_i / T) * mean_probability_i: 1 at perfect balance, n/k at worst.

    Source: the auxiliary loss of Switch Transformers (arXiv 2101.03961, eq. 4), for k experts a token.
    """
    tokens = jnp.maximum(mask.sum(), 1)
    mean_probability = jnp.where(mask[:, None], probabilities, 0.0).sum(0) / tokens
    return probabilities.shape[1] / k * jnp.sum(counts / tokens * mean_probability)


def router_z_loss(log_sums: Float[Array, " T"], mask: Bool[Array, " T"]) -> Float[Array, ""]:
    """mean(logsumexp(logits)^2), which keeps logits small (ST-MoE, arXiv 2202.08906, eq. 5)."""
    return jnp.where(mask, log_sums**2, 0.0).sum() / jnp.maximum(mask.sum(), 1)


def capacity(tokens: int, n: int, k: int, factor: float) -> int:
    """Tokens that an expert takes at most: round_up_to_8(int(factor * k * tokens / n))."""
    return -(-int(factor * k * tokens / n) // 8) * 8


def within_capacity(experts: Int[Array, "T K"], offered: Bool[Array, "T K"], n: int, limit: int) -> Bool[Array, "T K"]:
    """Marks the assignments that find room: each expert takes the first `limit` it is offered."""
    rank = rank_in_expert(experts, offered, n).reshape(experts.shape)
    return offered & (rank < limit)


def rank_in_expert(experts: Int[Array, "T K"], offered: Bool[Array, "T K"], n: int) -> Int[Array, " M"]:
    """How many earlier offered assignments, in token order, go to the same expert."""
    _, place, counts = sort_by_expert(experts, offered, n)
    starts = jnp.concatenate([jnp.zeros(1, counts.dtype), jnp.cumsum(counts)])
    expert = jnp.where(offered, experts, n).reshape(-1)
    return place - starts[expert]


def sort_by_expert(
    experts: Int[Array, "T K"], offered: Bool[Array, "T K"], n: int
) -> tuple[Int[Array, " M"], Int[Array, " M"], Int[Array, " E"]]:
    """Sorts assignments by expert, in token order within one, those not offered last.

    Returns:
      The sorted positions in the flattened [T, K], the place that each position has among them, and how many each
      expert is offered.
    """
    key = jnp.where(offered, experts, n).reshape(-1)
    if is_native():
        order, place, counts = native.sort(key, n)
        return order, place, counts
    rows = key.shape[0]
    index = jnp.arange(rows, dtype=jnp.int32)
    if (n + 1) * rows < 2**31:
        # Sorting one packed integer is several times faster than sorting pairs, on CPU above all.
        order = jnp.sort(key * rows + index, stable=False) % rows
    else:
        order = jnp.argsort(key, stable=True).astype(jnp.int32)
    place = jnp.zeros_like(index).at[order].set(index, unique_indices=True)
    return order, place, load(experts, offered, n)
