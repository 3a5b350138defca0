"""Original files of the tasks, as their authors wrote them, small."""

import csv
import json
from pathlib import Path
from typing import Any

from slicedice.evaluation.tasks import SUBJECTS


def hellaswag_row(i: int, **fields: Any) -> dict[str, Any]:
    """A row of `hellaswag_{train,val}.jsonl`, with all fields that those have."""
    return {
        "ind": i,
        "activity_label": "Roof shingle removal",
        "ctx_a": f"A man {i} is sitting on a roof.",
        "ctx_b": "he",
        "ctx": f"A man {i} is sitting on a roof. he",
        "split": "val",
        "split_type": "indomain",
        "label": i % 4,
        "endings": [f"is using wrap {i}.", "is ripping level tiles off.", "is holding a cube.", "starts pulling up."],
        "source_id": "activitynet~v_-JhWjGDPHMY",
        **fields,
    }


def boolq_row(i: int, **fields: Any) -> dict[str, Any]:
    """A row of BoolQ's `{train,dev}.jsonl`."""
    row = {"question": f"is {i} a number", "title": "Number", "answer": i % 3 == 0, "passage": f"Number -- {i} is one."}
    return {**row, **fields}


def mmlu_row(i: int) -> list[str]:
    """A line of `SUBJECT_test.csv`."""
    return [f'What is "{i}",\nif anything?', "one", "two or three", "a number", "nothing", "ABCD"[i % 4]]


def write_lines(path: Path, rows: list[Any]) -> None:
    """Rows as JSON lines; bytes as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows))


def write_csv(path: Path, rows: list[list[str]]) -> None:
    """Rows as MMLU's authors write them: no header, quotes where there is need."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def write_all(folder: Path, count: int = 6) -> None:
    """Files of all tasks; of MMLU all subjects."""
    for split in ("val", "train"):
        write_lines(folder / f"hellaswag_{split}.jsonl", [hellaswag_row(i) for i in range(count)])
    for split in ("dev", "train"):
        write_lines(folder / "boolq" / f"{split}.jsonl", [boolq_row(i) for i in range(count)])
    for subject in SUBJECTS:
        write_csv(folder / "mmlu" / "data" / "test" / f"{subject}_test.csv", [mmlu_row(i) for i in range(2)])
        write_csv(folder / "mmlu" / "data" / "dev" / f"{subject}_dev.csv", [mmlu_row(i) for i in range(5)])
