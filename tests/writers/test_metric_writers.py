"""What people watch is what a run's own files say, each step once; and no failure of a writer is the run's."""

import importlib.util
import logging
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import slicedice
from slicedice.parallel import processes
from slicedice.spec import Execution, RunSpec, SpecError, run_id
from slicedice.store import Claim, Store, metrics
from slicedice.writers import RunWriter, require_installed
from slicedice.writers import run as writers_run

pytest.importorskip("clu")
pytest.importorskip("tensorboardX")
event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

Curves = dict[str, list[tuple[int, float]]]


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Any]]:
    """What the writers of a package made that is installed for the test."""
    from tests.writers.recorded import Recorder, install

    monkeypatch.syspath_prepend(install(tmp_path / "site"))
    Recorder.made.clear()
    yield Recorder.made
    Recorder.made.clear()


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writers_run, "EVERY_SECONDS", 0.0)


@pytest.fixture
def hardly_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writers_run, "EVERY_SECONDS", math.inf)


class Run:
    """A run whose metrics are drawn, not trained."""

    def __init__(self, root: Path, spec: RunSpec, execution: Execution, rng: np.random.Generator):
        self.store, self.spec, self.execution, self.rng = Store(root).create(), spec, execution, rng
        self.folder = self.store.run(spec)
        self.killed: list[RunWriter] = []
        self.folder.create(spec, execution)

    def train(self, first: int, last: int, *, every: int = 0, text: str = "a", killed: bool = False) -> None:
        """Does what a worker does, in its order, from step `first` to before `last`; when killed it closes nothing."""
        claim = self.folder.claim()
        assert claim is not None
        with claim:
            earlier = claim.begin_on(text)
            shown = RunWriter(self.spec, self.execution, self.store)
            shown.begin(first, (claim, *earlier))
            if first:
                claim.take_over(next(other for other in earlier if other.steps >= first), first)
            writer = claim.record()
            writer.begin(first)
            for step in range(first, last):
                values = {"step": step, "loss": self.draw(), "load_imbalance": self.draw(), "dead_experts": step % 3}
                writer.write(values)
                shown.step(values)
                if every and (step + 1) % every == 0:
                    self.evaluate(claim, shown, step + 1)
            writer.close()
            self.killed.append(shown) if killed else shown.close()

    def draw(self) -> float:
        return float(np.float32(self.rng.normal()))  # as JAX has it

    def evaluate(self, claim: Claim, shown: RunWriter, step: int) -> None:
        for name, way in (("held_out", "held_out"), ("wikitext_103", "as_trained")):
            scores = {way: {"macro": {"nats": self.draw(), "targets": 12}}}
            claim.append_evaluation(step, name, scores)
            shown.evaluation(step, name, scores)

    def curves(self) -> Curves:
        """What TensorBoard shows of the run."""
        (folder,) = (self.store.root / "tensorboard").iterdir()
        return curves(folder)

    def kept(self, name: str) -> list[tuple[int, float]]:
        """A curve by the run's own files."""
        return [(line["step"], line[name]) for line in metrics.read(self.folder.attempt().metrics)]

    def kept_scores(self, name: str, way: str) -> list[tuple[int, float]]:
        lines = [line for line in metrics.read(self.folder.attempt().evaluation_lines) if line["name"] == name]
        return [(line["step"], line["scores"][way]["macro"]["nats"]) for line in lines]


def curves(folder: Path) -> Curves:
    everything: Any = {event_accumulator.SCALARS: 0}
    read = event_accumulator.EventAccumulator(str(folder), size_guidance=everything).Reload()
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


@pytest.fixture
def make(tiny, tmp_path: Path, rng: np.random.Generator) -> Iterator[Callable[..., Run]]:
    runs = []

    def made(writers: str = "tensorboard", **overrides: Any) -> Run:
        fields = {name.replace("__", "."): value for name, value in overrides.items()}
        spec, execution = tiny({"execution.writers": writers, **fields})
        runs.append(Run(tmp_path / "store", spec, execution, rng))
        return runs[-1]

    yield made
    for shown in (shown for run in runs for shown in run.killed):
        shown.close()  # only now, when all is read


@pytest.mark.usefixtures("every_step")
def test_curves_are_what_the_runs_own_files_say(make):
    run = make()
    run.train(0, 6, every=2)
    shown = run.curves()
    for name in ("loss", "load_imbalance", "dead_experts"):
        assert shown[f"train/{name}"] == run.kept(name)
    assert shown["evaluation/held_out/macro/nats"] == run.kept_scores("held_out", "held_out")
    assert shown["evaluation/wikitext_103/as_trained/macro/nats"] == run.kept_scores("wikitext_103", "as_trained")
    assert [step for step, _ in shown["evaluation/held_out/macro/nats"]] == [2, 4, 6]
    assert shown["progress/tokens"] == [(step, (step + 1) * 8 * 16) for step in range(6)]
    assert shown["progress/share"][-1] == (5, 1.0)
    assert all(rate > 0 for _, rate in shown["progress/tokens_per_second"])
    assert not [tag for tag in shown if "step" in tag]


