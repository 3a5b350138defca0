"""Finished runs, evaluated again and on more; and runs that are evaluated while and after they train."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from slicedice import evaluate
from slicedice.data import prepare
from slicedice.store import Claim, Kind, RunFolder, Store, metrics
from slicedice.training import Checkpoints
from slicedice.work import Worker
from tests import endings
from tests.evaluation.files import boolq_row, hellaswag_row, write_lines

MOE = {"model.experts": "n=4 g=1/2", "router.kind": "default", "model.layers": 1}
DENSE = {"model.layers": 1}


def write_data(folder: Path) -> Path:
    """Named sets and tasks, a few of each."""
    for name in ("c4_en", "pile"):
        texts = ({"text": f"Text {i} of {name}. " * (1 + i)} for i in range(3))
        write_lines(folder / name / "val" / "val.jsonl", [*texts, b"{broken\n"])
    for name, row in (("hellaswag_val", hellaswag_row), ("hellaswag_train", hellaswag_row), ("dev", boolq_row)):
        write_lines(folder / f"{name}.jsonl", [row(i) for i in range(5)])
    write_lines(folder / "train.jsonl", [boolq_row(i) for i in range(5)])
    return folder


def train(store: Store, run: tuple) -> RunFolder:
    """Trains a run as a worker does, of tokens that are there."""
    d, folder = run[0].data, store.run(run[0])
    prepare(d.source, d.tokenizer, store.data, d.heldout_fraction)
    folder.create(*run)
    assert Worker(store).train(folder.path.name) is Kind.DONE
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny) -> Path:
    """A store with a dense run and one with a capacity, and beside it data."""
    room = tmp_path_factory.mktemp("room")
    draw = np.random.default_rng(0)
    rows = [{"text": "".join(draw.choice(list("abcd "), 60)) + "x"} for _ in range(8)]
    write_lines(room / "texts" / "all.jsonl", rows)
    store = Store(room / "runs").create()
    for fields in (DENSE, MOE):
        train(store, tiny({**fields, "data.source": str(room / "texts"), "router.group": 2}))
    shutil.rmtree(room / "texts")  # no door needs it any more
    write_data(room / "data")
    return room


class Desk:
    """The door, called beside a copy of the store."""

    def __init__(self, room: Path, capture: pytest.CaptureFixture[str]):
        self.room, self._capture, self.store = room, capture, Store(room / "runs")

    def run(self, *arguments: str) -> tuple[int, str, str]:
        self._capture.readouterr()
        status = evaluate.main([*arguments, "--store", str(self.room / "runs")])
        said = self._capture.readouterr()
        return status, said.out, said.err

    def json(self, *arguments: str) -> list[dict[str, Any]]:
        status, out, err = self.run(*arguments, "--json")
        assert (status, err) == (0, "")
        return json.loads(out)

    def folder(self, name: str) -> RunFolder:
        (id_,) = self.store.matching(name)
        return self.store.run(id_)


@pytest.fixture
def desk(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> Desk:
    shutil.copytree(trained, tmp_path / "room")
    monkeypatch.setenv("JAX_PLATFORMS", os.environ.get("JAX_PLATFORMS", "cpu"))
    return Desk(tmp_path / "room", capsys)


def test_held_out_text_comes_out_as_it_was_after_training(desk: Desk):
    for name in ("tiny-dense-seed0", "tiny-g1/2-*"):
        (report,) = desk.json("--run", name)
        folder = desk.folder(name)
        result = folder.result() or {}
        assert report["status"] == "as it was after training"
        assert report["fingerprint"] == result["provenance"]["data_fingerprint"]
        ways = {"as_trained": "held_out", "without_capacity": "without_capacity"}
        assert list(report["scores"]) == list(ways)[: len(report["scores"])]
        for way, scores in report["scores"].items():
            for domain, score in scores.items():
                assert score == pytest.approx(result["evaluation"][ways[way]][domain], rel=1e-6)
        assert len(report["scores"]) == (1 if "dense" in name else 2)
        stored = folder.evaluations()["held_out"]
        assert stored is not None
        assert stored["scores"] == report["scores"]


def test_what_differs_from_the_stored_result_is_told(desk: Desk):
    folder = desk.folder("tiny-dense-seed0")
    path = folder.path / "result.json"
    result = json.loads(path.read_text())
    result["evaluation"]["held_out"]["macro"]["nats"] -= 0.25
    path.write_text(json.dumps(result))
    _, out, _ = desk.run("--run", folder.path.name)
    assert "+0.250000 nats apart from what it was after training" in out


def test_sets_and_tasks_of_several_runs_are_told_and_kept(desk: Desk):
    data = str(desk.room / "data")
    arguments = ["--run", "tiny-*", "--sets", "paloma", "--tasks", "hellaswag,boolq", "--data_dir", data]
    status, out, err = desk.run(*arguments)
    assert (status, err) == (0, "")
    assert "a mean without dolma_books, " in out
    assert "val.jsonl:4 is not JSON" in out
    for folder in map(desk.store.run, desk.store.ids()):
        kept = folder.evaluations()
        assert list(kept) == ["boolq", "hellaswag", "paloma"]
        for name, content in kept.items():
            assert content is not None
            assert len(content["fingerprint"]) == 12
            assert content["settings"]["window"] == 16
            assert {"device", "finished", "git_revision", "data_fingerprint"} <= content["provenance"].keys()
            assert content["problems"]["counts"] == ({"not JSON": 2} if name == "paloma" else {})
            has_capacity = folder.path == desk.folder("tiny-g1/2-*").path
            assert list(content["scores"]) == ["as_trained", "without_capacity"][: 1 + has_capacity]
        assert folder.path.name in out


def test_what_is_known_is_not_scored_again(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    data = desk.room / "data"
    arguments = ["--run", "tiny-dense-seed0", "--sets", "pile", "--data_dir", str(data)]
    (first,) = desk.json(*arguments)
    assert first["status"] == "evaluated"
    monkeypatch.setattr(Checkpoints, "restore_model", lambda *_: pytest.fail("it was evaluated before"))
    (again,) = desk.json(*arguments)
    assert again["status"].startswith("evaluated before")
    assert again["scores"] == first["scores"]
    monkeypatch.undo()
    for more in (["--again"], ["--stride", "8"], ["--window", "8"]):
        (other,) = desk.json(*arguments, *more)
        assert other["status"] == "evaluated", more
    write_lines(data / "pile" / "val" / "val.jsonl", [{"text": "another"}])
    (other,) = desk.json(*arguments, "--window", "8")
    assert other["status"] == "evaluated"
    assert other["fingerprint"] != first["fingerprint"]


def test_a_text_of_ones_own_is_a_set_by_its_folders_name(desk: Desk):
    write_lines(desk.room / "mine" / "a" / "x.jsonl", [{"text": "some text"}])
    write_lines(desk.room / "mine" / "b" / "x.jsonl", [{"text": "other text"}])
    (report,) = desk.json("--run", "tiny-dense-seed0", "--sets", str(desk.room / "mine"))
    assert (report["name"], list(report["scores"]["as_trained"])) == ("mine", ["a", "b", "macro"])


def test_of_several_runs_those_that_cannot_are_named_and_the_others_go_on(desk: Desk):
    moe = desk.folder("tiny-g1/2-*")
    shutil.rmtree(moe.attempt().checkpoints / "model")
    status, out, err = desk.run("--run", "tiny-*")
    assert status == 1
    assert "as it was after training" in out
    assert str(moe.attempt().checkpoints / "model") in err
    (desk.folder("tiny-dense-seed0").path / "result.json").unlink()
    status, out, err = desk.run("--run", "tiny-*")
    assert status == 1
    assert "has no finished model: it is preempted after 6 steps" in err


def test_one_run_that_is_not_finished_is_refused(desk: Desk):
    folder = desk.folder("tiny-dense-seed0")
    (folder.path / "result.json").unlink()
    endings.fail(folder, Kind.CRASHED, "no luck")
    status, out, err = desk.run("--run", folder.path.name[:8])
    assert (status, out) == (2, "")
    assert "it is crashed after 6 steps (no luck)" in err


def test_tokens_are_found_by_what_they_are_or_missed_by_name(desk: Desk):
    (meta,) = (desk.room / "runs" / "data").glob("*/meta.json")
    (request,) = (desk.room / "runs" / "data").glob("*.json")
    request.unlink()  # as where another text was prepared under the name since
    (report,) = desk.json("--run", "tiny-dense-seed0")
    assert report["status"] == "as it was after training"
    content = json.loads(meta.read_text())
    meta.write_text(json.dumps({**content, "fingerprint": "0" * 12}))
    status, _, err = desk.run("--run", "tiny-dense-seed0")
    assert status == 2
    assert "texts are not in" in err


def test_a_vocabulary_that_is_larger_than_the_models(desk: Desk):
    (meta,) = (desk.room / "runs" / "data").glob("*/meta.json")
    content = json.loads(meta.read_text())
    (meta.parent / "byte_lengths.bin").write_bytes(np.ones(300, "<i4").tobytes())
    content["tokenizer"]["vocab_size"] = 300
    for name in ("train.bin", *(f"heldout-{i}.bin" for i in range(len(content["domains"])))):
        np.fromfile(meta.parent / name, np.uint8).astype("<u2").tofile(meta.parent / name)
    meta.write_text(json.dumps(content))
    status, _, err = desk.run("--run", "tiny-dense-seed0")
    assert status == 2
    assert "its tokenizer has 300 ids, and its model knows 256" in err


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--run", "nothing-*"], ["nothing-*", "status"]),
        (["--run", "tiny-*", "--tasks", "hella"], ["--tasks", "hella", "boolq, hellaswag, mmlu"]),
        (["--run", "tiny-*", "--sets", "a,a"], ["--sets", "each once"]),
        (["--run", "tiny-*", "--tasks", "mmlu"], ["mmlu", "no data folder is given"]),
        (["--run", "tiny-*", "--sets", "nowhere"], ["nowhere"]),
        (["--run", "tiny-*", "--sets", "paloma"], ["paloma", "none is given"]),
        (["--run", "tiny-*", "--sets", "a,,b"], ["a,,b"]),
        (["--run", "tiny-*", "--stride", "17"], ["--stride", "17", "16"]),
        (["--run", "tiny-*", "--window", "-1"], ["--window"]),
    ],
)
def test_bad_input_is_told_in_a_paragraph(desk: Desk, arguments: list[str], names: list[str]):
    status, out, err = desk.run(*arguments)
    assert (status, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert all(name in err for name in names), err


EVALUATED = {
    "execution.evaluation_sets": "c4_en",
    "execution.evaluation_tasks": "hellaswag,boolq",
    "execution.evaluate_every": 2,
}


@pytest.fixture
def start(trained: Path, tmp_path: Path, tiny) -> Callable[..., tuple[Store, tuple]]:
    """A store of its own, and the run with a capacity, to be evaluated while and after it trains."""

    def make(name: str, **fields: Any) -> tuple[Store, tuple]:
        draw = np.random.default_rng(0)
        rows = [{"text": "".join(draw.choice(list("abcd "), 60)) + "x"} for _ in range(8)]
        write_lines(tmp_path / "texts" / "all.jsonl", rows)
        data = {"data.source": str(tmp_path / "texts"), "execution.evaluation_data": str(trained / "data")}
        run = tiny({**MOE, "router.group": 2, **data, **{k.replace("__", "."): v for k, v in fields.items()}})
        return Store(tmp_path / name).create(), run

    return make


def model_of(folder: RunFolder, spec) -> Any:
    from flax import nnx

    from slicedice.model import Decoder
    from slicedice.moe import RouterBias

    shapes = nnx.eval_shape(lambda: Decoder(spec.model, key=jax.random.key(0)))
    _, params, bias = nnx.split(shapes, nnx.Param, RouterBias)
    return Checkpoints(folder.attempt().checkpoints).restore_model((params, bias))


def test_evaluations_in_the_loop_change_nothing_and_are_kept(start):
    plain, watched = start("a"), start("b", **EVALUATED)
    assert plain[1][0] == watched[1][0], "it is the same run"
    one, other = train(*plain), train(*watched)
    jax.tree.map(np.testing.assert_array_equal, model_of(one, plain[1][0]), model_of(other, watched[1][0]))
    assert one.attempt().metrics.read_bytes() == other.attempt().metrics.read_bytes()
    for name in ("train", "evaluation", "steps"):
        assert (one.result() or {})[name] == (other.result() or {})[name]
    lines = list(metrics.read(other.attempt().evaluation_lines))
    names = ["held_out", "c4_en", "hellaswag", "boolq"]
    assert [(line["step"], line["name"]) for line in lines] == [(step, name) for step in (2, 4, 6) for name in names]
    kept = other.evaluations()
    for line in lines[-3:]:
        content = kept[line["name"]]
        assert content is not None
        assert content["scores"] == line["scores"]
        assert list(line["scores"]) == ["as_trained", "without_capacity"]
    losses = [line["scores"]["held_out"]["macro"]["nats"] for line in lines if line["name"] == "held_out"]
    assert len(set(losses)) == 3
    assert one.evaluations() == {}
    assert not one.attempt().evaluation_lines.exists()


def test_no_step_is_evaluated_on_twice_by_a_run_that_was_killed(start, monkeypatch: pytest.MonkeyPatch):
    store, run = start("a", **EVALUATED, execution__checkpoint_seconds=1e9)
    undisturbed = train(*start("b", **EVALUATED)).attempt()
    whole = [(line["step"], line["name"]) for line in metrics.read(undisturbed.evaluation_lines)]
    d, folder = run[0].data, store.run(run[0])
    prepare(d.source, d.tokenizer, store.data, d.heldout_fraction)
    folder.create(*run)
    # Asked to stop after step 4's evaluation; then killed, with lines that its checkpoint does not have.
    worker = Worker(store)
    monkeypatch.setattr(worker, "should_stop", lambda: folder.attempt().steps == 4 and lines() == 8)

    def lines() -> int:
        return len(list(metrics.read(folder.attempt().evaluation_lines)))

    assert worker.train(folder.path.name) is Kind.PREEMPTED
    assert lines() == 8
    with open(folder.attempt().evaluation_lines, "a") as file:
        file.write('{"step": 5, "name": "held_out", "scores": {}}\n')
    append, added = Claim.append_evaluation, []

    def appended(self, step: int, *content: Any) -> None:
        added.append(step)
        append(self, step, *content)

    monkeypatch.setattr(Claim, "append_evaluation", appended)
    assert train(store, run).evaluations().keys() == {"boolq", "c4_en", "hellaswag"}
    assert [(line["step"], line["name"]) for line in metrics.read(folder.attempt().evaluation_lines)] == whole
    assert set(added) == {6}, "what is known of step 4 is not found out again"


def test_a_failing_evaluation_leaves_the_run_done_and_is_named(start, trained: Path, tmp_path: Path):
    write_lines(tmp_path / "empty.jsonl", [b"{broken\n"])
    sets = f"{tmp_path / 'nowhere'},{tmp_path / 'empty.jsonl'},c4_en"
    store, run = start("a", execution__evaluation_sets=sets)
    folder = train(store, run)
    kept = folder.evaluations()
    assert {name: (content or {})["kind"] for name, content in kept.items()} == {
        "c4_en": "documents",
        "empty": "failed",
        str(tmp_path / "nowhere"): "failed",
    }
    log = folder.log_of(0).read_text()
    assert "nowhere" in log
    assert "empty.jsonl:1 is not JSON" in log
    assert "Traceback" not in log
