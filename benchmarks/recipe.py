"""How good recipes are, on results made from laws that are known.

    python benchmarks/recipe.py [--trials 100] [--json]

For each law and each amount of data: in how many trials the answer is settled, how much worse than the best candidate
what it recommends truly is, how often the interval of the best granularity holds the true one, and how many cells it
asks for next. Then the same after those runs. Prints a Markdown table; trains nothing. With --json, the ratios are the
shares of trials whose interval holds the truth.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # what tests know of laws

from slicedice.report.recipe.answer import answer
from slicedice.report.recipe.candidates import candidates, shape
from slicedice.report.recipe.law import Observation, fit
from slicedice.report.recipe.next_runs import propose
from tests.recipe.known import FIVE, Laboratory, Truth, cells_at, dense_spec, of_another_form, of_its_form

STUDY = (*FIVE, "200m", "300m")
HEAD: Sequence[str] = (
    "| law | results | settled | truly behind the best, nats: median, 95 % | best g covered | runs asked for |",
    "|---|---|---|---|---|---|",
)
DATA = {"10m": ("10m",), "10m, 20m": ("10m", "20m"), "10m to 110m": FIVE}


@dataclass(frozen=True)
class Trial:
    """settled: whether the answer says so. regret: what it truly is. covered: the true best granularity lies inside."""

    settled: bool
    regret: float
    covered: bool
    runs: int


def ask(observations: Sequence[Observation], truth: Truth) -> tuple[Trial, list]:
    """Asks for 300M active of at most 3B parameters; returns how that went, and the cells to run next."""
    known = [dense_spec(scale).model for scale in STUDY]
    dense = shape(300_000_000, known[-1].vocab_size, known)
    found, _ = candidates(dense, 6_000_000_000, 3_000_000_000, observations)
    law = fit(observations)
    given = answer(law, found)
    losses = [truth(candidate.point) for candidate in found]
    best = found[int(np.argmin(losses))].granularity
    coarsest, finest = given.granularities
    cells = [] if given.is_settled else propose(law, given, [c for s in FIVE for c in cells_at(s, law)]).cells
    regret = truth(given.chosen.candidate.point) - min(losses)
    return Trial(given.is_settled, regret, finest <= best <= coarsest, len(cells)), cells


def main() -> None:
    """Runs the trials and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    trials, ratios, rows = options.trials, {}, list(HEAD)
    rng = np.random.default_rng(0)
    for law in ("its own form", "another form"):
        for name, scales in DATA.items():
            first, after = [], []
            for _ in range(trials):
                truth = of_its_form(drift=rng.uniform(-0.3, 0.3)) if law == "its own form" else of_another_form
                lab = Laboratory(rng, truth)
                observations = lab.grid(scales)
                trial, cells = ask(observations, truth)
                first.append(trial)
                if cells:
                    more = [lab.measure(cell.point) for cell in cells]
                    after.append(ask([*observations, *more], truth)[0])
            for label, found in ((name, first), (f"{name}, and what was asked for", after)):
                if found:
                    median, most = np.quantile([t.regret for t in found], [0.5, 0.95])
                    asked = np.median([t.runs for t in found])
                    settled, covered = (np.mean([getattr(t, x) for t in found]) for x in ("settled", "covered"))
                    behind = f"{median:.4f}, {most:.4f}"
                    rows.append(f"| {law} | {label} | {settled:.0%} | {behind} | {covered:.0%} | {asked:.0f} |")
                    ratios[f"{law}, {label}: covered"] = float(covered)
    print(json.dumps({"table": rows, "ratios": ratios}) if options.json else "\n".join(rows))


if __name__ == "__main__":
    main()