@pytest.mark.usefixtures("hardly_ever")
def test_few_steps_are_written_and_the_last_always(make):
    run = make()
    run.train(0, 9)
    assert run.curves()["train/loss"] == [run.kept("loss")[step] for step in (0, 8)]


@pytest.mark.usefixtures("hardly_ever")
def test_the_step_before_an_evaluation_is_written_first(make, recorders):
    run = make("recorder")
    run.train(0, 9, every=4)
    (recorder,) = recorders
    assert [step for step, _ in recorder.steps] == [0, 3, 4, 4, 7, 8, 8, 8]
    assert recorder.closed == 1


@pytest.mark.usefixtures("every_step")
@pytest.mark.parametrize("killed", [True, False])
def test_a_run_that_goes_on_shows_no_step_twice(make, recorders, killed: bool):
    run = make("tensorboard,recorder")
    run.train(0, 10, every=3, killed=killed)
    first = {name: run.kept(name) for name in ("loss", "load_imbalance")}
    run.train(6, 14, every=3)  # the last checkpoint was of step 6, which was evaluated before
    run.train(14, 16, every=3)
    shown = run.curves()
    for name in first:
        assert shown[f"train/{name}"] == run.kept(name)
        assert run.kept(name)[6:10] != first[name][6:]  # trained again, and otherwise
    assert [step for step, _ in shown["train/loss"]] == list(range(16))
    for name, way, tag in (
        ("held_out", "held_out", "held_out"),
        ("wikitext_103", "as_trained", "wikitext_103/as_trained"),
    ):
        assert shown[f"evaluation/{tag}/macro/nats"] == run.kept_scores(name, way)
        assert [step for step, _ in run.kept_scores(name, way)] == [3, 6, 9, 12, 15]
    # A writer that can take nothing back has each step once as well, as it was first.
    given = [
        (step, tag, value) for recorder in recorders for step, values in recorder.steps for tag, value in values.items()
    ]
    places = [(step, tag) for step, tag, _ in given]
    assert len(places) == len(set(places))
    assert [(step, value) for step, tag, value in given if tag == "train/loss"] == [
        *first["loss"],
        *run.kept("loss")[10:],
    ]


@pytest.mark.usefixtures("every_step")
def test_a_run_that_starts_over_on_other_text_shows_nothing_of_before(make, recorders):
    run = make("tensorboard,recorder")
    run.train(0, 5)
    run.train(0, 3, text="b")
    assert run.curves()["train/loss"] == run.kept("loss")
    assert len(run.kept("loss")) == 3
    assert [[step for step, _ in recorder.steps] for recorder in recorders] == [[0, 1, 2, 3, 4], [0, 1, 2]]


@pytest.mark.usefixtures("every_step")
def test_a_loss_that_is_no_number_is_shown_as_such(make, monkeypatch: pytest.MonkeyPatch):
    run = make()
    monkeypatch.setattr(Run, "draw", lambda self: math.nan)
    run.train(0, 1)
    ((step, loss),) = run.curves()["train/loss"]
    assert (step, math.isnan(loss)) == (0, True)


def test_settings_are_what_was_resolved(make, recorders):
    run = make("tensorboard,recorder", model__experts="n=4 g=1/2", optimizer__learning_rate=0.003)
    run.train(0, 1)
    (recorder,) = recorders
    settings = recorder.settings
    assert settings["optimizer.learning_rate"] == 0.003
    assert settings["execution.micro_batch"] == run.execution.micro_batch
    assert settings["model.layer.experts"] == "n=4 k=2 g=1/2"
    assert not [name for name, value in settings.items() if value is None or type(value) not in (bool, int, float, str)]
    (folder,) = (run.store.root / "tensorboard").iterdir()
    read = event_accumulator.EventAccumulator(str(folder)).Reload()
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= set(read.PluginTagToContent("hparams"))
    assert b"optimizer.learning_rate" in read.PluginTagToContent("hparams")["_hparams_/session_start_info"]


@pytest.mark.parametrize("scale", ["nano", "..", "._"])
def test_a_runs_name_stays_one_folder_below_the_store(make, scale: str, tmp_path: Path):
    run = make(scale=scale, model__experts="n=8 k=2 g=1/4 + n=2 k=1 g=1/2")
    run.train(0, 1)
    (folder,) = (run.store.root / "tensorboard").iterdir()
    assert folder.name.endswith(f"-{run_id(run.spec)}")
    assert "g1_4+1_2-n8+2" in folder.name
    assert folder.name[0].isalnum()
    assert all(path.name.startswith("events.out.tfevents.") for path in folder.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"store"}
    assert {path.name for path in run.store.root.iterdir()} == {"store.json", "runs", "tensorboard"}


