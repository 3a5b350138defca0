"""A checkpoint goes to whatever mesh asks for it, and to no other model."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slicedice.training import CheckpointError, Checkpoints


@pytest.mark.parametrize(
    ("layer", "meshes"),
    [
        ("indivisible", ("data=2 expert=4", "data=8")),
        ("homogeneous", ("", "expert=8")),
        ("indivisible", ("replica=2 data=2", "")),
    ],
)
def test_another_mesh(layer: str, meshes: tuple[str, str], tmp_path: Path, programs):
    before, after = (programs(layer, mesh) for mesh in meshes)
    draw = np.random.default_rng(0)
    state = jax.tree.map(lambda x: _other(x, draw), before.init(jnp.uint32(0)))
    Checkpoints(tmp_path).save(state)
    found = Checkpoints(tmp_path).restore(after.like)
    for got, want, like in zip(*map(jax.tree.leaves, (found, state, after.like)), strict=True):
        np.testing.assert_array_equal(got, want)
        assert got.sharding.is_equivalent_to(like.sharding, got.ndim)


def _other(leaf: jax.Array, draw: np.random.Generator) -> jax.Array:
    """Of the same kind; all moments and biases of a fresh state are alike."""
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    return jax.device_put(draw.standard_normal(leaf.shape).astype(leaf.dtype), leaf.sharding)


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ("heterogeneous", r"of bias\S* it has of shape .*, and this run nothing|and this run of shape"),
        ("indivisible", r"of \S+ it has of shape \(2, 8.*\), and this run of shape \(2, 6"),
    ],
)
def test_another_spec(other: str, difference: str, tmp_path: Path, programs):
    mesh = "data=2 expert=4"
    state = programs("homogeneous", mesh).init(jnp.uint32(0))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state)
    checkpoints.save_model(state)
    found = programs(other, mesh).like
    with pytest.raises(CheckpointError, match=f"step 0 in {tmp_path / 'training'} is of another model: {difference}"):
        Checkpoints(tmp_path).restore(found)
    with pytest.raises(CheckpointError, match=f"is of another model: {difference}"):
        Checkpoints(tmp_path).restore_model((found.params, found.bias))
