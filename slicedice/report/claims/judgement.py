"""Verdicts, and the rules by which differences become one. No rule supports a claim for lack of data."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from slicedice.report.claims.difference import Difference, Pair, mean_difference
from slicedice.report.statistics import Cell

COMPARABLE = 0.02
"""Nats within which losses are called comparable: under half of what doubling the sparsity buys in the study."""

ENOUGH_PAIRS = 2
"""Comparisons under which a claim about all of them stays open."""


class Verdict(StrEnum):
    """What the runs say of a claim."""

    SUPPORTED = "supported"
    CONTRADICTED = "contradicted"
    UNRESOLVED = "unresolved"


@dataclass(frozen=True)
class Effect:
    """What was measured: a value, its 95 % interval if one is known, its unit, and how the interval was made."""

    value: float
    interval: tuple[float, float] | None
    unit: str = "nats"
    method: str = "t"

    def __str__(self) -> str:
        if self.interval is None:
            return f"{self.value:+.4f} {self.unit}"
        return f"{self.value:+.4f} [{self.interval[0]:+.4f}, {self.interval[1]:+.4f}] {self.unit}"


@dataclass(frozen=True)
class Finding:
    """What the runs of one scale say, in one sentence."""

    verdict: Verdict
    sentence: str
    effect: Effect | None = None
    runs: tuple[str, ...] = ()


def open_(sentence: str, pairs: Sequence[Pair] = ()) -> Finding:
    """A finding that leaves a claim open."""
    effect = effect_of(mean_difference(pairs)) if pairs else None
    return Finding(Verdict.UNRESOLVED, sentence, effect, runs_of(pairs))


def effect_of(difference: Difference) -> Effect:
    """A difference with its own 95 % interval."""
    return Effect(difference.value, difference.interval())


def runs_of(pairs: Sequence[Sequence[Cell]]) -> tuple[str, ...]:
    """Ids of the runs behind some cells, each once."""
    return tuple(dict.fromkeys(id_ for group in pairs for cell in group for id_ in cell.ids))


def everywhere_at_least(pairs: Sequence[Pair], bound: float, what: str) -> Finding:
    """Whether first less second is nowhere under `bound`: on average, and in no pair of them all.

    Supported if the mean's interval lies above `bound` and no pair is under both 0 and `bound` beyond chance;
    contradicted if the mean or some pair is, where a pair's interval is that of all pairs together (Bonferroni).

    Args:
      pairs: the comparisons.
      bound: in nats; 0 or below.
      what: the difference in words, as in "with a generalist less without".
    """
    if len(pairs) < ENOUGH_PAIRS:
        return open_(f"{what}: {len(pairs)} comparisons are too few.", pairs)
    mean = mean_difference(pairs)
    interval = mean.interval()
    if interval is None:
        return open_(f"{what}: no cell has two seeds, so noise is unknown.", pairs)
    exceptions = under(pairs, bound)
    if exceptions or (interval[1] < 0 and mean.value < bound):
        verdict = Verdict.CONTRADICTED
    else:
        verdict = Verdict.SUPPORTED if interval[0] > bound else Verdict.UNRESOLVED
    worst = min(exceptions, key=lambda pair: mean_difference([pair]).value, default=None)
    beyond = (
        f"{len(exceptions)} of {len(pairs)} pairs are under {bound:+g} beyond chance, most of all {name(worst[0])}"
        if worst
        else f"none of {len(pairs)} pairs is under {bound:+g} beyond chance"
    )
    sentence = f"{what}, on average: {said(mean)}; {beyond}."
    return Finding(verdict, sentence, effect_of(mean), runs_of(pairs))


def comparable(pairs: Sequence[Pair], what: str) -> Finding:
    """Whether first and second are comparable on average (two one-sided tests)."""
    mean = mean_difference(pairs)
    interval = mean.interval()
    if interval is None:
        return open_(f"{what}: noise is unknown.", pairs)
    verdict = Verdict.UNRESOLVED
    if interval[0] > -COMPARABLE and interval[1] < COMPARABLE:
        verdict = Verdict.SUPPORTED
    elif interval[0] > COMPARABLE or interval[1] < -COMPARABLE:
        verdict = Verdict.CONTRADICTED
    sentence = f"{what}: {said(mean)}."
    return Finding(verdict, sentence, effect_of(mean), runs_of(pairs))


def above(pairs: Sequence[Pair], what: str) -> Finding:
    """Whether first less second is above 0 on average."""
    mean = mean_difference(pairs)
    interval = mean.interval()
    verdict = Verdict.UNRESOLVED
    if interval and interval[0] > 0:
        verdict = Verdict.SUPPORTED
    elif interval and interval[1] < 0:
        verdict = Verdict.CONTRADICTED
    half = f" ± {(interval[1] - interval[0]) / 2:.4f}" if interval else ""
    return Finding(verdict, f"{what}: {mean.value:+.4f}{half}.", effect_of(mean), runs_of(pairs))


def under(pairs: Sequence[Pair], bound: float) -> list[Pair]:
    """The pairs whose difference is under `bound`, and under 0 beyond what chance makes among so many."""
    found = []
    for pair in pairs:
        difference = mean_difference([pair])
        interval = difference.interval(len(pairs))
        if interval and interval[1] < 0 and difference.value < bound:
            found.append(pair)
    return found


def said(difference: Difference) -> str:
    """A difference in words."""
    interval = difference.interval()
    if interval is None:
        return f"{difference.value:+.4f} nats"
    half = (interval[1] - interval[0]) / 2
    return f"{difference.value:+.4f} ± {half:.4f} nats{', within noise' if abs(difference.value) <= half else ''}"


def name(cell: Cell) -> str:
    """What the cell's runs are called, without their seed."""
    return cell.row["name"].rpartition("-seed")[0]


def both(findings: Sequence[Finding]) -> Verdict:
    """The verdict on a claim of several parts, or at several scales, all of which have to hold."""
    verdicts = {finding.verdict for finding in findings}
    if Verdict.CONTRADICTED in verdicts:
        return Verdict.CONTRADICTED
    return Verdict.SUPPORTED if verdicts == {Verdict.SUPPORTED} else Verdict.UNRESOLVED
