"""Tasks: their prompts, on rows made by hand, their files, and rows that are no questions."""

from pathlib import Path
from typing import Any

import pytest

from slicedice.data import DataError
from slicedice.data.account import Account
from slicedice.evaluation.questions import load
from slicedice.evaluation.tasks import GROUPS, SHOTS, SUBJECTS, TASKS, Example, NoQuestion, without_brackets
from slicedice.spec.config import EVALUATION_TASKS
from tests.evaluation.files import boolq_row, hellaswag_row, mmlu_row, write_all, write_csv, write_lines


def test_the_table_is_what_configs_may_name():
    assert tuple(TASKS) == EVALUATION_TASKS
    assert len(SUBJECTS) == 57
    assert {group: len(subjects.split()) for group, subjects in GROUPS.items()} == {
        "humanities": 13,
        "stem": 18,
        "social_sciences": 12,
        "other": 14,
    }


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("How to cook [header] Boil [step] Take water.", "How to cook Boil Take water."),
        ("Wash it. [title] Dry it [step] With a towel. ", "Wash it.. Dry it With a towel."),
        ("[substeps] Begin [0] here.", "Begin here."),
        ("No brackets ] at [ all", "No brackets ] at [ all"),
    ],
)
def test_brackets_are_cleaned_away(text: str, clean: str):
    assert without_brackets(text) == clean


def test_prompts():
    row = hellaswag_row(3, ctx="Boil [step] Take water. you", endings=["[title] pour it", "b.", "c."], label="2")
    found = TASKS["hellaswag"].read(row)
    assert found == Example("Roof shingle removal: Boil Take water. you", (" pour it", " b.", " c."), 2)
    for question in ("is 3 a number", "is 3 a number?"):
        assert TASKS["boolq"].read(boolq_row(3, question=question)) == Example(
            "Number -- 3 is one.\nQuestion: is 3 a number?\nAnswer:", (" yes", " no"), 0
        )
    assert TASKS["boolq"].read(boolq_row(4)).right == 1
    assert TASKS["mmlu"].read({"columns": mmlu_row(2)}) == Example(
        'Question: What is "2",\nif anything?\nAnswer:', (" one", " two or three", " a number", " nothing"), 2
    )


BAD: list[tuple[str, dict[str, Any], str]] = [
    *(("hellaswag", hellaswag_row(0, label=label), "no answer") for label in ("", -1, 4, None, True, 1.0, "x")),
    *(("hellaswag", hellaswag_row(0, **{field: value}), "missing field")
      for field in ("ctx", "activity_label", "endings") for value in ("", None, 3, [])),
    ("hellaswag", hellaswag_row(0, endings=["a", " ", "c", "d"]), "missing field"),
    ("hellaswag", hellaswag_row(0, endings=["a", "[step]", "c", "d"]), "missing field"),
    ("hellaswag", hellaswag_row(0, endings=["a"]), "missing field"),
    *(("boolq", boolq_row(0, answer=answer), "no answer") for answer in (None, "true", 1, "")),
    *(("boolq", boolq_row(0, **{field: None}), "missing field") for field in ("passage", "question")),
    *(("mmlu", {"columns": [*mmlu_row(0)[:5], letter]}, "no answer") for letter in ("", "E", "a", "AB", "1")),
    ("mmlu", {"columns": mmlu_row(0)[:5]}, "missing field"),
    ("mmlu", {"columns": [*mmlu_row(0), "x"]}, "missing field"),
    ("mmlu", {"columns": ["", *mmlu_row(0)[1:]]}, "missing field"),
    ("mmlu", {"columns": [*mmlu_row(0)[:2], " ", *mmlu_row(0)[3:]]}, "missing field"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "row", "kind"), BAD)
def test_rows_that_are_no_questions(task: str, row: dict[str, Any], kind: str):
    with pytest.raises(NoQuestion) as error:
        TASKS[task].read(row)
    assert error.value.kind == kind


@pytest.mark.parametrize("task", EVALUATION_TASKS)
def test_questions_come_with_the_first_examples_of_another_split(task: str, tmp_path: Path):
    write_all(tmp_path)
    account = Account(skip=True)
    questions, missing = load(TASKS[task], str(tmp_path), account)
    assert (len(questions), missing, account.counts) == (114 if task == "mmlu" else 6, [], {})
    assert {q.group for q in questions} == ({f"mmlu_{g}" for g in GROUPS} if task == "mmlu" else {task})
    for question in questions:
        assert len(question.shots) == SHOTS
        assert len(set(question.shots)) == SHOTS
    first = questions[0].shots
    answers = {"hellaswag": "he is using wrap 0.", "boolq": "Answer: yes", "mmlu": "Answer: one"}
    assert first[0].endswith(answers[task])
    assert "3" in first[3], "in the order of the file"


