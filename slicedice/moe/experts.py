"""Experts: SwiGLU feed-forward networks, one always on, or `n` of them over rows sorted by expert."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from slicedice.kernels import expert_ffn

Initializer = jax.nn.initializers.Initializer


def project(
    x: Float[Array, "*B D"], weights: Float[Array, "D F"], dtype: jax.typing.DTypeLike | None = None
) -> Float[Array, "*B F"]:
    """x @ weights, multiplied in the dtype of `x` and returned in `dtype` or that; leading axes folded into one.

    Folded, the weight gradient contracts one axis; XLA's CPU backend takes several times longer over two.
    """
    rows = x.reshape(-1, x.shape[-1])
    out = jnp.dot(rows, weights.astype(x.dtype), preferred_element_type=dtype or x.dtype)
    return out.reshape(*x.shape[:-1], weights.shape[-1])


class SwiGLU(nnx.Module):
    """An expert that is always on: the dense FFN, or a generalist. [..., D] -> [..., D]."""

    def __init__(self, d_model: int, width: int, *, init: Initializer, rngs: nnx.Rngs):
        self.gate = nnx.Param(init(rngs.params(), (d_model, width)))
        self.up = nnx.Param(init(rngs.params(), (d_model, width)))
        self.down = nnx.Param(init(rngs.params(), (width, d_model)))

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Computes down(silu(gate(x)) * up(x)) in the dtype of `x`."""
        return project(jax.nn.silu(project(x, self.gate[...])) * project(x, self.up[...]), self.down[...])


class RoutedExperts(nnx.Module):
    """`n` SwiGLU experts of one width. [M, D] rows sorted by expert -> [M, D]."""

    def __init__(self, n: int, d_model: int, width: int, *, init: Initializer, implementation: str, rngs: nnx.Rngs):
        self.gate = nnx.Param(init(rngs.params(), (n, d_model, width)))
        self.up = nnx.Param(init(rngs.params(), (n, d_model, width)))
        self.down = nnx.Param(init(rngs.params(), (n, width, d_model)))
        self.implementation = implementation

    def __call__(self, rows: Float[Array, "M D"], group_sizes: Int[Array, " E"], alignment: int) -> Float[Array, "M D"]:
        """Applies to each row the expert of its group; costs FLOPs in proportion to rows."""
        gate, up, down = (weights[...].astype(rows.dtype) for weights in (self.gate, self.up, self.down))
        return expert_ffn(rows, gate, up, down, group_sizes, implementation=self.implementation, alignment=alignment)


def truncated_normal(std: float = 0.02, cut: float = 3.0) -> Initializer:
    """Normal values of standard deviation `std` before they are cut at `cut` standard deviations."""

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        return std * jax.random.truncated_normal(key, -cut, cut, shape, dtype, out_sharding=out_sharding)

    return init
