"""Runs of one seed begin with the same values wherever their models have parameters of the same name and shape."""

import itertools

import jax
import numpy as np
import pytest
from flax import nnx

from slicedice.model import Decoder

LAYERS = [
    {"model.experts": "dense"},
    {"model.experts": "n=8 k=2 g=1/2"},
    {"model.experts": "n=8 k=4 g=1/4"},
    {"model.experts": "n=8 k=1 g=1/2 + n=16 k=2 g=1/4"},
    {"model.experts": "n=4 k=1 g=1/2 + n=16 k=2 g=1/4"},
    {"model.experts": "n=8 k=2 g=1/4", "model.generalist": "1/2", "model.wiring": "plain"},
    {"model.experts": "n=8 k=2 g=1/4", "model.generalist": "1/2", "model.wiring": "parallel"},
    {"model.experts": "n=8 k=1 g=1/4 + n=16 k=2 g=1/8", "model.generalist": "1/2", "model.wiring": "parallel"},
]


@pytest.fixture(scope="module")
def initial(tiny):
    """Parameters by path, for a layer and a seed."""

    def values(layer: dict[str, str], seed: int) -> dict[str, np.ndarray]:
        model = Decoder(tiny(layer)[0].model, key=jax.random.key(seed))
        leaves = jax.tree.leaves_with_path(nnx.state(model, nnx.Param))
        return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}

    return values


def test_arms_of_one_seed_begin_alike(initial, rng: np.random.Generator):
    seed = int(rng.integers(2**31))
    models = [initial(layer, seed) for layer in LAYERS]
    shared = set()
    for one, other in itertools.combinations(models, 2):
        for path in one.keys() & other.keys():
            if one[path].shape == other[path].shape:
                shared.add(path)
                np.testing.assert_array_equal(one[path], other[path], err_msg=path)
    # What the arms were made to share: routers, second sets and generalists among them.
    for part in ("['embedding']", "['attention']", "['sets'][0]['router']", "['sets'][1]['experts']", "['always_on']"):
        assert any(part in path for path in shared), (part, shared)


def test_parts_of_one_model_and_other_seeds_begin_apart(initial):
    layer = LAYERS[-1]
    model, other = initial(layer, 0), initial(layer, 1)
    weights = {path: value for path, value in model.items() if value.std() > 0}  # gains of norms are 1
    assert all((weights[path] != other[path]).mean() > 0.99 for path in weights)
    for one, two in itertools.combinations(weights, 2):
        size = min(weights[one].size, weights[two].size)
        same = weights[one].ravel()[:size] == weights[two].ravel()[:size]
        assert same.mean() < 0.01, (one, two)