@pytest.mark.usefixtures("every_step")
def test_a_writer_that_fails_is_dropped_once_and_no_one_else_is(make, recorders, caplog: pytest.LogCaptureFixture):
    run = make("lost,tensorboard,absent,recorder")
    with caplog.at_level(logging.WARNING, "slicedice.writers"):
        run.train(0, 6)
    assert [record.getMessage().split(" is ")[0] for record in caplog.records] == ["absent", "lost"]
    assert "no such server" in caplog.text
    assert "no route to host" in caplog.text
    assert len(run.kept("loss")) == 6
    assert run.curves()["train/loss"] == run.kept("loss")
    lost, recorder = recorders
    assert [step for step, _ in lost.steps] == [0, 1]
    assert [step for step, _ in recorder.steps] == list(range(6))


@pytest.mark.usefixtures("every_step")
def test_a_folder_that_cannot_be_made_fails_no_run(make, caplog: pytest.LogCaptureFixture):
    run = make()
    (run.store.root / "tensorboard").write_text("in the way")
    run.train(0, 3)
    assert len(run.kept("loss")) == 3
    assert len(caplog.records) == 1
    assert "tensorboard is written to no longer" in caplog.text


@pytest.mark.usefixtures("recorders")
@pytest.mark.parametrize("name", ["touch", "folder", "nowhere", "unknown"])
def test_nothing_but_a_class_of_writers_that_is_declared_is_called(make, name: str, caplog: pytest.LogCaptureFixture):
    run = make(name)
    run.train(0, 2)
    assert len(run.kept("loss")) == 2
    assert caplog.text.count(f"{name} is written to no longer") == 1
    assert {path.name for path in run.store.root.iterdir()} == {"store.json", "runs"}


def test_of_several_processes_one_writes(make, recorders, monkeypatch: pytest.MonkeyPatch):
    run = make("tensorboard,recorder")
    monkeypatch.setattr(processes, "leads", lambda: False)
    run.train(0, 2)
    assert recorders == []
    assert not (run.store.root / "tensorboard").exists()


@pytest.mark.usefixtures("recorders")
def test_what_is_not_installed_is_told_before_anything_starts(monkeypatch: pytest.MonkeyPatch):
    require_installed("tensorboard,recorder")
    require_installed("")
    here = importlib.util.find_spec
    absent = {"tensorboardX", "wandb"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else here(name))
    for writers, message in [
        ("tensorboard", r"tensorboard needs tensorboardX, .*pip install 'slicedice\[tensorboard\]'"),
        ("recorder,wandb", r"wandb needs wandb, .*pip install 'slicedice\[wandb\]'"),
        ("tensorbord", r"no writer 'tensorbord' here: .* tensorboard, wandb, .*recorder"),
    ]:
        with pytest.raises(SpecError, match=f"execution.writers = '{writers}' cannot be used: .*{message}"):
            require_installed(writers)


def run_python(code: str, *arguments: str, path: Path | None = None) -> str:
    """What a fresh interpreter prints, which no other test has imported anything in."""
    folders = [*([path] if path else []), Path(slicedice.__file__).parents[1]]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


SHOW = """
import sys
from slicedice.store import Store
from slicedice.writers import RunWriter, require_installed

store = Store(sys.argv[1])
folder = store.run(sys.argv[2])
require_installed(folder.execution().writers)
shown = RunWriter(store.read_spec(sys.argv[2]), folder.execution(), store)
with folder.claim() as claim:
    shown.begin(0, [claim])
    shown.step({"step": 0, "loss": 1.5})
    shown.evaluation(1, "held_out", {})
    shown.close()
"""


def test_who_writes_nowhere_imports_nothing_for_it(make):
    run = make("")
    heavy = {"jax", "clu", "tensorboardX", "wandb", "tensorflow"}
    code = f"import slicedice.sweep, slicedice.work\n{SHOW}\nprint(sorted({heavy} & set(sys.modules)))"
    assert run_python(code, str(run.store.root), run_id(run.spec)) == "[]\n"


def test_clus_interface_comes_without_tensorflow(make, tmp_path: Path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "tensorflow.py").write_text("raise AssertionError('TensorFlow is imported')")
    run = make()
    code = f"""{SHOW}
from clu.metric_writers import interface  # in earnest
"""
    with pytest.raises(AssertionError, match="TensorFlow is imported"):
        run_python(code, str(run.store.root), run_id(run.spec), path=tmp_path / "site")
    assert run.curves()["train/loss"] == [(0, 1.5)]


def test_clus_own_writers_can_be_declared(make, tmp_path: Path):
    pytest.importorskip("tensorflow")
    from tests.writers.recorded import install

    run = make("clu")
    code = f"""{SHOW}
import clu.metric_writers
from slicedice.writers.interface import MetricWriter
print(clu.metric_writers.MetricWriter is MetricWriter)
"""
    assert run_python(code, str(run.store.root), run_id(run.spec), path=install(tmp_path / "site")) == "True\n"
    (folder,) = (run.store.root / "tensorboard").iterdir()
    read = event_accumulator.EventAccumulator(str(folder)).Reload()
    assert "train/loss" in read.Tags()["tensors"]  # as TensorFlow writes numbers
