"""Multiple choice: which of a question's answers a model finds most likely, and what the right one costs.

The answers of a question are scored behind the same prompt. Source of the measures: `acc` and `acc_norm` of
lm-evaluation-harness, and the bits per byte of the right answer of OLMES (arXiv 2406.08446).
"""

import hashlib
import json
import math
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from slicedice.data.account import Account
from slicedice.data.tokenizer import Tokenizer
from slicedice.evaluation.documents import Settings
from slicedice.evaluation.questions import Question, copy_of, find_files, load
from slicedice.evaluation.rows import Row, Score, summed, windows
from slicedice.evaluation.tasks import SHOTS, Task

MEASURES = ("nats", "bits_per_byte", "accuracy", "accuracy_normalised", "truncated")
"""Of a task or group: means over questions. They are told in `measures`."""


class TaskEvaluation:
    """The evaluation on a task.

    Args:
      task: the task.
      data_dir: see `questions.load`.
      copies: where `asked.copy_tasks` has put what lies in TFDS, to read that instead; None to read TFDS.

    Raises:
      DataError: the task is known not to be there.
    """

    kind = "tasks"

    def __init__(self, task: Task, data_dir: str, copies: Path | None = None):
        if copies is not None and find_files(task, data_dir) is None:
            data_dir = str(copy_of(task, data_dir, copies))
        self.name, self._task, self._data_dir = task.name, task, data_dir
        if find_files(task, data_dir) is None and not (task.tfds and find_spec("tensorflow_datasets")):
            load(task, data_dir, Account(skip=True))  # which says what is looked for
        self._account = Account(skip=True)
        self._loaded: tuple[list[Question], list[str]] | None = None

    def settings(self, settings: Settings) -> dict[str, int]:
        """What results depend on beside model and questions."""
        return {"window": settings.window, "shots": SHOTS}

    def _load(self) -> tuple[list[Question], list[str]]:
        if self._loaded is None:
            self._loaded = load(self._task, self._data_dir, self._account)
        return self._loaded

    def fingerprint(self) -> str:
        """12 hex digits of all questions with their shots, in their order.

        Raises:
          DataError: see `questions.load`.
        """
        digest = hashlib.sha256()
        for question in self._load()[0]:
            digest.update(json.dumps(question).encode())
        return digest.hexdigest()[:12]

    def evaluate(
        self, scores: dict[str, Score], tokenizer: Tokenizer, settings: Settings, *, batch_size: int
    ) -> dict[str, Any]:
        """Scores every answer of every question in every way of `scores`; takes what `DocumentEvaluation` does.

        Returns:
          `kind` and `settings`; `scores`, for each way by group `MEASURES`, `questions` and `skipped` rows; of several
          groups the mean as well, called as the task. `fingerprint`; `problems` by kind; `missing` files.

        Raises:
          DataError: see `questions.load`.
        """
        questions, missing = self._load()
        put: list[Put] = []

        def rows() -> Iterator[Row]:
            for i, question in enumerate(questions):
                prompt = prompted(question, tokenizer, settings.window)
                put.append(Put([tokens.size - first for tokens, first in prompt.answers], prompt.truncated))
                for j, (tokens, first) in enumerate(prompt.answers):
                    yield from windows(tokens, first, settings.window, settings.window, (i, j))

        end = tokenizer.end_of_document
        nats = summed(rows(), scores, batch_size=batch_size, window=settings.window, padding=end)
        skipped = sum(self._account.counts.values())
        return {
            "kind": self.kind,
            "settings": self.settings(settings),
            "scores": {name: self._by_group(questions, put, own, skipped) for name, own in nats.items()},
            "fingerprint": self.fingerprint(),
            "problems": self._account.state(),
            "missing": missing,
        }

    def _by_group(
        self, questions: list[Question], put: list["Put"], nats: dict[Any, float], skipped: int
    ) -> dict[str, dict[str, Any]]:
        groups: dict[str, list[dict[str, float]]] = {}
        for i, (question, how) in enumerate(zip(questions, put, strict=True)):
            costs = np.array([nats[i, j] for j in range(len(question.example.choices))])
            groups.setdefault(question.group, []).append(measures(question, costs, how))
        scores: dict[str, dict[str, Any]] = {
            group: {name: sum(m[name] for m in own) / len(own) for name in MEASURES} | {"questions": len(own)}
            for group, own in groups.items()
        }
        if list(scores) != [self.name]:
            mean = {name: sum(score[name] for score in scores.values()) / len(scores) for name in MEASURES}
            scores[self.name] = mean | {"questions": len(questions)}
        scores[self.name]["skipped"] = skipped
        return scores


