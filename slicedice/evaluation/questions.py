"""Questions with their shots, from a task's original files or from TFDS; rows that cannot be used are named.

Nothing here may import TensorFlow where the original files are there, or JAX at all.
"""

import csv
import hashlib
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from slicedice.data import DataError
from slicedice.data.account import Account
from slicedice.data.records import read_objects
from slicedice.data.streams import opened
from slicedice.evaluation.tasks import SHOTS, SUBJECTS, Example, NoQuestion, Task

Rows = Iterable[tuple[str, dict[str, Any]]]
"""Rows of a file, each with how messages name it: file:line."""


class Question(NamedTuple):
    """A question as it is put to a model.

    Attributes:
      group: what its score counts for: the task, or a group of MMLU.
      shots: examples with their answers, in the order they are shown.
      example: the question itself.
    """

    group: str
    shots: tuple[str, ...]
    example: Example


class Files(NamedTuple):
    """The original files of a task: of questions and of shots, by the group that they count for.

    missing: files that belong to the task and are not there.
    """

    pairs: list[tuple[str, Path, Path]]
    missing: list[str]


def find_files(task: Task, data_dir: str) -> Files | None:
    """The original files of a task below a folder, itself, `NAME`, `data` or `NAME/data`; None if they are not there.

    Raises:
      DataError: there are questions and no file to take shots from.
    """
    root = Path(data_dir or ".").expanduser()
    places = [root / below for below in ("", task.name, "data", f"{task.name}/data")] if data_dir else []
    for place in places:
        questions, shots = place / task.questions, place / task.shots
        if not questions.exists() or (task.tfds == "" and not any(questions.glob("*.csv"))):
            continue
        if task.tfds:
            pairs, missing = [(task.name, questions, shots)], []
        else:
            of = {
                subject: (questions / f"{subject}_{task.questions}.csv", shots / f"{subject}_{task.shots}.csv")
                for subject in SUBJECTS
            }
            pairs = [(f"{task.name}_{SUBJECTS[s]}", *files) for s, files in of.items() if files[0].exists()]
            missing = [files[0].name for files in of.values() if not files[0].exists()]
        lacking = next((path for _, _, path in pairs if not path.exists()), None)
        if lacking or not pairs:
            needed = lacking or questions / f"{next(iter(SUBJECTS))}_{task.questions}.csv"
            raise DataError(f"{needed} is missing, which {task.name} in {place} needs. Copy all of its files.")
        return Files(pairs, missing)
    return None


def copy_of(task: Task, data_dir: str, copies: Path) -> Path:
    """The folder below `copies` for what lies in the TFDS of `data_dir`."""
    return copies / f"{task.name}-{hashlib.sha256(data_dir.encode()).hexdigest()[:8]}"


def load(task: Task, data_dir: str, account: Account) -> tuple[list[Question], list[str]]:
    """All questions of a task that can be put, and names of files that it lacks.

    Args:
      task: the task.
      data_dir: folder of original files, or of what TFDS prepared; "" for TFDS's own folder.
      account: counts and names rows that cannot be used.

    Raises:
      DataError: the task is not there, a file cannot be read, or shots or questions are too few.
    """
    files = find_files(task, data_dir)
    if files is None:
        from slicedice.evaluation import tfds_tasks

        questions, shown = (tfds_tasks.rows(task, data_dir, split) for split in task.splits)
        return _questions(task, task.name, questions, shown, f"tfds:{task.tfds}/{task.splits[1]}", account), []
    read = _csv if not task.tfds else _jsonl
    found = [
        question
        for group, questions, shown in files.pairs
        for question in _questions(task, group, read(questions, account), read(shown, account), shown, account)
    ]
    return found, files.missing


def _questions(
    task: Task, group: str, questions: Rows, shown: Rows, source: object, account: Account
) -> list[Question]:
    first = [example for _, example in itertools.islice(_examples(task, shown, account), SHOTS)]
    if len(first) < SHOTS:
        raise DataError(
            f"{task.name} shows {SHOTS} examples, and of those in {source} only {len(first)} can be used. "
            f"{_told(account)}Mend it, or copy it again."
        )
    shots = tuple(example.context + example.choices[example.right] for example in first)
    found = [Question(group, shots, example) for _, example in _examples(task, questions, account)]
    if not found:
        raise DataError(f"{task.name} has no question of {group} that can be used. {_told(account)}".rstrip())
    return found


def _told(account: Account) -> str:
    return "".join(f"{messages[-1]} " for messages in account.named.values())


def _examples(task: Task, rows: Rows, account: Account) -> Iterator[tuple[str, Example]]:
    for where, row in rows:
        try:
            yield where, task.read(row)
        except NoQuestion as error:
            account.add(error.kind, f"{where} is no question of {task.name}: {error}.")


def _jsonl(path: Path, account: Account) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, row in read_objects(path, account):
        yield f"{path}:{number}", row


def _csv(path: Path, account: Account) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a file without a header, by the line each ends in."""
    with opened(path, account) as file:
        # What is not UTF-8 is let through here, so that a record over several lines stays one.
        lines = (line.decode("utf-8-sig" if i == 0 else "utf-8", "surrogateescape") for i, line in enumerate(file))
        reader = csv.reader(lines)
        while True:
            try:
                columns = next(reader, None)
            except csv.Error as error:
                account.add("not CSV", f"{path}:{reader.line_num} is not CSV ({error}). Mend the line.")
                continue
            if columns is None:
                return
            where = f"{path}:{reader.line_num}"
            if any("\udc80" <= letter <= "\udcff" for column in columns for letter in column):
                account.add("not UTF-8", f"{where} is not UTF-8. Write it again.")
            elif columns:
                yield where, {"columns": columns}
