"""Causal attention on NVIDIA GPUs by cuDNN's kernel, which holds no scores in memory, where it passes a check.

cuDNN's version, the GPU and what each supports are the machine's. So the first use in a process tries the kernel in
the three ways in which it is used; where one of them fails, attention is XLA's own, whose scores are in memory.
"""

import functools
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

log = logging.getLogger(__name__)

WIDTHS = range(8, 129, 8)
"""Widths of a head that the kernel takes, on every GPU that it supports."""

ROUNDING = 2.0**-6
"""Of results and gradients in bfloat16, relative to the largest."""


def fits(query: Array) -> bool:
    """Whether the kernel takes queries [B, S, H, C] of this type and shape."""
    return query.dtype in (jnp.bfloat16, jnp.float16) and query.shape[-1] in WIDTHS


def cudnn_attention(
    query: Float[Array, "B S H C"], key: Float[Array, "B S H C"], value: Float[Array, "B S H C"]
) -> Float[Array, "B S H C"]:
    """Softmax attention over positions up to one's own, scores and sums in float32, of queries that fit."""
    return jax.nn.dot_product_attention(query, key, value, is_causal=True, implementation="cudnn")


def is_kernel(primitive: jax.extend.core.Primitive, *_: Any, **__: Any) -> bool:
    """A policy for `jax.checkpoint`: all that the kernel gives is kept, also its sums, which have no name."""
    return primitive.name == "dot_product_attention_fwd_wrapper"


@functools.cache
def available() -> bool:
    """Whether cuDNN's attention has given the right results here, which is told in the log if it has not."""
    # Whoever asks may be tracing a step, and what is computed there would become a part of it; a thread is not.
    with ThreadPoolExecutor(1) as thread:
        failure = thread.submit(_failure).result()
    if failure:
        log.warning("attention by cuDNN is not used, and its scores are in memory: %s", failure)
    return not failure


def _failure() -> str:
    """Why the kernel cannot be used here; "" if it can."""
    arrays = np.random.default_rng(0).standard_normal((4, 2, 256, 2, 64))
    inputs = [jnp.asarray(array, jnp.bfloat16) for array in arrays]
    want = jax.jit(_all_of(_plain))(*(array.astype(jnp.float32) for array in inputs))
    for way, function in _ways().items():
        try:
            got = jax.jit(function)(*inputs)
        except Exception as error:  # of whatever kind: another library says what is wrong
            return f"{way}, it fails: {type(error).__name__}: {error}"
        for a, b in zip(got, want, strict=True):
            apart = float(jnp.abs(a - b).max() / jnp.abs(b).max())
            if not apart <= ROUNDING:
                return f"{way}, its results are {apart:.2g} of the largest from those in float32"
    return ""


def _ways() -> dict[str, Callable[..., Any]]:
    """How runs use it: alone, as lanes of one step, and on a mesh."""
    function, mesh = _all_of(cudnn_attention), Mesh(np.asarray(jax.local_devices()[:1]), ("data",))
    share = PartitionSpec("data")
    several = jax.vmap(function)
    return {
        "by itself": function,
        "mapped": lambda *x: jax.tree.map(lambda y: y[0], several(*(y[None] for y in x))),
        "on a mesh": jax.shard_map(function, mesh=mesh, in_specs=share, out_specs=share, check_vma=False),
    }


def _plain(query: Array, key: Array, value: Array) -> Array:
    return jax.nn.dot_product_attention(query, key, value, is_causal=True, implementation="xla")


def _all_of(attention: Callable[..., Array]) -> Callable[..., tuple[Array, ...]]:
    """What attention gives, and its gradients, in float32."""

    def compute(query: Array, key: Array, value: Array, grad: Array) -> tuple[Array, ...]:
        out, pull = jax.vjp(attention, query, key, value)
        return tuple(x.astype(jnp.float32) for x in (out, *pull(grad.astype(out.dtype))))

    return compute
