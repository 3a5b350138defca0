"""Rows of tasks from TensorFlow Datasets, in the words of the original files.

TensorFlow is imported where TFDS is read, and nowhere else: workers read copies, which `copy` makes before they start.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slicedice.data import DataError
from slicedice.evaluation.tasks import Task

FIELDS = {"context": "ctx"}
"""What TFDS calls otherwise than the original files."""


def rows(task: Task, data_dir: str, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the rows of a split with how messages name them; nothing is downloaded.

    Raises:
      DataError: the task is not in TFDS or was not prepared, or TFDS is not installed.
    """
    places = (
        f"in {data_dir} or its folders {task.name}/, data/" if data_dir else "anywhere, since no data folder is given"
    )
    files = f"{task.questions} and {task.shots} {places}"
    if not task.tfds:
        raise DataError(f"{task.name} is not there: there are no folders {files}. TFDS does not have it.")
    try:
        import tensorflow as tf  # pyright: ignore[reportMissingModuleSource]
        import tensorflow_datasets as tfds  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DataError(
            f"{task.name} is not there: there are neither the files {files}, nor TensorFlow Datasets ({error}), which "
            "`pip install 'slicedice[data]'` brings."
        ) from error
    tf.config.set_visible_devices([], "GPU")  # or it would take the memory that the model needs
    try:
        dataset = tfds.load(task.tfds, split=split, data_dir=data_dir or None, download=False)
    except Exception as error:  # of what is not prepared it says so by an AssertionError, or others in other versions
        told = str(error).strip().splitlines() or [type(error).__name__]
        where = f" --data_dir {data_dir}" if data_dir else ""
        raise DataError(
            f"{task.name} is not there: there are neither the files {files}, nor prepared by TFDS ({told[0]}). "
            f"`tfds build {task.tfds}{where}` prepares it."
        ) from error
    return _rows(task, split, tfds.as_numpy(dataset))


def copy(task: Task, data_dir: str, folder: Path) -> None:
    """Writes the rows of a task as its original files, whole or not at all, unless they are there.

    Raises:
      DataError: see `rows`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, split in zip((task.questions, task.shots), task.splits, strict=True):
        if (folder / name).exists():
            continue
        temporary = folder / f".{name}.{os.getpid()}"
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for _, row in rows(task, data_dir, split))
        temporary.replace(folder / name)


def _rows(task: Task, split: str, dataset: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, row in enumerate(dataset, start=1):
        yield (
            f"tfds:{task.tfds}/{split}:{number}",
            {FIELDS.get(str(name), str(name)): _plain(value) for name, value in row.items()},
        )


def _plain(value: Any) -> Any:
    """What JSON would have given: text, numbers, truth values and lists."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.decode(errors="replace") if isinstance(value, bytes) else value
