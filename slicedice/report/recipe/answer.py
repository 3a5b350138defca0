"""The answer for a budget: which candidate, how sure, and how far that lies outside of what was measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from slicedice.report.claims import COMPARABLE
from slicedice.report.recipe.candidates import Candidate
from slicedice.report.recipe.law import Law, Observation

Interval = tuple[float, float]


@dataclass(frozen=True)
class Option:
    """The best candidate of one granularity, or the dense model.

    loss: expected (the median), in nats. interval: its 95 % interval. behind: its loss less the chosen one's, with
    `behind_interval` (95 %), in which what both share cancels. share: of the law's draws in which it is the best.
    """

    candidate: Candidate
    loss: float
    interval: Interval
    behind: float
    behind_interval: Interval
    share: float


@dataclass(frozen=True)
class Answer:
    """What is recommended, and what else was considered.

    options: one of each granularity, and the dense model last.
    granularities: the coarsest and the finest of the 95 % interval of the best.
    regret: nats by which the chosen one is at most worse than the best candidate, with 95 % probability; of all
      candidates it has the least.
    losses: draws of every candidate's loss, [draws, candidates].
    """

    chosen: Option
    options: list[Option]
    granularities: tuple[Fraction, Fraction]
    regret: float
    candidates: list[Candidate]
    losses: NDArray

    @property
    def is_settled(self) -> bool:
        """Whether what is chosen is as good as the best, as far as losses are told apart at all."""
        return self.regret <= COMPARABLE


def answer(law: Law, found: Sequence[Candidate]) -> Answer:
    """Chooses the candidate that is least behind the best one in the worst case, the 95 % quantile of the law's draws.

    Where much is known this is the candidate of the least expected loss; where little is, one that cannot be far off.
    What has not been tried is not chosen, but may be the best.
    """
    losses = law.predict([candidate.point for candidate in found])
    expected = np.median(losses, axis=0)  # where little is known, a mean is of what nobody expects
    regrets = np.quantile(losses - losses.min(axis=1, keepdims=True), 0.95, axis=0)
    best = min((i for i, c in enumerate(found) if c.tried), key=lambda i: (regrets[i], expected[i]))
    # Of each granularity the candidate that is best on average; the dense model is of none.
    groups: dict[Fraction | None, list[int]] = {}
    for i, candidate in enumerate(found):
        groups.setdefault(None if candidate.point.dense else candidate.granularity, []).append(i)
    leaders = {g: min(members, key=lambda i: (i != best, expected[i])) for g, members in groups.items()}
    order = [leaders[g] for g in sorted((g for g in leaders if g is not None), reverse=True)]
    order += [leaders[None]] if None in leaders else []
    winners = np.argmin(losses[:, order], axis=1)
    options = [
        Option(
            found[i],
            float(expected[i]),
            interval(losses[:, i]),
            float(np.median(losses[:, i] - losses[:, best])),
            interval(losses[:, i] - losses[:, best]),
            float((winners == j).mean()),
        )
        for j, i in enumerate(order)
    ]
    sizes = np.array([float(found[i].granularity) for i in order])[winners]
    finest, coarsest = (
        Fraction(x).limit_denominator(1024) for x in np.quantile(sizes, [0.025, 0.975], method="nearest")
    )
    return Answer(options[order.index(best)], options, (coarsest, finest), float(regrets[best]), list(found), losses)


def interval(draws: NDArray) -> Interval:
    """The middle 95 % of draws."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True)
class Reach:
    """How one quantity of the answer lies to what was measured.

    name: of a field of `Point`. asked, least, most: in its unit.
    outside: octaves below the least (negative) or above the most; 0 inside.
    """

    name: str
    asked: float
    least: float
    most: float
    outside: float


def reach(option: Option, observations: Sequence[Observation]) -> list[Reach]:
    """How far the answer lies outside the results, in each quantity of the law."""
    points = [o.point for o in observations if not o.point.dense]
    found = []
    for name in ("active", "tokens", "s", "g"):
        asked = getattr(option.candidate.point, name)
        values = [getattr(p, name) for p in points]
        if not values or (option.candidate.point.dense and name in ("s", "g")):
            continue
        least, most = min(values), max(values)
        outside = min(0.0, float(np.log2(asked / least))) + max(0.0, float(np.log2(asked / most)))
        found.append(Reach(name, asked, least, most, outside))
    return found
