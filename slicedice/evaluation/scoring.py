"""What every evaluation does on the device: cross-entropy of tokens under a model, summed for each row."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from slicedice.evaluation.rows import Score
from slicedice.model import Decoder
from slicedice.model.cross_entropy import token_nats
from slicedice.moe import Routing
from slicedice.parallel.mesh import axes, batch_sharding
from slicedice.parallel.placing import mesh_of, partition_specs, place
from slicedice.spec import RunSpec

AS_TRAINED = "as_trained"
WITHOUT_CAPACITY = "without_capacity"


class Scorer:
    """Nats of rows of tokens under a model, on the devices that it lies on.

    Args:
      model: the model.
      routing: how its tokens reach experts.
    """

    def __init__(self, model: Decoder, routing: Routing):
        self._graphdef, self._state = nnx.split(model)
        self._routing, self._mesh = routing, mesh_of(self._state)

    def __call__(
        self, tokens: Int[np.ndarray, "B S1"], text: Bool[np.ndarray, "B S"], counted: Bool[np.ndarray, "B S"]
    ) -> Float[Array, " B"]:
        """Cross-entropy in nats, summed over the targets of each row that count.

        Args:
          tokens: ids; inputs are `[:, :-1]`, targets `[:, 1:]`. As many rows for each device of a mesh.
          text: False where an input is padding, which then takes no expert's room.
          counted: where a target counts.
        """
        where = batch_sharding(self._mesh or jax.local_devices()[0])
        batch = (place(rows.__getitem__, rows.shape, where) for rows in (tokens, text, counted))
        batch = tuple(batch)
        nats, lost = _nats(self._graphdef, self._routing, self._mesh, self._state, *batch)
        while self._mesh and int(lost):
            # A device was sent more than it has room for: what it scored is wrong. From now on there is twice the room.
            assert self._routing.slack is not None  # None is room for all
            self._routing = self._routing._replace(slack=2 * self._routing.slack)
            nats, lost = _nats(self._graphdef, self._routing, self._mesh, self._state, *batch)
        return nats


def scorers(model: Decoder, spec: RunSpec, routing: Routing, window: int) -> dict[str, Score]:
    """The ways to score a trained model: as it was trained, and where that has a capacity, without it as well.

    Much of what dropping costs in training may be dropping at evaluation.

    Args:
      model: the model.
      spec: its run.
      routing: how its tokens reached experts in training.
      window: positions of a whole row. A routing group has as many of them as it had sequences in training.
    """
    if routing.capacity_factor is None:
        return {AS_TRAINED: Scorer(model, routing._replace(group=None))}
    group = routing.group and routing.group // spec.data.sequence_length * window
    return {
        AS_TRAINED: Scorer(model, routing._replace(group=group)),
        WITHOUT_CAPACITY: Scorer(model, routing._replace(capacity_factor=None, group=None)),
    }


@partial(jax.jit, static_argnums=(0, 1, 2))
def _nats(
    graphdef: nnx.GraphDef,
    routing: Routing,
    mesh: Mesh | None,
    state: nnx.State,
    tokens: Int[Array, "B S1"],
    text: Bool[Array, "B S"],
    counted: Bool[Array, "B S"],
) -> tuple[Float[Array, " B"], Int[Array, ""]]:
    """Nats of each row, and assignments that found no room on the device of their expert."""

    def compute(state, tokens, text, counted):
        model = nnx.merge(graphdef, state)
        tables = model.tables()
        x, aux = model.hidden(tables, tokens[:, :-1], text, routing)
        nats = token_nats(x.reshape(-1, x.shape[-1]), tables.head, tokens[:, 1:].reshape(-1))
        lost = jax.lax.psum(sum((own.lost.sum() for own in aux), jnp.int32(0)), axes())
        return jnp.where(counted, nats.reshape(counted.shape), 0.0).sum(1), lost

    if mesh is None:
        return compute(state, tokens, text, counted)
    share = PartitionSpec(mesh.axis_names)
    specs = (partition_specs(state, mesh), share, share, share)
    whole = PartitionSpec()
    shared = jax.shard_map(compute, mesh=mesh, in_specs=specs, out_specs=(share, whole), check_vma=False)
    nats, lost = shared(state, tokens, text, counted)
    # Whole on every device, since every process reads it.
    return jax.lax.with_sharding_constraint(nats, NamedSharding(mesh, whole)), lost
