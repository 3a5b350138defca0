"""The table of multiple-choice tasks: their prompts and where these are from, their shots, their files.

| task | prompt | answers scored | shots, always the same | questions |
|---|---|---|---|---|
| hellaswag | `ACTIVITY: CONTEXT`, brackets cleaned away | the four endings | first 5 of train | validation |
| boolq | `PASSAGE`, `Question: ...?`, `Answer:` on lines of their own | ` yes`, ` no` | first 5 of train | dev |
| mmlu | `Question: ...`, `Answer:` | the texts of the four choices | the 5 of dev, of the same subject | test |

Prompts are those of lm-evaluation-harness (EleutherAI) for HellaSwag and BoolQ. For MMLU it is the cloze form of OLMES
(arXiv 2406.08446), which the in-loop evaluation of OLMo has as well: answers are scored as text, since models of the
study's size are at chance when they have to name a letter. Examples and question are parted by an empty line; a prompt
begins with end of document, as documents do in training. "First" means in the order of the source, whose rows without
an answer are passed over; TFDS shuffles what it prepares, so its first ones are others than the original files'.
HellaSwag's context is `ctx`, which both have; the harness writes the first letter of `ctx_b` large. The study's number
of shots is from its authors' public code; which examples, and MMLU's test instead of OLMo's validation split, is ours.

Nothing here may read files or import TensorFlow or JAX.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

SHOTS = 5

GROUPS = {
    "humanities": "formal_logic high_school_european_history high_school_us_history high_school_world_history "
    "international_law jurisprudence logical_fallacies moral_disputes moral_scenarios philosophy prehistory "
    "professional_law world_religions",
    "stem": "abstract_algebra astronomy college_biology college_chemistry college_computer_science "
    "college_mathematics college_physics computer_security conceptual_physics electrical_engineering "
    "elementary_mathematics high_school_biology high_school_chemistry high_school_computer_science "
    "high_school_mathematics high_school_physics high_school_statistics machine_learning",
    "social_sciences": "econometrics high_school_geography high_school_government_and_politics "
    "high_school_macroeconomics high_school_microeconomics high_school_psychology human_sexuality "
    "professional_psychology public_relations security_studies sociology us_foreign_policy",
    "other": "anatomy business_ethics clinical_knowledge college_medicine global_facts human_aging management "
    "marketing medical_genetics miscellaneous nutrition professional_accounting professional_medicine virology",
}
"""Subjects of MMLU by group, as in the `categories.py` of its authors (arXiv 2009.03300)."""

SUBJECTS = {subject: group for group, subjects in GROUPS.items() for subject in subjects.split()}
"""The group of each of the 57 subjects, in the order of groups."""


class NoQuestion(ValueError):
    """A row that is no question; says of which kind the problem is, and what would be valid."""

    def __init__(self, kind: str, valid: str):
        super().__init__(valid)
        self.kind = kind


class Example(NamedTuple):
    """A question without shots.

    Attributes:
      context: what stands before the answer.
      choices: continuations, each with the space that it begins with.
      right: index of the right one.
    """

    context: str
    choices: tuple[str, ...]
    right: int


@dataclass(frozen=True)
class Task:
    """A task.

    name: in results.
    questions, shots: names of the original files of the questions and of the examples shown; of MMLU, folders of files.
    tfds: name in TensorFlow Datasets, "" if it is not there.
    splits: those of questions and examples there.
    read: makes an example of a row, or raises `NoQuestion`.
    """

    name: str
    questions: str
    shots: str
    tfds: str
    splits: tuple[str, str]
    read: Callable[[dict[str, Any]], Example]


def hellaswag(row: dict[str, Any]) -> Example:
    """A row of `hellaswag_{train,val}.jsonl`."""
    activity, context, endings = _text(row, "activity_label"), _text(row, "ctx"), row.get("endings")
    if not isinstance(endings, list) or len(endings) < 2 or not all(isinstance(e, str) for e in endings):
        raise NoQuestion("missing field", "its field `endings` has to be a list of texts")
    choices = tuple(" " + without_brackets(ending) for ending in endings)
    if any(not choice.strip() for choice in choices):
        raise NoQuestion("missing field", "one of its endings is blank")
    return Example(without_brackets(f"{activity}: {context}"), choices, _index(row.get("label"), len(choices), "label"))


def without_brackets(text: str) -> str:
    """Without the marks that WikiHow's articles left in HellaSwag, "[title]", "[step]" and others.

    Source: the clean-up that HellaSwag's authors and lm-evaluation-harness do; a title ends a sentence.
    """
    text = re.sub(r"\[[^\]]*\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ").strip()


def boolq(row: dict[str, Any]) -> Example:
    """A row of BoolQ's `{train,dev}.jsonl`."""
    passage, question, answer = _text(row, "passage"), _text(row, "question"), row.get("answer")
    if not isinstance(answer, bool):
        raise NoQuestion("no answer", "its field `answer` has to be true or false")
    return Example(f"{passage}\nQuestion: {question.rstrip('?')}?\nAnswer:", (" yes", " no"), 0 if answer else 1)


def mmlu(row: dict[str, Any]) -> Example:
    """The columns of a line of MMLU's `SUBJECT_{dev,val,test}.csv`: question, four choices, the right one's letter."""
    columns = row["columns"]
    if len(columns) != 6:
        raise NoQuestion(
            "missing field", f"it has {len(columns)} columns, and needs a question, four choices, a letter"
        )
    question, *choices, letter = (column.strip() for column in columns)
    if not question or not all(choices):
        raise NoQuestion("missing field", "its question or one of its choices is blank")
    if letter not in ("A", "B", "C", "D"):
        raise NoQuestion("no answer", f"its right answer is {letter!r:.20}, and has to be A, B, C or D")
    return Example(f"Question: {question}\nAnswer:", tuple(f" {choice}" for choice in choices), "ABCD".index(letter))


def _text(row: dict[str, Any], field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        raise NoQuestion("missing field", f"its field `{field}` has to be a text that is not blank")
    return value.strip()


def _index(value: Any, count: int, field: str) -> int:
    """The number of the right answer, which HellaSwag's mirrors write as text; tests have none, or -1."""
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count:
        raise NoQuestion("no answer", f"its field `{field}` has to be a number from 0 to {count - 1}")
    return value


TASKS = {
    task.name: task
    for task in (
        Task("boolq", "dev.jsonl", "train.jsonl", "bool_q", ("validation", "train"), boolq),
        Task(
            "hellaswag",
            "hellaswag_val.jsonl",
            "hellaswag_train.jsonl",
            "hellaswag",
            ("validation", "train"),
            hellaswag,
        ),
        Task("mmlu", "test", "dev", "", ("", ""), mmlu),
    )
}
