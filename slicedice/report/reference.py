"""The authors' reference values, and a report's own beside those of the same setting.

Source: the authors' public result export of January 2026, of the study "Slicing and Dicing" (arXiv 2605.11689).
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from slicedice.grid import Plan
from slicedice.report.captions import number
from slicedice.report.results import Row
from slicedice.report.statistics import Cell, cells

LEARNING_RATE = 4e-4
"""Peak learning rate of all reference runs."""

BATCH = 512 * 2048
"""Tokens of a step of theirs."""

ROUTING = {None: "None None", "dropless": "None 0.001", "default": "1.2 0.001"}
"""Capacity factor and weight of the z-loss by router, as the column `routing` has them, there with the group after."""

CLOSE = 0.02
"""By what share tokens, and tokens of a step, may differ in the same setting; and active parameters at one scale."""


SHOWN = ("steps", "learning_rate", "alpha", "gamma")
"""Settings that columns of their own show."""


@dataclass(frozen=True)
class Reference:
    """A reference run, or one and its repeat.

    active: parameters, embeddings included. tokens: trained on.
    n: experts. g: their granularity; n = 1 with g = "1" is dense. router, alpha, gamma: as columns of the results.
    train: cross-entropy in nats at the end of training. evaluation: mean over the study's 11 evaluation sets.
    """

    active: float
    tokens: float
    n: int
    g: str
    train: tuple[float, ...]
    evaluation: tuple[float, ...]
    router: str | None = "dropless"
    alpha: float | None = 1e-2
    gamma: float | None = 0.0

    @property
    def configuration(self) -> str:
        """Layer and router in words."""
        if self.router is None:
            return "dense"
        balancing = f"alpha {self.alpha:g}, gamma {self.gamma:g}"
        return f"{self.router} n{self.n} g{self.g} s{self.n * Fraction(self.g)}, {balancing}"


DENSE: Any = {"n": 1, "g": "1", "router": None, "alpha": None, "gamma": None}
CAPPED: Any = {"router": "default", "alpha": 1e-4, "gamma": 1e-3}

# Where the export names no alpha and gamma, runs had 1e-2 and 0.
REFERENCES = (
    Reference(82e6, 1e9, **DENSE, train=(4.951, 4.947), evaluation=(5.324, 5.314)),
    Reference(82e6, 1e9, 16, "1/2", (4.752,), (5.148,)),
    Reference(82e6, 1e9, 16, "1/4", (4.821,), (5.207,)),
    Reference(82e6, 1e9, 32, "1/4", (4.720,), (5.079,)),
    Reference(82e6, 1e9, 64, "1/2", (4.591,), (4.966,), gamma=1e-3),
    Reference(82e6, 1e9, 16, "1/2", (4.794,), (5.506,), **CAPPED),
    Reference(82e6, 1e9, 16, "1/4", (4.833,), (5.566,), **CAPPED),
    Reference(194e6, 5e9, **DENSE, train=(3.681,), evaluation=(3.685,)),
    Reference(194e6, 5e9, 16, "1", (3.659,), (3.667,)),
    Reference(194e6, 5e9, 16, "1/2", (3.487,), (3.485,)),
    Reference(194e6, 5e9, 64, "1/2", (3.390,), (3.384,), gamma=1e-3),
    Reference(300e6, 10e9, 64, "1/4", (3.090,), (3.088,), gamma=1e-3),
)


@dataclass(frozen=True)
class Comparison:
    """A reference value and a cell of one's own with its layer and router.

    loss: the cell's held-out loss. train: mean of its train loss in nats, None if unknown.
    same: whether tokens, batch and learning rate are the reference's too; else it has another budget.
    """

    reference: Reference
    loss: Cell
    train: float | None
    same: bool

    def as_dict(self) -> dict[str, Any]:
        """As JSON types."""
        reference, row = self.reference, self.loss.row
        return {
            "same_setting": self.same,
            "configuration": reference.configuration,
            "active_parameters": reference.active,
            "reference": {
                "tokens": reference.tokens,
                "learning_rate": LEARNING_RATE,
                "train_loss": list(reference.train),
                "loss": list(reference.evaluation),
            },
            "own": {
                "scale": row["scale"],
                "tokens": row["tokens"],
                "steps": row["steps"],
                "learning_rate": row["learning_rate"],
                "train_loss": self.train,
                "loss": self.loss.mean,
                "seeds": len(self.loss.values),
                "runs": list(self.loss.ids),
            },
        }

    def as_text(self) -> dict[str, str]:
        """As a line of a table, by column."""
        reference, row = self.reference, self.loss.row
        own = _budget(row["tokens"], row["steps"], row["learning_rate"])
        return {
            "active": number("", reference.active),
            "configuration": reference.configuration,
            "authors' budget": _budget(reference.tokens, reference.tokens / BATCH, LEARNING_RATE),
            "authors' train": " and ".join(f"{value:.3f}" for value in reference.train),
            "authors' evaluation": " and ".join(f"{value:.3f}" for value in reference.evaluation),
            "own scale": row["scale"],
            "own budget": "the same" if self.same else own,
            "settings": " ".join(part for part in row["settings"].split() if part.partition("=")[0] not in SHOWN),
            "own train": f"{self.train:.4f}" if self.train is not None else "",
            "own held-out": f"{self.loss.mean:.4f}",
            "seeds": str(len(self.loss.values)),
        }


def compare(rows: list[Row]) -> list[Comparison]:
    """For each reference value whose layer and router some finished run has, the cells to set beside it.

    They are those of the same tokens, batch and learning rate; where there are none, the one whose budget is nearest,
    of the same learning rate if there is one.
    """
    train = {cell.row["cell"]: cell.mean for cell in cells(rows, "train_loss")}
    measured, found = cells(rows, "loss"), []
    for reference in REFERENCES:
        own = [cell for cell in measured if _has_layer(cell.row, reference)]
        same = [cell for cell in own if _has_budget(cell.row, reference)]
        nearest = sorted(own, key=lambda cell: _distance(cell.row, reference))[:1]
        for cell in same or nearest:
            found.append(Comparison(reference, cell, train.get(cell.row["cell"]), bool(same)))
    return found


def caption(plan: Plan) -> str:
    """What a reader has to know before taking the values for like with like."""
    texts = dict.fromkeys(f"{spec.data.source}, tokenizer {spec.data.tokenizer}" for spec, _ in plan.runs.values())
    return (
        "The authors' values are from their public result export of January 2026 (arXiv 2605.11689): nats at the end "
        "of training on the OLMoE mix, and the mean over their 11 evaluation sets; two values are a run and its "
        f"repeat. Losses are comparable only on the same data and tokenizer, and these runs read {'; '.join(texts)}."
    )


BUDGETS = (
    "The scales train 20 tokens a parameter, and the export's runs 1B at 82M active parameters, 5B at 194M and 10B at "
    "300M: only with --config.budget.tokens set to these does a run have the export's budget."
)


def _has_layer(row: Row, reference: Reference) -> bool:
    """Whether a run is of the reference's active parameters, layer and router."""
    names = ("n", "router", "alpha", "gamma")
    return (
        all(row[name] == getattr(reference, name) for name in names)
        and (row["granularity"], row["generalist"]) == (reference.g, None)
        and row["routing"].rpartition(" ")[0] == ROUTING[reference.router]
        and _is_close(row["active_parameters"], reference.active)
    )


def _has_budget(row: Row, reference: Reference) -> bool:
    return (
        _is_close(row["tokens"], reference.tokens)
        and _is_close(BATCH * row["steps"], row["tokens"])
        and math.isclose(row["learning_rate"], LEARNING_RATE)
    )


def _distance(row: Row, reference: Reference) -> tuple[bool, float]:
    return not math.isclose(row["learning_rate"], LEARNING_RATE), abs(math.log(row["tokens"] / reference.tokens))


def _is_close(value: float, other: float) -> bool:
    return abs(value / other - 1) <= CLOSE


def _budget(tokens: float, steps: float, rate: float) -> str:
    """In words; steps are told where they are of another batch."""
    batch = "" if _is_close(BATCH * steps, tokens) else f" in {steps:,} steps"
    return f"{number('tokens', tokens)} tokens{batch} at {number('learning_rate', rate)}"
