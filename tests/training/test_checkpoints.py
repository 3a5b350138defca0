"""What is saved is restored to the bit or not at all, from the newest that is whole, also of earlier attempts."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from slicedice.training import CheckpointError, Checkpoints, Hyper, TrainState, checksum
from tests.training.damage import DAMAGES, damage, flip

FOREVER = 10**9


@pytest.fixture
def state(start) -> TrainState:
    """Its fields are all different from a fresh one's."""
    return jax.tree.map(lambda x: x + jnp.ones((), x.dtype), start)


Save = Callable[..., TrainState]


@pytest.fixture
def save(state: TrainState) -> Save:
    """Saves states after the given steps in a folder; returns the last of them. No two states are alike."""

    def saved(folder: Path, *steps: int, earlier: Any = ()) -> TrainState:
        checkpoints = Checkpoints(folder, earlier)
        for step in steps:
            checkpoints.save(_after(state, step))
        checkpoints.close()
        return _after(state, steps[-1])

    return saved


def _after(state: TrainState, step: int) -> TrainState:
    params = jax.tree.map(lambda x: x + jnp.asarray(step, x.dtype), state.params)
    return state._replace(params=params, step=jnp.int32(step))


def _restored(checkpoints: Checkpoints, like: TrainState) -> TrainState:
    state = checkpoints.restore(like)
    assert state is not None
    return state


def _assert_same(got: Any, want: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, got, want)


def _steps(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "training").iterdir())


def test_a_checkpoint_holds_everything(save: Save, program, tmp_path: Path):
    state, fresh = save(tmp_path / "a", 3), program().init(jnp.uint32(0))
    assert Checkpoints(tmp_path / "elsewhere").restore(fresh) is None
    assert not (tmp_path / "elsewhere").exists()
    got = Checkpoints(tmp_path / "a").restore(fresh)
    assert jax.tree.structure(got) == jax.tree.structure(state)
    _assert_same(got, state)


def test_a_restored_state_runs_in_the_program_as_it_is_compiled(save: Save, program, run, batch, tmp_path: Path):
    """To XLA it is the same argument as a fresh one, or every run would compile twice beside a resumed one."""
    hyper, state = Hyper.of(run()), save(tmp_path, 3)
    fresh = program().init(jnp.uint32(0))
    restored = Checkpoints(tmp_path).restore(state)
    program().step(fresh, batch, hyper)
    compiled = program().compile()
    program().step(restored, batch, hyper)  # which would refuse another
    assert program().compile() is compiled


def test_the_two_newest_are_kept_and_the_newest_is_restored(save: Save, tmp_path: Path):
    state = save(tmp_path, 3, 5, 12)
    assert _steps(tmp_path) == ["12", "5"]
    _assert_same(_restored(Checkpoints(tmp_path), state), state)


def test_half_a_checkpoint_is_none(save: Save, tmp_path: Path):
    state = save(tmp_path, 3)
    (tmp_path / "training" / "7.orbax-checkpoint-tmp" / "default").mkdir(parents=True)
    _assert_same(_restored(Checkpoints(tmp_path), state), state)


@pytest.mark.usefixtures("abandoned_reads")
@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_told_where_there_is_no_other(how: str, save: Save, tmp_path: Path):
    state = save(tmp_path, 3)
    damage(tmp_path / "training" / "3", how)
    with pytest.raises(CheckpointError, match=f"step 3 in {tmp_path / 'training'} cannot be read.*sweep retry"):
        Checkpoints(tmp_path).restore(state)
    assert _steps(tmp_path) == ["3"]


@pytest.mark.usefixtures("abandoned_reads")
@pytest.mark.parametrize("step", [4, 5, 6])
def test_who_goes_on_from_the_one_before_saves_as_ever(save: Save, state: TrainState, tmp_path: Path, step: int):
    """As in an attempt that was out of memory while it read the newest, and goes on with a smaller micro-batch."""
    save(tmp_path, 3, 5)
    damage(tmp_path / "training" / "5", "flipped")
    checkpoints = Checkpoints(tmp_path)
    assert int(_restored(checkpoints, state).step) == 3
    again = _after(state, step)._replace(bias=jax.tree.map(lambda x: x + 7, state.bias))
    checkpoints.save(again)
    checkpoints.close()
    assert _steps(tmp_path) == ["3", str(step)], "what could not be read is in nobody's way"
    _assert_same(Checkpoints(tmp_path).restore(state), again)


