"""Evaluations of runs as columns of their rows: `loss_NAME` and others, of those that compare.

What was evaluated on other files, or in other windows, than most runs of a scale never meets these in a column.
"""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from slicedice.report.measurements import number, text

Row = dict[str, Any]
Evaluations = dict[str, dict[str, Any] | None]

COLUMNS = {
    "nats": "loss",
    "bits_per_byte": "bits_per_byte",
    "accuracy": "accuracy",
    "accuracy_normalised": "accuracy_normalised",
}
"""How columns begin, by the name of the measure."""


def read_evaluations(rows: list[Row], evaluated: dict[str, Evaluations]) -> Iterator[tuple[str, str]]:
    """Adds to rows what their runs' evaluations found; yields name and reason for each that is left out.

    Args:
      rows: of runs; columns are added.
      evaluated: by id, what `RunFolder.evaluations` found.
    """
    found = [(row, name, content) for row in rows for name, content in evaluated.get(row["id"], {}).items()]
    # Panels are of one scale: only there values meet.
    counts: dict[tuple[str, str], Counter[str]] = {}
    for row, name, content in found:
        if content and "scores" in content:
            counts.setdefault((row["scale"], name), Counter())[_of(content)] += 1
    most = {key: max(own, key=own.__getitem__) for key, own in counts.items()}
    for row, name, content in found:
        try:
            if content is None:
                yield row["name"], f"its evaluation {name} is damaged; evaluate the run again"
            elif content["kind"] == "failed":
                yield row["name"], f"its evaluation {name} failed: {text(content['reason'])}"
            elif content["kind"] in ("documents", "tasks"):
                if _of(content) != most[row["scale"], name]:
                    yield row["name"], f"its evaluation {name} is of other files or settings than that of most runs"
                    continue
                own = _columns(name, content, row["router"])
                if taken := sorted(own.keys() & row.keys()):
                    yield row["name"], f"its evaluation {name} is called as another set ({taken[0]}); rename its files"
                else:
                    row |= own
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            yield row["name"], f"its evaluation {name} is damaged ({type(error).__name__} {error}); evaluate it again"


def incomplete(rows: list[Row], evaluated: dict[str, Evaluations]) -> Iterator[tuple[str, str]]:
    """Yields name and reason for each evaluation that lacks sets or files that belong to it."""
    for row in rows:
        for name, content in evaluated.get(row["id"], {}).items():
            missing = (content or {}).get("missing")
            if missing and isinstance(missing, list):
                yield row["name"], f"{name} is a mean without {', '.join(map(str, missing))}"


def _of(content: dict[str, Any]) -> str:
    """What two evaluations have in common that compare: the texts, and how they were cut."""
    return json.dumps([content.get("fingerprint"), content.get("settings")], sort_keys=True)


def _columns(name: str, content: dict[str, Any], router: str | None) -> Row:
    """`loss_NAME`, `loss_NAME.DOMAIN`, `accuracy_TASK` and others, also with `without_capacity_` before them.

    Raises:
      KeyError, TypeError, AttributeError, ValueError, OverflowError: it lacks something, or that is not what it was.
    """
    columns: Row = {}
    # What has no capacity is evaluated without one.
    free = "without_capacity" if router == "default" else "as_trained"
    for way, prefix in (("as_trained", ""), (free, "without_capacity_")):
        for part, score in content["scores"][way].items():
            suffix = part if content["kind"] == "tasks" else name if part == "macro" else f"{name}.{part}"
            for measure, begins in COLUMNS.items():
                if measure in score:
                    columns[f"{prefix}{begins}_{suffix}"] = number(score[measure])
    return columns
