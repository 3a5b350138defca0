"""Scores of answers against whole sequences scored one by one; prompts that are too long; ties; pairs of tokens."""

import math
from pathlib import Path

import numpy as np
import pytest

from slicedice.data.account import Account
from slicedice.data.tokenizer import ByteTokenizer
from slicedice.evaluation import Settings, find
from slicedice.evaluation.multiple_choice import Put, encode_pairs, measures, prompted
from slicedice.evaluation.questions import Question, load
from slicedice.evaluation.tasks import TASKS, Example
from tests.evaluation.conftest import WINDOW, Bench
from tests.evaluation.files import boolq_row, hellaswag_row, write_all, write_lines

END = 255


class Merging(ByteTokenizer):
    """Bytes, of which pairs that are `merges` are one token: also over the border of context and answer."""

    merges = (b"xyz yes", b"r:", b": ", b"a b", b". ")

    def encode(self, texts):
        return [self._merged(text.encode()) for text in texts]

    def _merged(self, text: bytes) -> np.ndarray:
        ids, i = [], 0
        while i < len(text):
            merge = next((j for j, m in enumerate(self.merges) if text.startswith(m, i)), None)
            ids.append(text[i] if merge is None else 1000 + merge)
            i += 1 if merge is None else len(self.merges[merge])
        return np.array(ids, np.uint32)


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), Merging()], ids=["bytes", "merging"])
@pytest.mark.parametrize("context", ["Answer:", "Answer: ", "x a", "xyz", "", "  "])
def test_pairs_lose_no_token(tokenizer, context: str):
    continuations = (" b and more", " yes", ". c")
    for (prompt, answer), continuation in zip(
        encode_pairs(tokenizer, context, continuations), continuations, strict=True
    ):
        whole = tokenizer.encode([context + continuation])[0]
        assert np.array_equal(np.concatenate([prompt, answer]), whole)
        assert answer.size > 0
        assert prompt.size <= tokenizer.encode([context.rstrip(" ")])[0].size


def test_the_space_belongs_to_the_answer():
    (_, answer), *_ = encode_pairs(ByteTokenizer(), "Answer:", (" yes",))
    assert bytes(answer.astype(np.uint8)) == b" yes"
    (prompt, answer), *_ = encode_pairs(ByteTokenizer(), "Answer: ", ("yes",))
    assert (bytes(prompt.astype(np.uint8)), bytes(answer.astype(np.uint8))) == (b"Answer:", b" yes")


def question(shots: tuple[str, ...], context: str, *choices: str, right: int = 0) -> Question:
    return Question("task", shots, Example(context, choices, right))


def read(tokens: np.ndarray) -> str:
    assert tokens[0] == END
    return bytes(tokens[1:].astype(np.uint8)).decode()


def test_shots_go_whole_from_the_left_and_then_the_beginning_of_the_question():
    asked = question(("shot one", "shot two"), "the question", " a", " bcd")
    full = "shot one\n\nshot two\n\nthe question"
    for window, kept in (
        (len(full) + 4, full),
        (len(full) + 3, "shot two\n\nthe question"),
        (26, "shot two\n\nthe question"),
        (25, "the question"),
        (16, "the question"),
        (15, "he question"),
        (5, "n"),
        (4, ""),
        (2, ""),
    ):
        found = prompted(asked, ByteTokenizer(), window)
        assert found.truncated == (kept != full)
        assert [read(tokens) for tokens, _ in found.answers] == [kept + " a", kept + " bcd"], window
        assert [read(tokens[:first]) for tokens, first in found.answers] == [kept] * 2


def write_tasks(folder: Path, rng: np.random.Generator, count: int = 7) -> None:
    """Questions short enough that some fit a window of 16 bytes and some do not."""

    def word(longest: int) -> str:
        return "".join(rng.choice(list("abcdeä"), rng.integers(1, longest)))

    rows = []
    for i in range(count):
        endings = [letter + word(8) for letter in "fghi"]  # no two alike, which would tie
        rows.append(hellaswag_row(i, activity_label="a", ctx=word(4), endings=endings, label=int(rng.integers(4))))
    rows.append(hellaswag_row(count, endings=[word(30) + "a" * 20, "b", "cc", "d" * 17], label=0))
    for split in ("val", "train"):
        write_lines(folder / f"hellaswag_{split}.jsonl", rows)