def test_shots_of_mmlu_are_of_the_questions_subject(tmp_path: Path):
    write_all(tmp_path)
    own = [[f"Only here {i}", "a", "b", "c", "d", "B"] for i in range(5)]
    write_csv(tmp_path / "mmlu" / "data" / "dev" / "virology_dev.csv", own)
    questions, _ = load(TASKS["mmlu"], str(tmp_path), Account(skip=True))
    seen = [i for i, q in enumerate(questions) if "Only here" in q.shots[0]]
    assert seen == [2 * list(SUBJECTS).index("virology"), 2 * list(SUBJECTS).index("virology") + 1]
    assert questions[seen[0]].group == "mmlu_other"


@pytest.mark.parametrize("below", ["", "hellaswag", "data", "hellaswag/data"])
def test_files_are_found_in_folders_as_people_have_them(tmp_path: Path, below: str):
    for split in ("val", "train"):
        write_lines(tmp_path / below / f"hellaswag_{split}.jsonl", [hellaswag_row(i) for i in range(5)])
    assert len(load(TASKS["hellaswag"], str(tmp_path), Account(skip=True))[0]) == 5


def test_bad_lines_are_counted_and_named_by_file_and_line(tmp_path: Path):
    write_all(tmp_path)
    bad = [
        hellaswag_row(0),
        b"{broken\n",
        b'{"ctx": "\xff"}\n',
        b"[1]\n",
        hellaswag_row(1, label=""),
        b"\n",
        hellaswag_row(2),
    ]
    write_lines(tmp_path / "hellaswag_val.jsonl", bad)
    account = Account(skip=True)
    questions, _ = load(TASKS["hellaswag"], str(tmp_path), account)
    assert len(questions) == 2
    assert sum(account.counts.values()) == 4
    named = " ".join(message for own in account.named.values() for message in own)
    for line in (2, 3, 4, 5):
        assert f"hellaswag_val.jsonl:{line} " in named
    # Those of the examples to show are passed over as well, and the next ones shown.
    write_lines(tmp_path / "hellaswag_train.jsonl", [hellaswag_row(9, label=-1), *(hellaswag_row(i) for i in range(5))])
    questions, _ = load(TASKS["hellaswag"], str(tmp_path), account)
    assert "A man 0 " in questions[0].shots[0]
    assert any("hellaswag_train.jsonl:1 " in message for message in account.named["no answer"])


def test_bad_lines_of_a_csv_file(tmp_path: Path):
    write_all(tmp_path)
    path = tmp_path / "mmlu" / "data" / "test" / "anatomy_test.csv"
    lines = [
        "good?,a,b,c,d,A",
        "short,a,b",
        'two\nlines",x',
        '"a record\nof two lines",a,b,c,d,Z',
        "bad \ud8ff,a,b,c,d,A",
    ]
    lines = ["good?,a,b,c,d,A", "short,a,b", '"of two\nlines",a,b,c,d,Z', "BAD,a,b,c,d,A", "last?,a,b,c,d,D"]
    path.write_bytes("\n".join(lines).encode().replace(b"BAD", b"\xff"))
    account = Account(skip=True)
    questions, _ = load(TASKS["mmlu"], str(tmp_path), account)
    own = [q.example.context for q in questions if q.example.choices[0] == " a"]
    assert own == ["Question: good?\nAnswer:", "Question: last?\nAnswer:"]
    assert account.counts == {"missing field": 1, "no answer": 1, "not UTF-8": 1}
    named = " ".join(message for own in account.named.values() for message in own)
    for line in (2, 4, 5):  # a record's last
        assert f"anatomy_test.csv:{line} " in named


def test_subjects_without_questions_are_named(tmp_path: Path):
    write_all(tmp_path)
    (tmp_path / "mmlu" / "data" / "test" / "anatomy_test.csv").unlink()
    questions, missing = load(TASKS["mmlu"], str(tmp_path), Account(skip=True))
    assert (len(questions), missing) == (112, ["anatomy_test.csv"])


def test_too_few_examples_to_show_are_refused_by_name(tmp_path: Path):
    write_all(tmp_path)
    dev = tmp_path / "mmlu" / "data" / "dev" / "virology_dev.csv"
    write_csv(dev, [mmlu_row(i) for i in range(4)] + [["x"]])
    with pytest.raises(DataError, match=r"virology_dev\.csv only 4 can be used.*virology_dev\.csv:9 is no question"):
        load(TASKS["mmlu"], str(tmp_path), Account(skip=True))
    dev.unlink()
    with pytest.raises(DataError, match=r"virology_dev\.csv is missing"):
        load(TASKS["mmlu"], str(tmp_path), Account(skip=True))


def test_files_without_a_question_are_refused_by_name(tmp_path: Path):
    write_all(tmp_path)
    write_lines(tmp_path / "boolq" / "dev.jsonl", [boolq_row(0, answer=None)])
    with pytest.raises(DataError, match=r"boolq has no question.*dev\.jsonl:1 is no question of boolq"):
        load(TASKS["boolq"], str(tmp_path), Account(skip=True))


def test_mmlu_that_is_not_there_says_that_tfds_lacks_it(tmp_path: Path):
    with pytest.raises(
        DataError, match=rf"mmlu is not there: there are no folders test and dev in {tmp_path}.*TFDS does not"
    ):
        load(TASKS["mmlu"], str(tmp_path), Account(skip=True))
