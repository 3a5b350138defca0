"""Decoders with unit-scale random parameters, without waiting for their own initialisation to compile."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from slicedice.model import Decoder
from slicedice.spec import ModelSpec


@pytest.fixture
def draw(rng: np.random.Generator) -> Callable[[Any], Any]:
    """Fills a tree of shapes: gains around 1, router biases 0, matrices that keep the scale of what they meet."""

    def leaf(path, shape):
        name = jax.tree_util.keystr(path)
        values = rng.standard_normal(shape.shape)
        if "scale" in name:
            values = 1 + 0.3 * values
        elif "bias" in name:
            values = 0 * values
        else:
            values = values / shape.shape[-2] ** 0.5
        return jnp.asarray(values, shape.dtype)

    return lambda shapes: jax.tree.map_with_path(leaf, shapes)


@pytest.fixture
def build(draw) -> Callable[..., tuple[nnx.GraphDef, nnx.State]]:
    """Builds a decoder of a spec and draws its state."""

    def built(spec: ModelSpec, **options) -> tuple[nnx.GraphDef, nnx.State]:
        shapes = nnx.eval_shape(lambda: Decoder(spec, key=jax.random.key(0), **options))
        graphdef, state = nnx.split(shapes)
        return graphdef, draw(state)

    return built
