"""What a run is asked to be evaluated on beside its held-out text, by name. Imports no JAX, and reads no text."""

from pathlib import Path
from typing import NamedTuple

from slicedice.data import DataError
from slicedice.evaluation.documents import DocumentEvaluation
from slicedice.evaluation.multiple_choice import TaskEvaluation
from slicedice.evaluation.questions import copy_of, find_files
from slicedice.evaluation.sets import find_collection
from slicedice.evaluation.tasks import TASKS
from slicedice.spec import Execution
from slicedice.spec.config import listed

Evaluation = DocumentEvaluation | TaskEvaluation


class Asked(NamedTuple):
    """What is asked for.

    sets: names of evaluation sets, or paths. tasks: names.
    data_dir: folder of the sets and tasks that are named; "" for none.
    """

    sets: list[str]
    tasks: list[str]
    data_dir: str

    @classmethod
    def of(cls, execution: Execution) -> "Asked":
        """What an execution asks for."""
        sets = listed("execution.evaluation_sets", execution.evaluation_sets)
        tasks = listed("execution.evaluation_tasks", execution.evaluation_tasks)
        return cls(sets, tasks, execution.evaluation_data)

    def each(self) -> list[tuple[str, str]]:
        """The kind, and the name or path, of each."""
        return [*(("documents", name) for name in self.sets), *(("tasks", name) for name in self.tasks)]


def copy_tasks(asked: Asked, copies: Path) -> None:
    """Copies the tasks that lie in TFDS alone to where workers, which import no TensorFlow, find them.

    Raises:
      DataError: one is not there.
    """
    for task in (TASKS[name] for name in asked.tasks):
        if not task.tfds or find_files(task, asked.data_dir) is not None:
            continue
        folder = copy_of(task, asked.data_dir, copies)
        if find_files(task, str(folder)) is None:
            from slicedice.evaluation import tfds_tasks

            tfds_tasks.copy(task, asked.data_dir, folder)


def find(kind: str, name: str, data_dir: str, copies: Path | None = None) -> Evaluation:
    """Finds one of them; `copies` as `TaskEvaluation` has it.

    Raises:
      DataError: it is not there.
    """
    if kind == "documents":
        return DocumentEvaluation(find_collection(name, data_dir))
    return TaskEvaluation(TASKS[name], data_dir, copies)


def find_all(asked: Asked) -> list[Evaluation]:
    """Finds all that is asked for.

    Raises:
      DataError: one is not there, or two have one name.
    """
    found: dict[str, Evaluation] = {}
    for kind, name in asked.each():
        evaluation = find(kind, name, asked.data_dir)
        if evaluation.name in found:
            raise DataError(f"{name} and another evaluation would both be called {evaluation.name!r}. Rename one.")
        found[evaluation.name] = evaluation
    return list(found.values())
