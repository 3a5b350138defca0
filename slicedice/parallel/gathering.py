"""Parameters put together for use, in the dtype they are used in, and their gradients brought back in float32.

Each device keeps a shard of every parameter. What is gathered travels in the dtype that it is multiplied in; gradients
are added up over devices in float32, each device receiving the sum of its own shard only. Where several devices keep
the same shard, `summed` adds up theirs, once a step rather than in every layer of every micro-batch.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from slicedice.parallel.collectives import all_gather
from slicedice.parallel.mesh import axes, size
from slicedice.parallel.table import EXPERT, REPLICA, partition


class _Layout(NamedTuple):
    """How a parameter lies on the mesh.

    shape: of one device's shard.
    over: for each axis of the parameter, the mesh axes that shard it.
    experts: of the parameter's first axis, if devices are to have but their own experts; 0 if they are to have it all.
    """

    shape: tuple[int, ...]
    over: tuple[tuple[str, ...], ...]
    experts: int = 0

    def gather(self, shard: Array) -> Array:
        """What a device multiplies with, of its shard and those of others."""
        whole, over = shard, self.over
        if self.experts:
            whole = self._own_experts(whole)
            over = tuple(tuple(name for name in names if name != EXPERT) for names in over)
        for place, names in enumerate(over):
            # One axis at a time: over several, the TPU's compiler turns the gradient's sum into one over whole arrays.
            for name in reversed(names):
                whole = all_gather(whole, name, place)
        return whole

    def _own_experts(self, shard: Array) -> Array:
        place = next((place for place, names in enumerate(self.over) if EXPERT in names), None)
        if place == 0:
            return shard
        # A device has a part of every expert, or all of them. Padded, they can be shared out.
        devices = size(EXPERT)
        shard = jnp.pad(shard, [(0, -self.experts % devices), *((0, 0) for _ in shard.shape[1:])])
        if place is not None:
            return jax.lax.all_to_all(shard, EXPERT, split_axis=0, concat_axis=place, tiled=True)
        own = shard.shape[0] // devices
        return jax.lax.dynamic_slice_in_dim(shard, jax.lax.axis_index(EXPERT) * own, own)

    def reduce(self, grad: Array) -> Array:
        """The sum, over devices with other shards, of their gradients of this one, in the dtype of `grad`."""
        (total,) = jax.linear_transpose(self.gather, jax.ShapeDtypeStruct(self.shape, grad.dtype))(grad)
        return total

    def sum_over_copies(self, grad: Array) -> Array:
        """The sum over devices with the same shard."""
        over = {name for names in self.over for name in names}
        rest = [name for name in axes() if name not in over]
        # Replicas after the others: between slices links are slow, and each device then sends what it alone has.
        grad = jax.lax.psum(grad, tuple(name for name in rest if name != REPLICA))
        return jax.lax.psum(grad, REPLICA) if REPLICA in rest else grad


def gathered(parameter: nnx.Param, dtype: jax.typing.DTypeLike) -> Array:
    """The whole of a parameter in `dtype`."""
    return _assembled(parameter, dtype, own=False)


def local_experts(parameter: nnx.Param, dtype: jax.typing.DTypeLike) -> Array:
    """Of a parameter whose first axis is experts, those of this device, in `dtype`: [ceil(n / devices), ...].

    Where the expert axis does not divide n, the last devices' last experts are zeros, to which no token is sent.
    """
    return _assembled(parameter, dtype, own=True)


def scattered(parameter: nnx.Param, grad: Array) -> Array:
    """Of gradients of the whole of a parameter, what would come back from `gathered`; in float32.

    For who puts a parameter together once and adds up its gradient over several uses.
    """
    grad = grad.astype(jnp.float32)
    return _layout(parameter, own=False).reduce(grad) if axes() else grad


def summed(params: nnx.State, grads: nnx.State) -> nnx.State:
    """Gradients of all devices, of what each has of its own: those that came back from `gathered` and the like."""

    def total(parameter: nnx.Param, grad: nnx.Param) -> nnx.Variable:
        return grad.replace(_layout(parameter, own=False).sum_over_copies(grad[...]))

    if not axes():
        return grads
    return jax.tree.map(total, params, grads, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def _assembled(parameter: nnx.Param, dtype: jax.typing.DTypeLike, *, own: bool) -> Array:
    if not axes():
        return parameter[...].astype(dtype)
    return _gather(_layout(parameter, own=own), jnp.dtype(dtype), parameter[...])


def _layout(parameter: nnx.Param, *, own: bool) -> _Layout:
    named = parameter.get_metadata()["axes"]
    over = partition(named, {name: size(name) for name in axes()})
    return _Layout(parameter.shape, over, named[0][1] if own and size(EXPERT) > 1 else 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gather(layout: _Layout, dtype: jnp.dtype, shard: Array) -> Array:
    return layout.gather(shard.astype(dtype))


def _gather_forward(layout: _Layout, dtype: jnp.dtype, shard: Array):
    return _gather(layout, dtype, shard), None


def _gather_backward(layout: _Layout, dtype: jnp.dtype, _: None, grad: Array):
    return (layout.reduce(grad.astype(jnp.float32)),)


_gather.defvjp(_gather_forward, _gather_backward)