@pytest.mark.parametrize("how", DAMAGES)
def test_where_the_newest_is_damaged_the_one_before_is_gone_on_from(how: str, save: Save, tmp_path: Path, caplog):
    before, newest = save(tmp_path, 3), save(tmp_path, 5)
    damage(tmp_path / "training" / "5", how)
    _assert_same(_restored(Checkpoints(tmp_path), newest), before)
    assert f"the checkpoint of step 5 in {tmp_path / 'training'} cannot be read" in caplog.text
    damage(tmp_path / "training" / "3", how)
    with pytest.raises(CheckpointError, match="step 5 in"):
        Checkpoints(tmp_path).restore(newest)


@pytest.mark.usefixtures("abandoned_reads")
def test_no_flipped_bit_is_restored(save: Save, tmp_path: Path, rng: np.random.Generator):
    """Orbax itself takes most of them for what was saved."""
    state = save(tmp_path, 3)
    data = [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name == "d"]
    largest, noticed = max(data, key=lambda path: path.stat().st_size), 0
    for _ in range(12):
        place, bit = int(rng.integers(largest.stat().st_size)), int(rng.integers(8))
        flip(largest, place, bit)
        try:
            got = Checkpoints(tmp_path).restore(state)
        except CheckpointError:
            noticed += 1
        else:
            _assert_same(got, state)  # it holds more than what is read
        flip(largest, place, bit)
    assert noticed > 0
    _assert_same(Checkpoints(tmp_path).restore(state), state)


