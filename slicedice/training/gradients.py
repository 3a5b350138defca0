"""The loss of a batch and its gradients, of one device's share of it, added up over the mesh around this code."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from slicedice.model import Decoder
from slicedice.model.cross_entropy import mean_loss
from slicedice.model.decoder import Tables
from slicedice.moe import Routing
from slicedice.parallel.gathering import scattered, summed
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


def routing_of(spec: RunSpec, execution: Execution | None = None) -> Routing:
    """How the run's tokens reach experts; over a mesh, as its execution says."""
    group = spec.router.group and spec.router.group * spec.data.sequence_length
    routing = Routing(spec.router.capacity_factor, group)
    return routing._replace(slack=execution.expert_slack, dispatch=execution.dispatch) if execution else routing


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
    # Embedding and head are put together, and their gradients brought back, once for all micro-batches.
    of_tables: Any
    of_tables, of_layers = nnx.split_state(params, lambda path, _: path[0] in Tables._fields, ...)

    def model(of_layers: nnx.State) -> Decoder:
        return nnx.merge(graphdef, of_tables, of_layers, bias)

    def loss(parts, micro_batch):
        layers, tables = parts
        return _loss(model(layers), tables, spec, execution, micro_batch, hyper)

    gradient = jax.grad(loss, has_aux=True)
    parts = of_layers, model(of_layers).tables()
    micro_batches = batch.reshape(-1, execution.micro_batch, batch.shape[1])
    count = micro_batches.shape[0] * jax.lax.axis_size(axes())

    def accumulate(total, micro_batch):
        return jax.tree.map(jnp.add, total, gradient(parts, micro_batch)), None

    if micro_batches.shape[0] == 1:
        total = gradient(parts, micro_batches[0])
    else:
        zeros = jax.tree.map(_zeros, jax.eval_shape(gradient, parts, micro_batches[0]))
        total, _ = jax.lax.scan(accumulate, zeros, micro_batches)
    (grads, tables), (losses, counts) = total
    own = {name: of_tables[name].replace(scattered(of_tables[name], grad)) for name, grad in tables._asdict().items()}
    grads = summed(params, nnx.merge_state(grads, nnx.State(own)))
    losses, counts = jax.lax.psum((losses, counts), axes())
    grads, losses = jax.tree.map(lambda sum_: sum_ / count, (grads, losses))
    return grads, losses, counts


def _zeros(like: jax.ShapeDtypeStruct) -> Array:
    """What parts are added up in: floats in float32."""
    return jnp.zeros(like.shape, jnp.float32 if like.dtype == jnp.bfloat16 else like.dtype)


def _loss(
    model: Decoder, tables: Tables, spec: RunSpec, execution: Execution, batch: Array, hyper: Hyper
) -> tuple[Array, tuple[Losses, Counts]]:
    inputs, targets = batch[:, :-1], batch[:, 1:]
    routing = routing_of(spec, execution)
    x, aux = model.hidden(tables, inputs, routing=routing, remat=execution.remat, unroll=execution.unroll)
    z_weight = spec.optimizer.output_z_loss
    loss, cross_entropy = mean_loss(x.reshape(-1, x.shape[-1]), tables.head, targets.reshape(-1), z_weight)
    # Weights over n_layers: means over layers, summed over the expert sets of one layer.
    balance = sum((a.load_balancing_loss.mean() for a in aux), jnp.float32(0))
    router_z = sum((a.z_loss.mean() for a in aux), jnp.float32(0))
    loss += hyper.alpha * balance + (spec.router.z_loss or 0.0) * router_z
    dropped = sum((a.dropped.sum() for a in aux), jnp.int32(0))
    lost = sum((a.lost.sum() for a in aux), jnp.int32(0))
    return loss, (Losses(loss, cross_entropy, balance, router_z), Counts(tuple(a.load for a in aux), dropped, lost))
