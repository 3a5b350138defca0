"""What a run is asked to be evaluated on beside its held-out text, by name. Imports no JAX, and reads no text."""

from collections.abc import Iterator
from pathlib import Path

from slicedice.data import DataError
from slicedice.evaluation.documents import DocumentEvaluation
from slicedice.evaluation.multiple_choice import TaskEvaluation
from slicedice.evaluation.questions import copy_of, find_files
from slicedice.evaluation.sets import find_collection
from slicedice.evaluation.tasks import TASKS
from slicedice.spec import Execution
from slicedice.spec.config import listed

Evaluation = DocumentEvaluation | TaskEvaluation


def wanted(execution: Execution) -> list[tuple[str, str]]:
    """What an execution asks for: (kind, name or path) of each."""
    sets = [("documents", name) for name in listed(execution, "evaluation_sets")]
    return sets + [("tasks", name) for name in listed(execution, "evaluation_tasks")]


def copy_tasks(execution: Execution, copies: Path) -> None:
    """Copies the tasks that lie in TFDS alone to where workers, which import no TensorFlow, find them.

    Raises:
      DataError: one is not there.
    """
    for kind, name in wanted(execution):
        task, data_dir = TASKS.get(name), execution.evaluation_data
        if kind != "tasks" or task is None or not task.tfds or find_files(task, data_dir) is not None:
            continue
        folder = copy_of(task, data_dir, copies)
        if find_files(task, str(folder)) is None:
            from slicedice.evaluation import tfds_tasks

            tfds_tasks.copy(task, data_dir, folder)


def find(kind: str, name: str, data_dir: str, copies: Path | None = None) -> Evaluation:
    """Finds one of them; `copies` as `TaskEvaluation` has it.

    Raises:
      DataError: it is not there.
    """
    if kind == "documents":
        return DocumentEvaluation(find_collection(name, data_dir))
    return TaskEvaluation(TASKS[name], data_dir, copies)


def find_all(execution: Execution) -> list[Evaluation]:
    """Finds all that an execution asks for.

    Raises:
      DataError: one is not there, or two have one name.
    """
    found: dict[str, Evaluation] = {}
    for evaluation, name in _each(execution):
        if evaluation.name in found:
            raise DataError(f"{name} and another evaluation would both be called {evaluation.name!r}. Rename one.")
        found[evaluation.name] = evaluation
    return list(found.values())


def _each(execution: Execution) -> Iterator[tuple[Evaluation, str]]:
    for kind, name in wanted(execution):
        yield find(kind, name, execution.evaluation_data), name
