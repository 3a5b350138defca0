"""What XLA compiles for a run: initial state and the training step, each one function of arrays.

Learning rate, weight decay, alpha, gamma and the seed are arguments, so runs that differ only in them share
a program. A program must never read anything from a spec that `program_key` leaves out.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Int

from slicedice import cache
from slicedice.model import Decoder
from slicedice.moe import RouterBias
from slicedice.parallel import placing
from slicedice.parallel.mesh import batch_sharding, make_mesh
from slicedice.spec import Execution, RunSpec, program_key
from slicedice.training import compilations
from slicedice.training.gradients import Counts, Hyper, Losses, gradients
from slicedice.training.optimizer import adamw, rate_at, updated

LOST = "lost_assignments"
"""The metric of assignments that found no room on the device of their expert; where it is not 0, the step was wrong."""


class TrainState(NamedTuple):
    """Everything a step changes."""

    params: nnx.State
    bias: nnx.State
    optimizer: optax.OptState
    step: Int[Array, ""]


class Program:
    """The compiled functions that train `spec`, or any run of the same `program_key`.

    Attributes:
      width: how many runs take a step at once; see `Lane.width`.
      mesh: what it trains on; None for one device.
      like: shapes of a `TrainState`, and where each array lies.
    """

    width = 1

    def __init__(self, spec: RunSpec, execution: Execution, devices: Sequence[Any] = ()):
        """Makes the program; nothing is compiled yet.

        Args:
          spec: the run.
          execution: how it is run.
          devices: to make the mesh of; those of all processes if there are none.

        Raises:
          ValueError: there are too few devices for the mesh, or several processes of which some would have none.
        """
        self.spec, self.execution = spec, execution
        count = execution.mesh_shape.devices
        if not devices and jax.process_count() > 1 and count != jax.device_count():
            raise ValueError(
                f"{jax.process_count()} processes have {jax.device_count()} devices, and execution.mesh = "
                f"{execution.mesh!r} takes {count}: each process has to have its share"
            )
        self.mesh = make_mesh(execution.mesh_shape.as_dict(), devices or jax.devices())
        self.graphdef, _, _ = self._split(nnx.eval_shape(lambda: self._model(jnp.uint32(0))))
        shapes: TrainState = jax.eval_shape(self._init, jax.ShapeDtypeStruct((), jnp.uint32))
        # On one device too they are named, as those of a restored state are: otherwise the step would be compiled once
        # for each.
        where = self.mesh or (devices or jax.local_devices())[0]
        shardings, self._share = placing.shardings(shapes, where), batch_sharding(where)
        self.like: TrainState = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes, shardings
        )
        self.init = jax.jit(self._init, compiler_options=compilations.quick(), out_shardings=shardings)
        self._step = jax.jit(self.take_step, donate_argnums=0, out_shardings=(shardings, None))
        self._compiled: jax.stages.Compiled | None = None
        self._compiling = threading.Lock()

    def model(self, state: TrainState) -> Decoder:
        """The model of a state."""
        return nnx.merge(self.graphdef, state.params, state.bias)

    def step(self, state: TrainState, batch: Array, hyper: Hyper) -> tuple[TrainState, dict[str, Array]]:
        """`take_step`, compiled. It takes the memory of `state` for the one that it returns."""
        return self.compile()(state, batch, hyper)

    def compile(self) -> jax.stages.Compiled:
        """The step as it is compiled, once: by this thread or by another one that has begun to."""
        with self._compiling:
            if self._compiled is None:
                with compiling_alone(self):
                    self._compiled = self.lower().compile()
            return self._compiled

    def read(self, state: TrainState) -> TrainState:
        """The state itself; see `Lane.read`."""
        return state

    def place(self, rows: Callable[[slice], np.ndarray]) -> Array:
        """A batch on its devices, of which this process reads its own share: `rows(slice)` are some of its rows."""
        return placing.place(rows, self.batch_shape, self._share)

    def lower(self) -> jax.stages.Lowered:
        """The step for the compiler; its devices need not be here."""
        batch = jax.ShapeDtypeStruct(self.batch_shape, jnp.int32, sharding=self._share)
        return self._step.lower(self.like, batch, jax.eval_shape(lambda: Hyper.of(self.spec)))

    @property
    def batch_shape(self) -> tuple[int, int]:
        """Of a batch of windows, [B, S + 1]."""
        return self.spec.budget.batch_size, self.spec.data.sequence_length + 1

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

    def take_step(
        self, state: TrainState, batch: Int[Array, "B S1"], hyper: Hyper
    ) -> tuple[TrainState, dict[str, Array]]:
        """One optimizer step on a batch of B windows of S+1 tokens, not compiled; returns the new state and metrics."""
        grads, losses, counts = self._gradients(state.params, state.bias, batch, hyper)
        rate = rate_at(self.spec.optimizer, self.spec.budget.steps, state.step, hyper.learning_rate)
        params, optimizer, norm = updated(
            self.spec.optimizer,
            state.params,
            grads,
            state.optimizer,
            rate,
            hyper.weight_decay,
            sharded=self.mesh is not None,
        )
        bias = move_bias(state.bias, counts.loads, hyper.gamma)
        metrics = {
            "loss": losses.loss,
            "cross_entropy": losses.cross_entropy,
            "learning_rate": rate,
            "gradient_norm": norm,
        }
        if counts.loads:
            metrics |= {
                "load_balancing_loss": losses.load_balancing_loss,
                "router_z_loss": losses.router_z_loss,
                **load_metrics(counts.loads, counts.dropped),
            }
        if counts.loads and self.execution.mesh_shape.expert > 1:
            metrics[LOST] = counts.lost
        return TrainState(params, bias, optimizer, state.step + 1), metrics

    def _gradients(
        self, params: nnx.State, bias: nnx.State, batch: Array, hyper: Hyper
    ) -> tuple[nnx.State, Losses, Counts]:
        compute = partial(gradients, self.graphdef, self.spec, self.execution)
        if self.mesh is None:
            return compute(params, bias, batch, hyper)
        # The optimizer, outside, is elementwise but for a norm: the compiler shards it as its arguments are. JAX's own
        # account of what varies over the mesh is off, since kernels of other libraries do not keep it.
        whole, specs = PartitionSpec(), placing.partition_specs(params, self.mesh)
        share = PartitionSpec(self.mesh.axis_names)
        return jax.shard_map(
            compute,
            mesh=self.mesh,
            in_specs=(specs, whole, share, whole),
            out_specs=(specs, whole, whole),
            check_vma=False,
        )(params, bias, batch, hyper)


@contextlib.contextmanager
def compiling_alone(program: Program) -> Iterator[None]:
    """Waits while another process of this machine compiles the same, to find it in the cache then.

    Those that train one run together compile together: some compilers have each of them time a share of the kernels.
    """
    with contextlib.ExitStack() as stack:
        if jax.process_count() == 1:
            with contextlib.suppress(RuntimeError):  # no home folder
                path = cache.folder() / "compiling" / program_key(program.spec, program.execution)
                stack.enter_context(cache.alone(path))
        yield


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
