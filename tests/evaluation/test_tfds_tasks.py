"""Tasks from TensorFlow Datasets, by its own mocking: the same questions as from the original files."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slicedice.data import DataError
from slicedice.data.account import Account
from slicedice.evaluation import Asked, copy_tasks, find
from slicedice.evaluation.multiple_choice import TaskEvaluation
from slicedice.evaluation.questions import Question, load
from slicedice.evaluation.tasks import TASKS
from tests.evaluation.files import boolq_row, hellaswag_row, write_lines

pytestmark = pytest.mark.filterwarnings("default")  # TensorFlow has warnings of its own

tf = pytest.importorskip("tensorflow")
tfds: Any = pytest.importorskip("tensorflow_datasets")

ROWS = {
    "hellaswag": [*(hellaswag_row(i) for i in range(7)), hellaswag_row(7, label=-1), hellaswag_row(8, ctx="[step] ä")],
    "boolq": [*(boolq_row(i) for i in range(7)), boolq_row(8, passage="Größe")],
}


@pytest.fixture
def mocked(tmp_path: Path) -> Iterator[None]:
    """TFDS with ROWS, in its own features, instead of what it would have prepared."""

    def dataset(self, *_: Any, **__: Any):
        task = next(name for name, task in TASKS.items() if task.tfds == self.name)
        rows = [{"context": row.get("ctx"), **row} for row in ROWS[task]]
        types = self.info.features.get_tensor_info()
        columns = {name: tf.constant([row[name] for row in rows], types[name].tf_dtype) for name in types}
        return tf.data.Dataset.from_tensor_slices(columns)

    with tfds.testing.mock_data(num_examples=5, as_dataset_fn=dataset, data_dir=str(tmp_path / "none")):
        yield


def from_files(task: str, folder: Path) -> list[Question]:
    for name in (TASKS[task].questions, TASKS[task].shots):
        write_lines(folder / name, ROWS[task])
    return load(TASKS[task], str(folder), Account(skip=True))[0]


@pytest.mark.parametrize("task", ROWS)
def test_questions_are_those_of_the_original_files(task: str, tmp_path: Path, mocked: None):
    account = Account(skip=True)
    questions, missing = load(TASKS[task], "", account)
    assert questions == from_files(task, tmp_path)
    assert len(questions) == 8
    assert missing == []
    if task == "hellaswag":
        assert account.counts == {"no answer": 1}
        assert "tfds:hellaswag/validation:8 is no question" in account.named["no answer"][0]


def test_original_files_come_first(tmp_path: Path, mocked: None):
    write_lines(tmp_path / "dev.jsonl", [boolq_row(i) for i in range(3)])
    write_lines(tmp_path / "train.jsonl", [boolq_row(i) for i in range(5)])
    assert len(load(TASKS["boolq"], str(tmp_path), Account(skip=True))[0]) == 3
    copy_tasks(Asked([], ["boolq"], str(tmp_path)), tmp_path / "tasks")
    assert not (tmp_path / "tasks").exists(), "nothing to copy"


@pytest.mark.parametrize("task", ROWS)
def test_a_copy_has_the_same_questions_and_needs_no_tensorflow(task: str, tmp_path: Path, mocked: None, monkeypatch):
    direct = load(TASKS[task], "", Account(skip=True))[0]
    asked = Asked([], [task], "")
    copy_tasks(asked, tmp_path / "tasks")
    monkeypatch.setattr(tfds, "load", lambda *_, **__: pytest.fail("TFDS is read again"))
    copy_tasks(asked, tmp_path / "tasks")
    found = find("tasks", task, "", tmp_path / "tasks")
    assert isinstance(found, TaskEvaluation)
    assert found._load()[0] == direct


def test_a_sweeps_parent_copies_and_its_workers_import_no_tensorflow(tmp_path: Path):
    """A data set of TFDS in its own format, read by a run of a real sweep."""
    features = {"question": tfds.features.Text(), "title": tfds.features.Text(), "answer": np.bool_}
    features |= {"passage": tfds.features.Text()}
    rows = [{name: boolq_row(i)[name] for name in features} for i in range(8)]
    columns = {name: [row[name] for row in rows] for name in features}
    tfds.dataset_builders.store_as_tfds_dataset(
        name="bool_q",
        version="1.0.0",
        data_dir=tmp_path / "tfds",
        features=tfds.features.FeaturesDict(features),
        split_datasets=dict.fromkeys(("train", "validation"), tf.data.Dataset.from_tensor_slices(columns)),
        disable_shuffling=True,
    )
    (tmp_path / "texts").mkdir()
    for i in range(9):
        (tmp_path / "texts" / f"{i}.txt").write_text(f"text {i} " * 50)
    (tmp_path / "spy").mkdir()
    (tmp_path / "spy" / "sitecustomize.py").write_text(
        "import atexit, sys\n"
        "atexit.register(lambda: open('spied', 'a').write(f\"{sys.argv[0]} {'tensorflow' in sys.modules}\\n\"))\n"
    )
    command = [
        "-m",
        "slicedice.train",
        "--config",
        "smoke",
        "--config.data.source=texts",
        "--config.budget.tokens=3000",
    ]
    command += ["--config.execution.evaluation_tasks=boolq", "--config.execution.evaluation_data=tfds"]
    top = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'spy'}{os.pathsep}{top}"}
    done = subprocess.run([sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    spied = (tmp_path / "spied").read_text().splitlines()
    assert [line.split()[1] for line in spied if "work.py" in line] == ["False"]
    (scores,) = tmp_path.glob("runs/runs/*/evaluations/boolq.json")
    assert json.loads(scores.read_text())["kind"] == "tasks"


def test_what_was_not_prepared_is_told_with_how_to(tmp_path: Path):
    with pytest.raises(DataError, match=rf"tfds build hellaswag --data_dir {tmp_path}"):
        load(TASKS["hellaswag"], str(tmp_path), Account(skip=True))


def test_tfds_is_looked_at_when_it_is_read(tmp_path: Path):
    assert find("tasks", "hellaswag", str(tmp_path)).name == "hellaswag"
