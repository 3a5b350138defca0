"""Multi-head causal attention with RoPE and QK-norm over the full width, without biases."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from slicedice.kernels import is_native
from slicedice.kernels.platform import platform
from slicedice.model import cudnn
from slicedice.model.native_attention import native_attention
from slicedice.model.norm import RMSNorm
from slicedice.model.splash import MIXED, fits, splash
from slicedice.moe.experts import Initializer, project, weight
from slicedice.parallel.gathering import gathered


def causal_mix(
    query: Float[Array, "B S H C"], key: Float[Array, "B S H C"], value: Float[Array, "B S H C"]
) -> Float[Array, "B S H C"]:
    """Softmax attention over positions up to one's own, scores and sums in float32.

    It is a kernel that holds no scores in memory, on GPU in half precision alone. On a CPU without a C++ compiler it is
    written out, and normalised after the product with values, because forward and backward pass then take about half
    the time of JAX's own (`benchmarks/attention.py`). What comes of it has the name that `jax.checkpoint` keeps.
    """
    where = platform()
    if where == "tpu" and fits(query.shape[1]):
        return splash(query, key, value)
    if where != "cpu":
        fused = where == "gpu" and cudnn.fits(query) and cudnn.available()
        attend = cudnn.cudnn_attention if fused else partial(jax.nn.dot_product_attention, is_causal=True)
        return checkpoint_name(attend(query, key, value), MIXED)
    if is_native():
        return native_attention(query, key, value)
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    scores = jnp.einsum("bhqc,bhkc->bhqk", query, key, preferred_element_type=jnp.float32)
    past = jnp.tri(query.shape[2], dtype=bool)
    scores = jnp.where(past, scores / query.shape[3] ** 0.5, -jnp.inf)
    shares = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    mixed = jnp.einsum("bhqk,bhkc->bhqc", shares.astype(value.dtype), value, preferred_element_type=jnp.float32)
    mixed = (mixed / shares.sum(-1, keepdims=True)).astype(value.dtype).swapaxes(1, 2)
    return checkpoint_name(mixed, MIXED)


class Attention(nnx.Module):
    """[B, S, D] -> [B, S, D], each position reading itself and what came before."""

    def __init__(self, d_model: int, heads: int, *, init: Initializer, rngs: nnx.Rngs):
        self.heads = heads
        self.query, self.key, self.value, self.out = (
            weight(init, rngs.params(), d_model=d_model, heads=d_model) for _ in range(4)
        )
        self.query_norm, self.key_norm = RMSNorm(d_model), RMSNorm(d_model)

    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        """Attends causally, in the dtype of `x`."""

        query, key, value, out = (gathered(w, x.dtype) for w in (self.query, self.key, self.value, self.out))
        query = self.query_norm.rotated(project(x, query), self.heads)
        key = self.key_norm.rotated(project(x, key), self.heads)
        value = project(x, value).reshape(query.shape)
        return project(causal_mix(query, key, value).reshape(x.shape), out)
