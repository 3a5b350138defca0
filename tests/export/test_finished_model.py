"""The finished model of a run is restored as it was saved, and what cannot be restored is told by the run's folder."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slicedice.training import CheckpointError, Checkpoints
from tests.training.damage import DAMAGES, damage

Model = tuple[Any, Any]


@pytest.fixture
def saved(tmp_path: Path, ours) -> tuple[Path, Model]:
    """A run's folder and the model in it, its biases not zero."""
    mine = ours({"model.experts": "n=4 k=2 g=1/2", "router.gamma": 1e-3})
    bias = jax.tree.map(lambda x: x + jnp.arange(x.size, dtype=x.dtype).reshape(x.shape), mine.bias)
    Checkpoints(tmp_path / "run" / "attempts/2/checkpoints").save_model(SimpleNamespace(params=mine.params, bias=bias))  # pyright: ignore[reportArgumentType]
    return tmp_path / "run", (mine.params, bias)


def shapes(model: Model) -> Model:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), model)


def test_it_is_restored_to_the_bit_by_shapes_or_by_arrays(saved):
    folder, model = saved
    checkpoints = Checkpoints(folder / "attempts/2/checkpoints")
    for like in (shapes(model), jax.tree.map(jnp.zeros_like, model)):
        got = checkpoints.restore_model(like)
        assert jax.tree.structure(got) == jax.tree.structure(model)
        jax.tree.map(np.testing.assert_array_equal, got, model)
    checkpoints.close()
    assert [path.name for path in (folder / "attempts/2/checkpoints").iterdir()] == ["model"], "reading makes nothing"


def test_a_run_without_a_finished_model(tmp_path: Path, saved):
    with pytest.raises(CheckpointError, match=f"the run {tmp_path / 'other'} has no finished model"):
        Checkpoints(tmp_path / "other" / "attempts/2/checkpoints").restore_model(saved[1])
    assert not (tmp_path / "other").exists()


@pytest.mark.usefixtures("abandoned_reads")
@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_model(how: str, saved):
    folder, model = saved
    damage(folder / "attempts/2/checkpoints", how)
    with pytest.raises(CheckpointError, match=f"the run {folder} cannot be read"):
        Checkpoints(folder / "attempts/2/checkpoints").restore_model(shapes(model))


@pytest.mark.usefixtures("abandoned_reads")
def test_a_model_of_other_shapes(saved):
    folder, (params, bias) = saved
    narrower = jax.tree.map(lambda x: x[..., :2] if x.ndim > 1 else x, params)
    for like in ((narrower, bias), (params, params)):
        with pytest.raises(CheckpointError, match=f"the run {folder} cannot be read"):
            Checkpoints(folder / "attempts/2/checkpoints").restore_model(like)