def test_what_was_changed_is_named(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    state, read = save(tmp_path, 3), Checkpoints._read
    names = [name for name in _leaves(Checkpoints(tmp_path)._read(tmp_path, 3, state)) if "embedding" in name]

    def other(self: Checkpoints, *arguments: Any) -> dict[str, jax.Array]:
        leaves = dict(read(self, *arguments))
        leaves[names[0]] = leaves[names[0]].at[0, 0].multiply(-1)
        return leaves

    monkeypatch.setattr(Checkpoints, "_read", other)
    with pytest.raises(CheckpointError, match=f"{names[0]} is not as it was saved"):
        Checkpoints(tmp_path).restore(state)


def _leaves(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: leaf for name, leaf in leaves.items() if name != checksum.NAME}


@pytest.mark.usefixtures("abandoned_reads")
def test_a_checkpoint_of_another_model(save: Save, tmp_path: Path):
    state = save(tmp_path, 3)
    narrower = jax.tree.map(lambda x: x[..., :2] if x.ndim > 1 else x, state)
    with pytest.raises(CheckpointError, match=r"is of another model: of .* it has"):
        Checkpoints(tmp_path).restore(narrower)
    with pytest.raises(CheckpointError, match=r"is of another model: of .* it has"):
        Checkpoints(tmp_path).restore(state._replace(bias=state.params))


def test_a_finished_run_leaves_its_model_alone(save: Save, tmp_path: Path):
    """Parameters and biases by their paths, with their checksums, and no training state."""
    state = save(tmp_path, 3)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_model(state)
    checkpoints.drop_training_state()
    checkpoints.close()
    assert Checkpoints(tmp_path).restore(state) is None
    with ocp.StandardCheckpointer() as reader:
        leaves = reader.restore(tmp_path / "model")
    params, bias = (jax.tree.leaves_with_path(tree) for tree in (state.params, state.bias))
    want = {
        f"{i}.{jax.tree_util.keystr(path, simple=True, separator='.')}": leaf
        for i, tree in enumerate((params, bias))
        for path, leaf in tree
    }
    assert leaves.keys() == {*want, "checksums"}
    _assert_same(_leaves(leaves), want)
    _assert_same(Checkpoints(tmp_path).restore_model((state.params, state.bias)), (state.params, state.bias))


@pytest.mark.usefixtures("abandoned_reads")
@pytest.mark.parametrize("how", DAMAGES)
def test_a_finished_model_that_is_damaged_is_told(how: str, save: Save, tmp_path: Path):
    state = save(tmp_path, 3)
    Checkpoints(tmp_path).save_model(state)
    damage(tmp_path / "model", how)
    with pytest.raises(CheckpointError, match=f"{tmp_path / 'model'} is damaged"):
        Checkpoints(tmp_path).restore_model((state.params, state.bias))


# Earlier attempts, the newest first, with the steps that they have metrics for.


def test_earlier_attempts_are_gone_on_from_up_to_the_steps_they_have_metrics_for(save: Save, tmp_path: Path):
    first, second = tmp_path / "1", tmp_path / "2"
    save(first, 2, 4)
    like = save(second, 6, 8)
    for most, step in ((FOREVER, 8), (8, 8), (7, 6), (5, 4), (0, 4)):
        earlier = [(second, most), (first, FOREVER)]
        assert _restored(Checkpoints(tmp_path / "3", earlier), like).step == step
    assert _restored(Checkpoints(tmp_path / "3", [(second, 5), (first, 3)]), like).step == 2
    assert Checkpoints(tmp_path / "3", [(second, 5), (first, 1)]).restore(like) is None
    assert Checkpoints(tmp_path / "3", [(tmp_path / "none", 5)]).restore(like) is None
    assert not (tmp_path / "none").exists()
    assert (_steps(first), _steps(second)) == (["2", "4"], ["6", "8"]), "to look changes nothing"


def test_the_newest_attempt_comes_first_and_this_one_before_all(save: Save, tmp_path: Path):
    """One that had to fall back is of fewer steps than those before it."""
    like = save(tmp_path / "1", 8)
    save(tmp_path / "2", 6)
    earlier = [(tmp_path / "2", FOREVER), (tmp_path / "1", FOREVER)]
    assert _restored(Checkpoints(tmp_path / "3", earlier), like).step == 6
    save(tmp_path / "3", 4, earlier=earlier)
    assert _restored(Checkpoints(tmp_path / "3", earlier), like).step == 4


@pytest.mark.usefixtures("abandoned_reads")
def test_earlier_attempts_stand_in_for_what_is_damaged(save: Save, tmp_path: Path):
    want, like = save(tmp_path / "1", 2), save(tmp_path / "2", 4)
    damage(tmp_path / "2", "flipped")
    earlier = [(tmp_path / "2", FOREVER), (tmp_path / "1", FOREVER)]
    _assert_same(_restored(Checkpoints(tmp_path / "3", earlier), like), want)
    damage(tmp_path / "1", "cut")
    with pytest.raises(CheckpointError, match=f"step 4 in {tmp_path / '2'}"):
        Checkpoints(tmp_path / "3", earlier).restore(like)


def test_earlier_ones_go_when_there_are_two_of_its_own(save: Save, tmp_path: Path):
    save(tmp_path / "1", 2)
    earlier = [(tmp_path / "2", FOREVER), (tmp_path / "1", FOREVER)]
    save(tmp_path / "2", 3)
    save(tmp_path / "3", 4, earlier=earlier)
    assert (_steps(tmp_path / "1"), _steps(tmp_path / "2")) == (["2"], ["3"])
    save(tmp_path / "3", 6, earlier=earlier)
    assert sorted(path.parent.name for path in tmp_path.glob("*/training")) == ["3"]
    assert _steps(tmp_path / "3") == ["4", "6"]


def test_an_earlier_attempts_finished_model_stays(save: Save, tmp_path: Path):
    """It may have finished the run after all, when this one had begun already."""
    save(tmp_path / "1", 2)
    (tmp_path / "1" / "model").mkdir()
    earlier = [(tmp_path / "1", FOREVER)]
    save(tmp_path / "2", 4, earlier=earlier)
    save(tmp_path / "2", 6, earlier=earlier)
    assert not (tmp_path / "1" / "training").exists()
    assert (tmp_path / "1" / "model").exists()


def test_earlier_ones_go_with_the_result(save: Save, tmp_path: Path):
    save(tmp_path / "1", 2)
    state = save(tmp_path / "3", 4)
    checkpoints = Checkpoints(tmp_path / "3", [(tmp_path / "1", FOREVER)])
    checkpoints.save_model(state)
    checkpoints.drop_training_state()
    checkpoints.close()
    assert not (tmp_path / "1" / "training").exists()
    assert _steps(tmp_path / "3") == []
    _assert_same(Checkpoints(tmp_path / "3").restore_model((state.params, state.bias)), (state.params, state.bias))


def test_an_earlier_attempt_that_is_cleared_meanwhile_is_passed_over(save: Save, tmp_path: Path):
    want = save(tmp_path / "1", 2)
    save(tmp_path / "2", 4)
    checkpoints = Checkpoints(tmp_path / "3", [(tmp_path / "2", FOREVER), (tmp_path / "1", FOREVER)])
    shutil.rmtree(tmp_path / "2")
    _assert_same(_restored(checkpoints, want), want)
