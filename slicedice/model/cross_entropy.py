"""Cross-entropy over the vocabulary, some tokens at a time: the logits of a whole batch are never in memory.

At the study's vocabulary the logits of 16,384 tokens take 6.6 GB in float32, more than all else. Training takes the
gradient while a part's logits are there, so that they are computed once. On Hopper GPUs narrow models have none in
memory at all, where kernels pass their check (`hopper_cross_entropy`).
"""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from slicedice.kernels.platform import platform

LOGIT_BYTES = 2**28
"""Of float32 logits that are in memory at once, at most."""

Chunk = tuple[Float[Array, "C D"], Int[Array, " C"]]


def mean_loss(
    x: Float[Array, "T D"], head: Float[Array, "D V"], targets: Int[Array, " T"], z_weight: float
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The mean over tokens of cross-entropy + z_weight * logsumexp(logits)^2, in nats, of logits x @ head.

    The second term keeps logits from drifting (PaLM, section 5, arXiv 2204.02311).

    Returns:
      The loss, and the cross-entropy alone, which has no gradient.
    """
    both: Any = _mean_loss(x, head, targets, z_weight)
    loss, cross_entropy = both
    return loss, jax.lax.stop_gradient(cross_entropy)


def token_nats(x: Float[Array, "T D"], head: Float[Array, "D V"], targets: Int[Array, " T"]) -> Float[Array, " T"]:
    """The cross-entropy of each token, in nats. Its gradient is not meant to be taken: `mean_loss` has one."""
    if kernels := _kernels(x, head):
        return kernels.nats(x, head, targets)[0]

    def nats(total: Any, chunk: Chunk):
        return total, _nats(*chunk, head)[0]

    return _over_chunks(nats, (), x, targets, head.shape[1])[1].reshape(-1)[: x.shape[0]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _mean_loss(x: Array, head: Array, targets: Array, z_weight: float) -> tuple[Array, Array]:
    if kernels := _kernels(x, head):
        nats, log_z = kernels.nats(x, head, targets)
        return _mean(_sums(_zeros(), nats, log_z, targets), x.shape[0], z_weight)

    def add(totals: Any, chunk: Chunk):
        nats, log_z, _ = _nats(*chunk, head)
        return _sums(totals, nats, log_z, chunk[1]), ()

    totals, _ = _over_chunks(add, _zeros(), x, targets, head.shape[1])
    return _mean(totals, x.shape[0], z_weight)


def _forward(x: Array, head: Array, targets: Array, z_weight: float):
    tokens = x.shape[0]
    if kernels := _kernels(x, head):
        nats, log_z, drows, dhead = kernels.parts(x, head, targets, z_weight)
        grads = (drows / tokens).astype(x.dtype), (dhead / tokens).astype(head.dtype)
        return _mean(_sums(_zeros(), nats, log_z, targets), tokens, z_weight), grads

    def add(totals: Any, chunk: Chunk):
        sums, dhead = totals
        rows, wanted = chunk
        nats, log_z, logits = _nats(rows, wanted, head)
        # d(nats) = p - 1[target], d(log_z^2) = 2 log_z p, where p = exp(logits - log_z).
        dlogits = jnp.exp(logits - log_z[:, None]) * (1 + 2 * z_weight * log_z[:, None])
        dlogits -= jnp.arange(head.shape[1], dtype=wanted.dtype) == wanted[:, None]
        dlogits = jnp.where((wanted >= 0)[:, None], dlogits / tokens, 0).astype(x.dtype)
        drows = jnp.dot(dlogits, head.T, preferred_element_type=x.dtype)
        dhead += jnp.dot(rows.T, dlogits, preferred_element_type=jnp.float32)
        return (_sums(sums, nats, log_z, wanted), dhead), drows

    zeros = _zeros(), jnp.zeros(head.shape, jnp.float32)
    (sums, dhead), drows = _over_chunks(add, zeros, x, targets, head.shape[1])
    return _mean(sums, tokens, z_weight), (drows.reshape(-1, x.shape[1])[:tokens], dhead.astype(head.dtype))


def _backward(z_weight: float, residuals: tuple[Array, Array], grads: tuple[Array, Array]):
    del z_weight
    dx, dhead = residuals
    return dx * grads[0].astype(dx.dtype), dhead * grads[0].astype(dhead.dtype), None


_mean_loss.defvjp(_forward, _backward)


def _kernels(x: Array, head: Array) -> ModuleType | None:
    """The module whose kernels these go to; None if to no kernel."""
    if platform() != "gpu":
        return None
    from slicedice.model import hopper_cross_entropy  # it brings a compiler's front end

    return hopper_cross_entropy if hopper_cross_entropy.fits(x, head) and hopper_cross_entropy.available() else None


def _zeros() -> tuple[Array, Array]:
    return jnp.float32(0), jnp.float32(0)


def _nats(rows: Array, wanted: Array, head: Array) -> tuple[Array, Array, Array]:
    """Nats of each row, logsumexp of its logits, and the logits."""
    logits = jnp.dot(rows, head, preferred_element_type=jnp.float32)
    log_z = jax.nn.logsumexp(logits, axis=1)
    chosen = jnp.take_along_axis(logits, jnp.maximum(wanted, 0)[:, None], axis=1)[:, 0]
    return log_z - chosen, log_z, logits


def _sums(sums: tuple[Array, Array], nats: Array, log_z: Array, wanted: Array) -> tuple[Array, Array]:
    counts = wanted >= 0
    return sums[0] + jnp.where(counts, nats, 0).sum(), sums[1] + jnp.where(counts, log_z**2, 0).sum()


def _mean(sums: tuple[Array, Array], tokens: int, z_weight: float) -> tuple[Array, Array]:
    return (sums[0] + z_weight * sums[1]) / tokens, sums[0] / tokens


def _over_chunks(body: Callable, start: Any, x: Array, targets: Array, vocabulary: int) -> tuple[Any, Array]:
    """Scans `body` over chunks of tokens; those that fill up the last one have the target -1."""
    tokens, width = x.shape
    count = -(-tokens * vocabulary * 4 // LOGIT_BYTES)
    if count == 1:
        return body(start, (x, targets))
    size = -(-tokens // count)
    padding = count * size - tokens
    rows = jnp.pad(x, ((0, padding), (0, 0))).reshape(count, size, width)
    wanted = jnp.pad(targets, (0, padding), constant_values=-1).reshape(count, size)
    return jax.lax.scan(body, start, (rows, wanted))