class Put(NamedTuple):
    """How a question was put: tokens of each answer, and whether its prompt lost text."""

    sizes: list[int]
    truncated: bool


class Prompted(NamedTuple):
    """A question as tokens.

    Attributes:
      answers: for each choice the tokens of prompt and answer, and the index of the answer's first token.
      truncated: whether the prompt lost text to fit the window.
    """

    answers: list[tuple[np.ndarray, int]]
    truncated: bool


def prompted(question: Question, tokenizer: Tokenizer, window: int) -> Prompted:
    """Tokenises a question: end of document, as many shots as fit, the question, and each answer.

    Where all does not fit, the first shots are left out, whole, and then the beginning of the question, for all answers
    alike. An answer is never cut; one that is longer than the window has no prompt left.

    Args:
      question: the question.
      tokenizer: the model's.
      window: inputs that a model sees at once.
    """
    shots, truncated = question.shots, False
    end = np.array([tokenizer.end_of_document], np.int32)
    while True:
        context = "\n\n".join([*shots, question.example.context])
        pairs = encode_pairs(tokenizer, context, question.example.choices)
        longest = max(prompt.size + answer.size for prompt, answer in pairs)
        if longest <= window or not shots:
            break
        shots, truncated = shots[1:], True
    if longest > window:
        truncated = True
        room = max(0, window - max(answer.size for _, answer in pairs))
        pairs = [(prompt[max(0, prompt.size - room) :], answer) for prompt, answer in pairs]
    return Prompted([(np.concatenate([end, prompt, answer]), 1 + prompt.size) for prompt, answer in pairs], truncated)


def encode_pairs(
    tokenizer: Tokenizer, context: str, continuations: tuple[str, ...]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Tokens of a context and of each continuation, as lm-evaluation-harness parts them.

    Spaces that the context ends in belong to the continuation, as tokenizers have them. Both are encoded as one text,
    and what exceeds the context's own tokens is the continuation, at least one token: none is lost or there twice.

    Args:
      tokenizer: the model's.
      context: what stands before.
      continuations: not blank.

    Returns:
      For each continuation the tokens of the context, int32, and its own.
    """
    kept = context.rstrip(" ")
    own, *whole = tokenizer.encode([kept, *(context + continuation for continuation in continuations)])
    parted = []
    for tokens in whole:
        size = min(own.size, tokens.size - 1)
        parted.append((tokens[:size].astype(np.int32), tokens[size:].astype(np.int32)))
    return parted


def measures(question: Question, costs: np.ndarray, put: Put) -> dict[str, float]:
    """What one question adds to the means.

    Args:
      question: the question.
      costs: nats of each answer.
      put: how it was put.

    Returns:
      nats: of the right answer, a token. bits_per_byte: of it, over the bytes of its text with its space.
      accuracy: 1 where the right answer costs least; of answers that cost the same, each counts its share.
      accuracy_normalised: the same by costs over the characters of an answer, without its space.
      truncated: 1 where the prompt lost text.
    """
    _, choices, right = question.example
    characters = np.array([len(choice.strip()) for choice in choices])
    return {
        "nats": costs[right] / put.sizes[right],
        "bits_per_byte": costs[right] / math.log(2) / len(choices[right].encode()),
        "accuracy": _share(costs, right),
        "accuracy_normalised": _share(costs / characters, right),
        "truncated": float(put.truncated),
    }


def _share(costs: np.ndarray, right: int) -> float:
    least = costs == costs.min()
    return float(least[right] / least.sum())
