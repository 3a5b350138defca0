"""The door: which runs it takes, what it says of others, and that a folder is written whole or not at all."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from slicedice import export, hugging_face
from slicedice.spec import run_id, run_name
from slicedice.store import Kind
from tests import endings

MOE = {"model.experts": "n=4 k=2 g=1/2"}

REFUSED = {
    "two sets": ({"model.experts": "n=4 k=1 g=1/2 + n=8 k=2 g=1/4"}, ["heterogeneous", "n=8 k=2 g=1/4"]),
    "a generalist": ({"model.experts": "n=4 k=1 g=1/2", "model.generalist": "1/2"}, ["generalist", "1/2"]),
    "a capacity": ({**MOE, "router.kind": "default"}, ["capacity_factor = 1.2", "dropless"]),
    "a bias": ({**MOE, "router.gamma": 1e-3}, ["router.gamma = 0.001", "bias"]),
}


@pytest.mark.parametrize("fields", [MOE, {"model.experts": "dense"}])
def test_a_finished_run_is_written(fields: dict[str, Any], shelf, ours, tiny):
    mine = ours(fields)
    id_ = shelf.put(mine, tiny()[1])
    status, out, err = shelf.export(id_)
    assert (status, err) == (0, "")
    assert id_ in out
    folder = shelf.folder / "out"
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert shelf.export("", "other")[0] == 2
    assert not [path for path in shelf.folder.iterdir() if path.name.startswith(".")]
    assert sum(array.size for array in load_file(folder / "model.safetensors").values()) == mine.spec.model.parameters()
    said = (folder / "README.md").read_text()
    for fact in (run_name(mine.spec), id_, "2.2500", "4.5000", "0123456789ab", fields["model.experts"]):
        assert fact in said
    spec = said.split("```json\n")[1].split("```")[0]
    assert json.loads(spec)["budget"]["steps"] == 6


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_counterpart_is_refused_by_name(case: str, shelf, ours, tiny):
    fields, words = REFUSED[case]
    mine = ours(fields)
    status, out, err = shelf.export(shelf.put(mine, tiny()[1]))
    assert (status, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert all(word in err for word in [run_name(mine.spec), *words]), err
    assert not (shelf.folder / "out").exists()


def test_what_would_have_no_effect_is_not_refused(ours):
    """A capacity and a bias where every expert is active."""
    spec = ours({"model.experts": "n=2 k=2 g=1/2", "router.kind": "default", "router.gamma": 0.1}).spec
    assert hugging_face.refusal(spec) == ""
    assert hugging_face.config(spec, 255)["router_aux_loss_coef"] == 0


@pytest.mark.parametrize("kind", [Kind.MISSING, Kind.CRASHED, Kind.PREEMPTED, Kind.DIVERGED])
def test_a_run_without_a_finished_model(kind: Kind, shelf, ours, tiny):
    mine = ours(MOE)
    id_ = shelf.put(mine, tiny()[1], kind=kind)
    if kind in (Kind.CRASHED, Kind.PREEMPTED):
        endings.fail(shelf.store.run(mine.spec), kind, "because")
    status, out, err = shelf.export(id_)
    assert (status, out) == (2, "")
    assert f"it is {kind}" in err
    assert ("because" in err) == (kind in (Kind.CRASHED, Kind.PREEMPTED))
    assert not (shelf.folder / "out").exists()


def test_a_run_whose_model_was_removed(shelf, ours, tiny):
    mine = ours(MOE)
    id_ = shelf.put(mine, tiny()[1])
    model = shelf.store.run(mine.spec).attempt().checkpoints / "model"
    model.rename(model.with_name("elsewhere"))
    status, _, err = shelf.export(id_)
    assert status == 2
    assert str(model) in err
    assert not (shelf.folder / "out").exists()


def test_a_run_by_name_and_by_the_beginning_of_its_id(shelf, ours, tiny):
    one, other = ours(MOE), ours({**MOE, "optimizer.learning_rate": 0.25})
    ids = [shelf.put(model, tiny()[1]) for model in (one, other, ours({"model.experts": "dense"}))]
    assert run_name(one.spec) == run_name(other.spec)
    status, _, err = shelf.export(run_name(one.spec))
    assert status == 2
    assert all(id_ in err for id_ in ids[:2])
    assert ids[2] not in err
    assert shelf.export("tiny-dense-seed0")[0] == 0
    assert shelf.export(ids[1][:8], "other")[0] == 0
    for unknown in ("tiny-dense", "", "zzz"):
        status, _, err = shelf.export(unknown, "unknown")
        assert status == 2
        assert f"{unknown!r}" in err


def test_a_damaged_run_does_not_hide_others(shelf, ours, tiny):
    shelf.put(ours(MOE), tiny()[1])
    (shelf.store.run(ours(MOE).spec).path / "spec.json").write_text("{")
    shelf.put(ours({"model.experts": "dense"}), tiny()[1])
    assert shelf.export("tiny-dense-seed0")[0] == 0
    status, _, err = shelf.export(run_id(ours(MOE).spec), "other")
    assert status == 2
    assert "spec.json" in err


def test_only_an_empty_folder_is_written_to(shelf, ours, tiny):
    id_ = shelf.put(ours(MOE), tiny()[1])
    (shelf.folder / "taken").mkdir()
    (shelf.folder / "taken" / "mine.txt").write_text("mine")
    (shelf.folder / "file").write_text("mine")
    (shelf.folder / "empty").mkdir()
    for name in ("taken", "file"):
        status, _, err = shelf.export(id_, name)
        assert status == 2
        assert str(shelf.folder / name) in err
    assert [path.name for path in (shelf.folder / "taken").iterdir()] == ["mine.txt"]
    assert shelf.export(id_, "empty")[0] == 0
    assert shelf.export(id_, "new/deep")[0] == 0
    assert (shelf.folder / "new" / "deep" / "config.json").exists()


def test_what_cannot_be_a_folder_is_told(shelf, ours, tiny):
    id_ = shelf.put(ours(MOE), tiny()[1])
    (shelf.folder / "file").write_text("mine")
    (shelf.folder / "link").symlink_to(shelf.folder / "nowhere")
    for name in ("file/below", "link"):
        status, _, err = shelf.export(id_, name)
        assert status == 2
        assert f"{shelf.folder / name} cannot be a folder" in err
    assert (shelf.folder / "file").read_text() == "mine"


def test_weights_may_be_read_by_whom_the_rest_may(shelf, ours, tiny):
    assert shelf.export(shelf.put(ours(MOE), tiny()[1]))[0] == 0
    (folder,) = (path for path in shelf.folder.iterdir() if path.name != "runs")
    modes = {path.name: path.stat().st_mode for path in folder.iterdir()}
    assert set(modes.values()) == {modes["config.json"]}


@pytest.mark.parametrize(("experts", "told"), [("n=4 k=2 g=1/32", True), ("n=4 k=2 g=1/2", False)])
def test_experts_beyond_the_default_kernels_are_told(shelf, ours, tiny, experts: str, told: bool):
    fields = {"model.experts": experts, "model.waive": "active_width"}
    id_ = shelf.put(ours(fields), tiny(fields)[1])
    status, out, _ = shelf.export(id_)
    assert status == 0
    assert ('experts_implementation="eager"' in out) is told
    (card,) = shelf.folder.glob("*/README.md")
    assert ('experts_implementation="eager"' in card.read_text()) is told


def test_a_failure_on_the_way_leaves_nothing(shelf, ours, tiny, monkeypatch: pytest.MonkeyPatch):
    id_ = shelf.put(ours(MOE), tiny()[1])

    def fails(folder: Path, arrays: object):
        assert (folder / "config.json").exists()
        raise RuntimeError("pulled out")

    monkeypatch.setattr(export, "write_weights", fails)
    with pytest.raises(RuntimeError, match="pulled out"):
        shelf.export(id_)
    assert sorted(path.name for path in shelf.folder.iterdir()) == ["runs"]


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path, ours):
    arrays = dict(hugging_face.named(hugging_face.leaves(ours(MOE).params)))
    with pytest.raises(hugging_face.ExportError, match=r"model\.safetensors could not be written"):
        export.write_weights(tmp_path / "nowhere", arrays)


def test_a_parameter_without_a_name_is_not_left_out(ours):
    leaves = hugging_face.leaves(ours(MOE).params)
    with pytest.raises(hugging_face.ExportError, match=r"blocks\.moe\.sets\.1\.router"):
        list(hugging_face.named({**leaves, "blocks.moe.sets.1.router": leaves["blocks.moe.sets.0.router"]}))


def test_parts_hold_everything_once_in_order():
    sizes = {"a": 3, "b": 3, "c": 5, "d": 11, "e": 1, "f": 4, "g": 1}
    assert hugging_face.shards(sizes, 10) == [["a", "b"], ["c"], ["d"], ["e", "f", "g"]]
    assert hugging_face.shards({"a": 10}, 10) == [["a"]]
