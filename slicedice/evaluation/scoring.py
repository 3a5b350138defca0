"""What every evaluation does on the device: cross-entropy of tokens under a model, summed for each row."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from slicedice.evaluation.rows import Score
from slicedice.model import Decoder
from slicedice.moe import Routing
from slicedice.spec import RunSpec

AS_TRAINED = "as_trained"
WITHOUT_CAPACITY = "without_capacity"


class Scorer:
    """Nats of rows of tokens under a model.

    Args:
      model: the model.
      routing: how its tokens reach experts.
    """

    def __init__(self, model: Decoder, routing: Routing):
        self._graphdef, self._state = nnx.split(model)
        self._routing = routing

    def __call__(
        self, tokens: Int[np.ndarray, "B S1"], text: Bool[np.ndarray, "B S"], counted: Bool[np.ndarray, "B S"]
    ) -> Float[Array, " B"]:
        """Cross-entropy in nats, summed over the targets of each row that count.

        Args:
          tokens: ids; inputs are `[:, :-1]`, targets `[:, 1:]`.
          text: False where an input is padding, which then takes no expert's room.
          counted: where a target counts.
        """
        return _nats(self._graphdef, self._routing, self._state, *map(jnp.asarray, (tokens, text, counted)))


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
        return {AS_TRAINED: Scorer(model, Routing())}
    group = routing.group and routing.group // spec.data.sequence_length * window
    return {
        AS_TRAINED: Scorer(model, routing._replace(group=group)),
        WITHOUT_CAPACITY: Scorer(model, Routing()),
    }


@partial(jax.jit, static_argnums=(0, 1))
def _nats(
    graphdef: nnx.GraphDef,
    routing: Routing,
    state: nnx.State,
    tokens: Int[Array, "B S1"],
    text: Bool[Array, "B S"],
    counted: Bool[Array, "B S"],
) -> Float[Array, " B"]:
    logits, _ = nnx.merge(graphdef, state)(tokens[:, :-1], text, routing)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    return jnp.where(counted, losses, 0.0).sum(1)
