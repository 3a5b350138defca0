"""The loss of a batch and its gradients, of one device's share of it, added up over the mesh around this code."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from slicedice.model import Decoder
from slicedice.model.cross_entropy import mean_loss
from slicedice.moe import Routing
from slicedice.parallel.gathering import gathered
from slicedice.parallel.mesh import axes
from slicedice.spec import Execution, RunSpec


class Hyper(NamedTuple):
    """Numbers that may vary inside a program, each a float32 scalar."""

    learning_rate: Float[Array, ""]
    weight_decay: Float[Array, ""]
    alpha: Float[Array, ""]
    gamma: Float[Array, ""]

    @classmethod
    def of(cls, spec: RunSpec) -> "Hyper":
        """Those of a run; what has no effect in it is 0."""
        numbers = (
            spec.optimizer.learning_rate,
            spec.optimizer.weight_decay,
            spec.router.alpha or 0.0,
            spec.router.gamma or 0.0,
        )
        return cls(*(np.float32(number) for number in numbers))  # pyright: ignore[reportArgumentType]


class Losses(NamedTuple):
    """Means over a (micro-)batch."""

    loss: Array
    cross_entropy: Array
    load_balancing_loss: Array
    router_z_loss: Array


class Counts(NamedTuple):
    """Sums over a (micro-)batch.

    loads: tokens that chose each expert, one [layers, E] for each expert set.
    dropped: assignments over the capacity. lost: those that a device had no room for.
    """

    loads: tuple[Array, ...]
    dropped: Array
    lost: Array


def routing_of(spec: RunSpec) -> Routing:
    """How the run's tokens reach experts."""
    return Routing(spec.router.capacity_factor, spec.router.group and spec.router.group * spec.data.sequence_length)


def gradients(
    graphdef: nnx.GraphDef,
    spec: RunSpec,
    execution: Execution,
    params: nnx.State,
    bias: nnx.State,
    batch: Int[Array, "B S1"],
    hyper: Hyper,
) -> tuple[nnx.State, Losses, Counts]:
    """Mean gradients over the batch, accumulated over micro-batches of equal size, in float32.

    Args:
      graphdef: of the model.
      spec: the run.
      execution: how it is run.
      params: this device's shards.
      bias: router biases.
      batch: this device's sequences.
      hyper: numbers of the run.

    Returns:
      Gradients of this device's shards, and losses and counts of all devices' sequences.
    """

    def loss(params, micro_batch):
        return _loss(nnx.merge(graphdef, params, bias), spec, execution, micro_batch, hyper)

    gradient = jax.grad(loss, has_aux=True)
    micro_batches = batch.reshape(-1, execution.micro_batch, batch.shape[1])
    parts = micro_batches.shape[0] * jax.lax.axis_size(axes())

    def accumulate(total, micro_batch):
        return jax.tree.map(jnp.add, total, gradient(params, micro_batch)), None

    if micro_batches.shape[0] == 1:
        grads, (losses, counts) = gradient(params, micro_batches[0])
    else:
        zeros = optax.tree.zeros_like(jax.eval_shape(gradient, params, micro_batches[0]))
        (grads, (losses, counts)), _ = jax.lax.scan(accumulate, zeros, micro_batches)
    # Gradients have been added up over devices where parameters were put together.
    losses, counts = jax.lax.psum((losses, counts), axes())
    grads, losses = jax.tree.map(lambda total: total / parts, (grads, losses))
    return grads, losses, counts


def _loss(
    model: Decoder, spec: RunSpec, execution: Execution, batch: Array, hyper: Hyper
) -> tuple[Array, tuple[Losses, Counts]]:
    inputs, targets = batch[:, :-1], batch[:, 1:]
    routing = routing_of(spec)._replace(slack=execution.expert_slack)
    x, aux = model.hidden(inputs, routing=routing, remat=execution.remat, unroll=execution.unroll)
    head = gathered(model.head, x.dtype)
    z_weight = spec.optimizer.output_z_loss
    loss, cross_entropy = mean_loss(x.reshape(-1, x.shape[-1]), head, targets.reshape(-1), z_weight)
    # Weights over n_layers: means over layers, summed over the expert sets of one layer.
    balance = sum((a.load_balancing_loss.mean() for a in aux), jnp.float32(0))
    router_z = sum((a.z_loss.mean() for a in aux), jnp.float32(0))
    loss += hyper.alpha * balance + (spec.router.z_loss or 0.0) * router_z
    dropped = sum((a.dropped.sum() for a in aux), jnp.int32(0))
    lost = sum((a.lost.sum() for a in aux), jnp.int32(0))
    return loss, (Losses(loss, cross_entropy, balance, router_z), Counts(tuple(a.load for a in aux), dropped, lost))
