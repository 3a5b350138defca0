"""What a run is asked to be evaluated on beside its held-out text, by name. Imports no JAX, and reads no text."""

from collections.abc import Iterator

from slicedice.data import DataError
from slicedice.evaluation.documents import DocumentEvaluation
from slicedice.evaluation.multiple_choice import TaskEvaluation
from slicedice.evaluation.sets import find_collection
from slicedice.evaluation.tasks import TASKS
from slicedice.spec import Execution
from slicedice.spec.config import listed

Evaluation = DocumentEvaluation | TaskEvaluation


def wanted(execution: Execution) -> list[tuple[str, str]]:
    """What an execution asks for: (kind, name or path) of each."""
    sets = [("documents", name) for name in listed(execution, "evaluation_sets")]
    return sets + [("tasks", name) for name in listed(execution, "evaluation_tasks")]


def find(kind: str, name: str, data_dir: str) -> Evaluation:
    """Finds one of them.

    Raises:
      DataError: it is not there.
    """
    if kind == "documents":
        return DocumentEvaluation(find_collection(name, data_dir))
    return TaskEvaluation(TASKS[name], data_dir)


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
