"""Tasks from TensorFlow Datasets, by its own mocking: the same questions as from the original files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slicedice.data import DataError
from slicedice.data.account import Account
from slicedice.evaluation import find
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


def test_what_was_not_prepared_is_told_with_how_to(tmp_path: Path):
    with pytest.raises(DataError, match=rf"tfds build hellaswag --data_dir {tmp_path}"):
        load(TASKS["hellaswag"], str(tmp_path), Account(skip=True))


def test_tfds_is_looked_at_when_it_is_read(tmp_path: Path):
    assert find("tasks", "hellaswag", str(tmp_path)).name == "hellaswag"