def test_scores_are_those_of_whole_sequences_one_by_one(bench: Bench, tmp_path: Path, rng: np.random.Generator):
    write_tasks(tmp_path, rng)
    evaluation = find("tasks", "hellaswag", str(tmp_path))
    found = evaluation.evaluate(bench.scores, bench.tokenizer, Settings(WINDOW, WINDOW), batch_size=2)
    score = found["scores"]["as_trained"]["hellaswag"]
    assert found["settings"] == {"window": WINDOW, "shots": 5}
    assert (score["questions"], score["skipped"], found["missing"]) == (8, 0, [])
    nats, bits, right, by_length, cut = [], [], [], [], []
    for put in load(TASKS["hellaswag"], str(tmp_path), Account(skip=True))[0]:
        _, choices, answer = put.example
        context = put.example.context.encode()
        longest = max(len(choice.encode()) for choice in choices)
        costs = []
        for choice in choices:
            own = choice.encode()
            prompt = context[-max(0, WINDOW - longest) :] if longest < WINDOW else b""
            tokens = [END, *prompt, *own]
            losses = np.concatenate(
                [bench.naive.losses(np.array(tokens[i : i + WINDOW + 1])) for i in range(0, len(tokens) - 1, WINDOW)]
            )
            costs.append(losses[len(prompt) :].sum())
        cut.append(True)  # no shot fits
        nats.append(costs[answer] / len(choices[answer].encode()))
        bits.append(costs[answer] / math.log(2) / len(choices[answer].encode()))
        right.append(int(np.argmin(costs)) == answer)
        by_length.append(
            int(np.argmin([c / len(choice[1:]) for c, choice in zip(costs, choices, strict=True)])) == answer
        )
    assert score["nats"] == pytest.approx(np.mean(nats), rel=2e-5)
    assert score["bits_per_byte"] == pytest.approx(np.mean(bits), rel=2e-5)
    assert score["accuracy"] == np.mean(right)
    assert score["accuracy_normalised"] == np.mean(by_length)
    assert score["truncated"] == np.mean(cut)


def test_measures_of_a_question():
    asked = question((), "c", " aa", " b", " ccccä", right=2)
    costs = np.array([1.4, 2.0, 2.9])
    found = measures(asked, costs, Put([3, 2, 4], False))
    assert found == {
        "nats": 2.9 / 4,
        "bits_per_byte": 2.9 / math.log(2) / 7,
        "accuracy": 0.0,
        "accuracy_normalised": 1.0,  # 0.58 a character, of five; with their spaces, the first would cost less
        "truncated": 0.0,
    }


def test_of_answers_that_tie_each_counts_its_share():
    shares = [
        measures(question((), "c", " a", " b", " c", right=i), np.array([1.0, 1.0, 2.0]), Put([1] * 3, True))
        for i in range(3)
    ]
    assert [share["accuracy"] for share in shares] == [0.5, 0.5, 0.0]
    assert [share["accuracy_normalised"] for share in shares] == [0.5, 0.5, 0.0]
    assert shares[0]["truncated"] == 1.0


def test_groups_of_mmlu_and_their_mean(bench: Bench, tmp_path: Path):
    write_all(tmp_path)
    evaluation = find("tasks", "mmlu", str(tmp_path))
    found = evaluation.evaluate(bench.scores, bench.tokenizer, Settings(WINDOW, WINDOW), batch_size=8)
    scores = found["scores"]["as_trained"]
    groups = ["mmlu_humanities", "mmlu_stem", "mmlu_social_sciences", "mmlu_other"]
    assert list(scores) == [*groups, "mmlu"]
    assert [scores[group]["questions"] for group in groups] == [26, 36, 24, 28]
    assert scores["mmlu"]["questions"] == 114
    for name in ("nats", "accuracy", "bits_per_byte"):
        assert scores["mmlu"][name] == pytest.approx(np.mean([scores[group][name] for group in groups]), rel=1e-9)


def test_what_was_passed_over_is_counted(bench: Bench, tmp_path: Path):
    write_all(tmp_path)
    write_lines(tmp_path / "boolq" / "dev.jsonl", [boolq_row(0), boolq_row(1, answer=None), b"{x\n", boolq_row(2)])
    evaluation = find("tasks", "boolq", str(tmp_path))
    first, second = (
        evaluation.evaluate(bench.scores, bench.tokenizer, Settings(WINDOW, WINDOW), batch_size=2) for _ in range(2)
    )
    assert first == second, "to be evaluated on twice counts nothing twice"
    assert first["scores"]["as_trained"]["boolq"]["skipped"] == 2
    assert first["problems"]["counts"] == {"no answer": 1, "not JSON": 1}


def test_a_fingerprint_is_of_questions_and_shots(tmp_path: Path):
    prints = []
    for shown, asked in ((0, 0), (0, 0), (1, 0), (0, 1)):
        folder = tmp_path / str(len(prints))
        write_lines(folder / "dev.jsonl", [boolq_row(i + asked) for i in range(3)])
        write_lines(folder / "train.jsonl", [boolq_row(i + shown) for i in range(5)])
        prints.append(find("tasks", "boolq", str(folder)).fingerprint())
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3
