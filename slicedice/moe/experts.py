"""Experts: SwiGLU feed-forward networks, one always on, or `n` of them over rows sorted by expert."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from slicedice.kernels import expert_ffn, is_native
from slicedice.moe.native_experts import native_gated
from slicedice.parallel.gathering import gathered, local_experts

Initializer = jax.nn.initializers.Initializer


def weight(init: Initializer, key: Array, **axes: int) -> nnx.Param:
    """A parameter of the given logical axes and sizes, in order; the table in `parallel` says how each is sharded."""
    return nnx.Param(init(key, tuple(axes.values())), axes=tuple(axes.items()))


def project(
    x: Float[Array, "*B D"], weights: Float[Array, "D F"], dtype: jax.typing.DTypeLike | None = None
) -> Float[Array, "*B F"]:
    """x @ weights, multiplied in the dtype of `x` and returned in `dtype` or that; leading axes folded into one.

    Folded, the weight gradient contracts one axis; XLA's CPU backend takes several times longer over two.
    """
    rows = x.reshape(-1, x.shape[-1])
    out = jnp.dot(rows, weights, preferred_element_type=dtype or x.dtype)
    return out.reshape(*x.shape[:-1], weights.shape[-1])


class SwiGLU(nnx.Module):
    """An expert that is always on: the dense FFN, or a generalist. [..., D] -> [..., D]."""

    def __init__(self, d_model: int, width: int, *, init: Initializer, rngs: nnx.Rngs):
        self.gate = weight(init, rngs.params(), d_model=d_model, width=width)
        self.up = weight(init, rngs.params(), d_model=d_model, width=width)
        self.down = weight(init, rngs.params(), width=width, d_model=d_model)

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Computes down(silu(gate(x)) * up(x)) in the dtype of `x`."""
        gate, up, down = (gathered(weights, x.dtype) for weights in (self.gate, self.up, self.down))
        gated = native_gated if is_native() else lambda a, b: jax.nn.silu(a) * b
        return project(gated(project(x, gate), project(x, up)), down)


class RoutedExperts(nnx.Module):
    """`n` SwiGLU experts of one width, of which a device has its own. [M, D] rows sorted by expert -> [M, D]."""

    def __init__(self, n: int, d_model: int, width: int, *, init: Initializer, implementation: str, rngs: nnx.Rngs):
        self.gate = weight(init, rngs.params(), experts=n, d_model=d_model, width=width)
        self.up = weight(init, rngs.params(), experts=n, d_model=d_model, width=width)
        self.down = weight(init, rngs.params(), experts=n, width=width, d_model=d_model)
        self.implementation = implementation

    def __call__(self, rows: Float[Array, "M D"], group_sizes: Int[Array, " E"], alignment: int) -> Float[Array, "M D"]:
        """Applies to each row the expert of its group; costs FLOPs in proportion to rows."""
        matrices = self.matrices(rows.dtype)
        return expert_ffn(rows, *matrices, group_sizes, implementation=self.implementation, alignment=alignment)

    def matrices(self, dtype: jax.typing.DTypeLike) -> tuple[Array, Array, Array]:
        """gate, up and down of this device's experts."""
        gate, up, down = (local_experts(weights, dtype) for weights in (self.gate, self.up, self.down))
        return gate, up, down


def truncated_normal(std: float = 0.02, cut: float = 3.0) -> Initializer:
    """Normal values of standard deviation `std` before they are cut at `cut` standard deviations."""

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        return std * jax.random.truncated_normal(key, -cut, cut, shape, dtype, out_sharding=out_sharding)

    return init
