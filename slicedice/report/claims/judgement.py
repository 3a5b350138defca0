"""Verdicts, and the rules by which differences become one. No rule supports a claim for lack of data."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from slicedice.report.captions import describe
from slicedice.report.claims.difference import Difference, Pair, mean_difference
from slicedice.report.statistics import Cell

COMPARABLE = 0.02
"""Nats within which losses are called comparable: under half of what doubling the sparsity buys in the study."""

KINDS = ("granularity", "s", "generalist")
"""Columns by whose values layers are of a kind."""

ENOUGH_PAIRS = 2
"""Comparisons under which a claim about all of them stays open."""


class Verdict(StrEnum):
    """What the runs say of a claim."""

    SUPPORTED = "supported"
    CONTRADICTED = "contradicted"
    UNRESOLVED = "unresolved"


@dataclass(frozen=True)
class Effect:
    """What was measured: a value, its 95 % interval if one is known, its unit, how that was made, and of what it is."""

    value: float
    interval: tuple[float, float] | None
    unit: str = "nats"
    method: str = "t"
    of: str = ""

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


def open_(sentence: str, pairs: Sequence[Pair] = (), what: str = "", unit: str = "nats") -> Finding:
    """A finding that leaves a claim open."""
    effect = effect_of(mean_difference(pairs), what, unit) if pairs else None
    return Finding(Verdict.UNRESOLVED, sentence, effect, runs_of(pairs))


def effect_of(difference: Difference, what: str, unit: str = "nats") -> Effect:
    """A difference with its own 95 % interval; `what` it is of."""
    return Effect(difference.value, difference.interval(), unit, of=what)


def runs_of(pairs: Sequence[Sequence[Cell]]) -> tuple[str, ...]:
    """Ids of the runs behind some cells, each once."""
    return tuple(dict.fromkeys(id_ for group in pairs for cell in group for id_ in cell.ids))


def everywhere_at_least(pairs: Sequence[Pair], bound: float, what: str, unit: str = "nats") -> Finding:
    """Whether first less second is nowhere under `bound`: on average, and for the layers of each kind apart.

    Kinds are those of one granularity, sparsity or generalist. Supported if the interval of every kind's mean lies
    above `bound`: all have to, so that none is widened for their number (an intersection-union test). Contradicted if
    the mean over all is under both 0 and `bound`, or if a kind or a single pair is, by intervals that hold for all of
    these together (Bonferroni).

    Args:
      pairs: the comparisons.
      bound: in the unit; 0 or below.
      what: the difference in words, as in "with a generalist less without".
      unit: of the losses or other measures compared.
    """
    if len(pairs) < ENOUGH_PAIRS:
        return open_(f"{what}: {len(pairs)} comparisons are too few.", pairs, what, unit)
    mean = mean_difference(pairs)
    if mean.interval() is None:
        return open_(f"{what}: no cell has two seeds, so noise is unknown.", pairs, what, unit)
    kinds = kinds_of(pairs)
    below = under([pairs], bound) or under([*kinds.values(), *([pair] for pair in pairs)], bound)
    least, worst = min(
        ((kind, mean_difference(members)) for kind, members in kinds.items()), key=lambda item: _interval(item[1])[0]
    )
    if below:
        verdict = Verdict.CONTRADICTED
        found = min(below, key=lambda members: mean_difference(members).value)
        at = _named(found, kinds)
        rest = "beyond chance" if at == "all" else f"at {at}, beyond chance, {said(mean_difference(found), unit)}"
    else:
        verdict = Verdict.SUPPORTED if _interval(worst)[0] > bound else Verdict.UNRESOLVED
        rest = f"at the least {said(worst, unit)}, at {least}" if len(kinds) > 1 else f"{len(pairs)} comparisons"
    sentence = f"{what}: {said(mean, unit)} on average, {rest}."
    return Finding(verdict, sentence, effect_of(mean, what, unit), runs_of(pairs))


def kinds_of(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    """The pairs whose layers have one granularity, sparsity or generalist, by what these have in common; and all."""
    kinds: dict[str, list[Pair]] = {"all": list(pairs)}
    for column in KINDS:
        parts: dict[str, list[Pair]] = {}
        for pair in pairs:
            row = (pair[1] if pair[0].row["dense"] else pair[0]).row
            parts.setdefault(describe(column, row[column]), []).append(pair)
        kinds |= parts if len(parts) > 1 else {}
    return kinds


def _named(pairs: Sequence[Pair], kinds: dict[str, list[Pair]]) -> str:
    if len(pairs) == 1:
        first, second = pairs[0]
        return name(second if first.row["dense"] else first)
    return next((kind for kind, members in kinds.items() if members is pairs), "all")


def _interval(difference: Difference) -> tuple[float, float]:
    found = difference.interval()
    assert found is not None
    return found


def comparable(pairs: Sequence[Pair], what: str) -> Finding:
    """Whether first and second are comparable on average (two one-sided tests)."""
    mean = mean_difference(pairs)
    interval = mean.interval()
    if interval is None:
        return open_(f"{what}: noise is unknown.", pairs, what)
    verdict = Verdict.UNRESOLVED
    if interval[0] > -COMPARABLE and interval[1] < COMPARABLE:
        verdict = Verdict.SUPPORTED
    elif interval[0] > COMPARABLE or interval[1] < -COMPARABLE:
        verdict = Verdict.CONTRADICTED
    return Finding(verdict, f"{what}: {said(mean)}.", effect_of(mean, what), runs_of(pairs))


def harmful(pairs: Sequence[Pair], what: str) -> Finding:
    """Whether first is worse than second on average; what is comparable is not."""
    mean = mean_difference(pairs)
    interval = mean.interval()
    verdict = Verdict.UNRESOLVED
    if interval and interval[1] < COMPARABLE:
        verdict = Verdict.CONTRADICTED
    elif interval and interval[0] > 0:
        verdict = Verdict.SUPPORTED
    return Finding(verdict, f"{what}: {said(mean)}.", effect_of(mean, what), runs_of(pairs))


def under(groups: Sequence[Sequence[Pair]], bound: float) -> list[Sequence[Pair]]:
    """The groups whose mean difference is under `bound`, and under 0 beyond what chance makes among so many."""
    found = []
    for pairs in groups:
        difference = mean_difference(pairs)
        interval = difference.interval(len(groups))
        if interval and interval[1] < 0 and difference.value < bound:
            found.append(pairs)
    return found


def said(difference: Difference, unit: str = "nats") -> str:
    """A difference in words."""
    interval = difference.interval()
    if interval is None:
        return f"{difference.value:+.4f} {unit}"
    half = (interval[1] - interval[0]) / 2
    return f"{difference.value:+.4f} ± {half:.4f} {unit}{' (within noise)' if abs(difference.value) <= half else ''}"


def name(cell: Cell) -> str:
    """What the cell's runs are called, without their seed."""
    return cell.row["name"].rpartition("-seed")[0]


def both(findings: Sequence[Finding]) -> Verdict:
    """The verdict on a claim of several parts, or at several scales, all of which have to hold."""
    verdicts = {finding.verdict for finding in findings}
    if Verdict.CONTRADICTED in verdicts:
        return Verdict.CONTRADICTED
    return Verdict.SUPPORTED if verdicts == {Verdict.SUPPORTED} else Verdict.UNRESOLVED
