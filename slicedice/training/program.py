"""What XLA compiles for a run: initial state and the training step, each one function of arrays.

Learning rate, weight decay, alpha, gamma and the seed are arguments, so runs that differ only in them share
a program. A program must never read anything from a spec that `program_key` leaves out.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from slicedice.model import Decoder
from slicedice.moe import RouterBias, Routing
from slicedice.spec import Execution, RunSpec
from slicedice.training.optimizer import adamw, rate_at


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
        return cls(*(jnp.float32(number) for number in numbers))


class TrainState(NamedTuple):
    """Everything a step changes."""

    params: nnx.State
    bias: nnx.State
    optimizer: optax.OptState
    step: Int[Array, ""]


class Losses(NamedTuple):
    """Means over a (micro-)batch, and per-expert loads to be summed over it."""

    loss: Array
    cross_entropy: Array
    load_balancing_loss: Array
    router_z_loss: Array
    loads: tuple[Array, ...]  # one [layers, E] for each expert set
    dropped: Array


def routing_of(spec: RunSpec) -> Routing:
    """How the run's tokens reach experts in training."""
    group = spec.router.group
    return Routing(spec.router.capacity_factor, group * spec.data.sequence_length if group else None)


class Program:
    """The compiled functions that train `spec`, or any run of the same `program_key`."""

    def __init__(self, spec: RunSpec, execution: Execution):
        self.spec, self.execution = spec, execution
        self.graphdef, _, _ = self._split(nnx.eval_shape(lambda: self._model(jnp.uint32(0))))
        # Random initial values compile slowly and run once: unoptimised, on CPU, in a quarter of the time.
        quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
        # On a named device, as a restored state is: otherwise the step would be compiled once for each.
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        self.init = jax.jit(self._init, compiler_options=quick, out_shardings=here)
        self.step = jax.jit(self._step, donate_argnums=0)

    def model(self, state: TrainState) -> Decoder:
        """The model of a state."""
        return nnx.merge(self.graphdef, state.params, state.bias)

    def _model(self, seed: Int[Array, ""]) -> Decoder:
        return Decoder(
            self.spec.model,
            compute_dtype=self.spec.compute_dtype,
            implementation=self.execution.implementation,
            key=jax.random.key(seed),
        )

    def _split(self, model: Decoder):
        return nnx.split(model, nnx.Param, RouterBias)

    def _init(self, seed: Int[Array, ""]) -> TrainState:
        """The state before the first step; `seed` is a uint32 scalar."""
        _, params, bias = self._split(self._model(seed))
        optimizer = adamw(self.spec.optimizer, jnp.float32(0), jnp.float32(0)).init(params)
        return TrainState(params, bias, optimizer, jnp.int32(0))

    def _step(self, state: TrainState, batch: Int[Array, "B S1"], hyper: Hyper) -> tuple[TrainState, dict[str, Array]]:
        """One optimizer step on a batch of B windows of S+1 tokens; returns the new state and metrics."""
        grads, losses = self._gradients(state, batch, hyper)
        rate = rate_at(self.spec.optimizer, self.spec.budget.steps, state.step, hyper.learning_rate)
        optimizer = adamw(self.spec.optimizer, rate, hyper.weight_decay)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        bias = move_bias(state.bias, losses.loads, hyper.gamma)
        metrics = {
            "loss": losses.loss,
            "cross_entropy": losses.cross_entropy,
            "learning_rate": rate,
            "gradient_norm": optax.tree.norm(grads),
        }
        if losses.loads:
            metrics |= {
                "load_balancing_loss": losses.load_balancing_loss,
                "router_z_loss": losses.router_z_loss,
                **load_metrics(losses.loads, losses.dropped),
            }
        return TrainState(params, bias, optimizer_state, state.step + 1), metrics  # pyright: ignore[reportArgumentType]

    def _gradients(self, state: TrainState, batch: Array, hyper: Hyper) -> tuple[nnx.State, Losses]:
        """Mean gradients over the batch, accumulated over micro-batches of equal size."""
        gradient = jax.grad(self._loss, has_aux=True)
        count = batch.shape[0] // self.execution.micro_batch
        if count == 1:
            return gradient(state.params, state.bias, batch, hyper)

        def accumulate(total, micro_batch):
            return jax.tree.map(jnp.add, total, gradient(state.params, state.bias, micro_batch, hyper)), None

        micro_batches = batch.reshape(count, -1, batch.shape[1])
        shapes = jax.eval_shape(gradient, state.params, state.bias, micro_batches[0], hyper)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        (grads, losses), _ = jax.lax.scan(accumulate, zeros, micro_batches)
        means = jax.tree.map(lambda x: x / count, (grads, losses._replace(loads=(), dropped=())))
        return means[0], means[1]._replace(loads=losses.loads, dropped=losses.dropped)

    def _loss(self, params, bias, batch: Array, hyper: Hyper) -> tuple[Array, Losses]:
        model = nnx.merge(self.graphdef, params, bias)
        inputs, targets = batch[:, :-1], batch[:, 1:]
        logits, aux = model(
            inputs, routing=routing_of(self.spec), remat=self.execution.remat, unroll=self.execution.unroll
        )
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()
        output_z = (jax.nn.logsumexp(logits, axis=-1) ** 2).mean()
        # Weights over n_layers: means over layers, summed over the expert sets of one layer.
        balance = sum((a.load_balancing_loss.mean() for a in aux), jnp.float32(0))
        router_z = sum((a.z_loss.mean() for a in aux), jnp.float32(0))
        loss = cross_entropy + self.spec.optimizer.output_z_loss * output_z
        loss += hyper.alpha * balance + (self.spec.router.z_loss or 0.0) * router_z
        loads, dropped = tuple(a.load for a in aux), sum((a.dropped.sum() for a in aux), jnp.int32(0))
        return loss, Losses(loss, cross_entropy, balance, router_z, loads, dropped)


def move_bias(bias: nnx.State, loads: tuple[Array, ...], gamma: Array) -> nnx.State:
    """b += gamma * sign(mean_load - load) for every expert (arXiv 2408.15664), from the global batch.

    `loads` holds one [layers, E] for each expert set, in the order of the leaves of `bias`.
    """
    leaves, treedef = jax.tree.flatten(bias)
    moved = [b + gamma * jnp.sign(load.mean(-1, keepdims=True) - load) for b, load in zip(leaves, loads, strict=True)]
    return jax.tree.unflatten(treedef, moved)


def load_metrics(loads: tuple[Array, ...], dropped: Array) -> dict[str, Array]:
    """Load imbalance (max over mean, averaged over layers and sets), share dropped, experts without a token."""
    imbalance = jnp.stack([(load.max(-1) / load.mean(-1)).mean() for load in loads]).mean()
    assignments = sum(load.sum() for load in loads)
    dead = sum((load == 0).sum() for load in loads)
    return {
        "load_imbalance": imbalance,
        "dropped_share": dropped / assignments,
        "dead_experts": jnp.asarray(dead),
    }
