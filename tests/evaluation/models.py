"""What the tests of this room share: models that are sure of what they say, and their losses one text at a time."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from slicedice.model import Decoder
from slicedice.spec import RunSpec


def sure_model(spec: RunSpec, draw: np.random.Generator) -> Decoder:
    """A model whose logits are far apart. Initial ones are all but equal, and every token would cost the same."""
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: Decoder(spec.model, key=jax.random.key(0))))
    weights = jax.tree.map(lambda x: jnp.asarray(draw.normal(0, 1, x.shape), x.dtype), shapes)
    return nnx.merge(graphdef, weights)


class Naive:
    """The losses of every token of a text behind its first, by numpy from the logits of one unpadded-looking row."""

    def __init__(self, model: Decoder, window: int):
        graphdef, state = nnx.split(model)
        self._forward, self._window = jax.jit(lambda tokens: nnx.merge(graphdef, state)(tokens)[0]), window

    def losses(self, tokens: np.ndarray) -> np.ndarray:
        """Nats of tokens[1:], float64; at most a window of them. What follows the text is no text: zeros."""
        targets = np.asarray(tokens[1:], np.int64)
        assert 0 < targets.size <= self._window
        inputs = np.zeros((1, self._window), np.int32)
        inputs[0, : targets.size] = tokens[:-1]
        logits = np.asarray(self._forward(jnp.asarray(inputs)), np.float64)[0, : targets.size]
        shifted = logits - logits.max(1, keepdims=True)
        return np.log(np.exp(shifted).sum(1)) - shifted[np.arange(targets.size), targets]
