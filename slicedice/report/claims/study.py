"""The study's claims (a) to (i) as functions of the runs of one scale, and two questions that it leaves open.

Each returns a `Finding`, or None where the runs say nothing on the claim. Source: arXiv 2605.11689.
"""

from itertools import pairwise

import numpy as np

from slicedice.report.claims.bootstrap import HARDLY, RESAMPLES, SURE, percentiles, rank_correlations
from slicedice.report.claims.bootstrap import best_size as fit_best_size
from slicedice.report.claims.difference import Pair, mean_difference, shared
from slicedice.report.claims.evidence import Evidence, arm, balanced, generalists, lines, match, parents, routers
from slicedice.report.claims.judgement import (
    COMPARABLE,
    Effect,
    Finding,
    Verdict,
    both,
    comparable,
    effect_of,
    everywhere_at_least,
    harmful,
    name,
    open_,
    runs_of,
    said,
    under,
)

MANY_EXPERTS = 512
"""From which count on the study finds strong balancing to hurt."""

OCTAVES = "octaves"
"""Unit of ratios, as of load imbalances."""

FOLLOWS = 0.9, 0.7
"""Rank correlation of train and validation loss above which one follows the other, and under which it does not."""


ROUTES = {"more experts": "g", "larger experts": "n"}
"""Ways to more expert parameters, each with the column that stays as it is."""


def monotone(scale: Evidence) -> Finding | None:
    """(a) Loss falls monotonically with total expert parameters, through the size of experts or their count.

    Steps lead from one cell to the next along lines of one granularity or one count. Supported if on each way the steps
    from each sparsity to the next lower the loss beyond noise; contradicted if some of these, or a single step, raises
    it beyond chance.
    """
    steps: dict[tuple[str, float, float], list[Pair]] = {}
    for way, fixed in ROUTES.items():
        for line in lines(scale.main, fixed, "s"):
            for one, two in pairwise(line):
                if shared((one, two)):
                    steps.setdefault((way, one.row["s"], two.row["s"]), []).append((two, one))
    pairs = [pair for found in steps.values() for pair in found]
    if not pairs:
        return None
    if any(sum(key[0] == way for key in steps) < 2 for way in ROUTES):
        return open_("One of the two ways has fewer than two steps.", pairs)
    octaves = float(np.mean([np.log2(two.row["s"] / one.row["s"]) for two, one in pairs]))
    mean, what = mean_difference(pairs).over(octaves), "twice the expert parameters"
    if mean.interval() is None:
        return open_("No cell has two seeds, so noise is unknown.", pairs)
    rises = under([[(b, a) for a, b in found] for found in (*steps.values(), *([pair] for pair in pairs))], 0.0)
    falling = {key: (mean_difference(found).interval() or (0, 0))[1] < 0 for key, found in steps.items()}
    reached = []
    for way in ROUTES:
        own = sorted((one, two, falls) for (w, one, two), falls in falling.items() if w == way)
        to = next((one for one, _, falls in own if not falls), own[-1][1])
        reached.append(f"with {way} {f'up to s = {to:g}' if to > own[0][0] else 'at no step from the first'}")
    verdict = Verdict.UNRESOLVED
    if rises:
        verdict = Verdict.CONTRADICTED
    elif all(falling.values()):
        verdict = Verdict.SUPPORTED
    top = max(cell.row["s"] for cell in scale.main)
    rest = f" It rises beyond chance from {name(rises[0][0][0])} to {name(rises[0][0][1])}." if rises else ""
    sentence = (
        f"With {what} the loss changes by {said(mean)} on average. Step by step it falls beyond noise: "
        f"{', '.join(reached)}; s goes to {top:g}.{rest}"
    )
    return Finding(verdict, sentence, effect_of(mean, what), runs_of(pairs))


def best_size(scale: Evidence) -> Finding | None:
    """(b), first half: the best granularity hardly depends on the total.

    Parabolas in log2 g, one for each sparsity, whose lowest point moves evenly with log2 s: it hardly moves if by less
    than half an octave when s doubles. The interval is the parametric bootstrap's: cell means drawn again with their
    noise.
    """
    at_s = lines(scale.main, "s", "g")
    if max(map(len, at_s), default=0) < 3:
        return None
    runs = runs_of(at_s)
    if sum(len(line) > 1 for line in at_s) < 2:
        return Finding(Verdict.UNRESOLVED, "Only one sparsity has several granularities.", None, runs)
    best = fit_best_size(at_s)
    if best is None:
        return Finding(Verdict.UNRESOLVED, "No cell has two seeds, so noise is unknown.", None, runs)
    if best.inside < SURE:
        return Finding(Verdict.UNRESOLVED, "No best granularity stands out of the noise in what was tried.", None, runs)
    low, high = percentiles(best.move[1:])
    what = "the best g with twice the sparsity"
    effect = Effect(float(best.move[0]), (low, high), OCTAVES, "parametric bootstrap", what)
    moves = f"moves by {effect.value:+.2f} [{low:+.2f}, {high:+.2f}] octaves when the sparsity doubles"
    verdict = Verdict.UNRESOLVED
    if low > -HARDLY and high < HARDLY:
        verdict = Verdict.SUPPORTED
    elif low > HARDLY or high < -HARDLY:
        verdict = Verdict.CONTRADICTED
    sentence = f"The best granularity, about {2 ** float(best.log2_g[0]):.2g}, {moves}."
    return Finding(verdict, sentence, effect, runs)


def between_parents(scale: Evidence) -> Finding | None:
    """(c) A heterogeneous layer is no better than its better homogeneous parent at equal sparsity."""
    pairs = parents(scale)
    if not pairs:
        return None
    return everywhere_at_least(pairs, -COMPARABLE, "Two sizes less the better of one size")


def generalist_hurts(scale: Evidence) -> Finding | None:
    """(d) A generalist, in the authors' (parallel) wiring, is comparable to none or worse."""
    pairs = generalists(scale, "parallel")
    return everywhere_at_least(pairs, -COMPARABLE, "With a generalist less without") if pairs else None


def dropless_wins(scale: Evidence) -> Finding | None:
    """(e) Dropless routing is comparable to default routing, or better."""
    pairs = routers(scale, "loss")
    return everywhere_at_least(pairs, -COMPARABLE, "Default routing less dropless") if pairs else None


def balancing(scale: Evidence) -> Finding | None:
    """(f) Settings are comparable but for strong loss with bias at many experts; the weakest balances least.

    All are set against alpha 1e-2 with gamma 0, with fewer than `MANY_EXPERTS` and with more.
    """
    weak, strong, main = (1e-4, 0.0), (1e-2, 1e-3), (1e-2, 0.0)
    findings, tried = [], set()
    for setting in ((1e-4, 1e-3), weak, strong):
        pairs = balanced(scale, "loss", setting, main)
        parts = {False: [p for p in pairs if p[0].row["n"] < MANY_EXPERTS]}
        parts[True] = [p for p in pairs if p[0].row["n"] >= MANY_EXPERTS]
        for many, members in parts.items():
            if members:
                where = f"n {'>=' if many else '<'} {MANY_EXPERTS}"
                what = f"alpha {setting[0]:g}, gamma {setting[1]:g} less alpha 0.01, gamma 0 at {where}"
                judge = harmful if many and setting == strong else comparable
                findings.append(judge(members, what))
                tried.add((setting, many))
    for measure, word in (("load_balancing_loss", "load-balancing loss"), ("load_imbalance", "load imbalance")):
        for other in ((1e-4, 1e-3), main, strong):
            pairs = balanced(scale, measure, weak, other)
            if pairs:
                what = f"{word} with alpha 0.0001, gamma 0 less that with alpha {other[0]:g}, gamma {other[1]:g}"
                findings.append(everywhere_at_least(pairs, 0.0, what, OCTAVES))
                tried.add((measure, other))
    if not findings:
        return None
    verdict = both(findings)
    if verdict is Verdict.SUPPORTED and len(tried) < 12:  # every part has to have been looked at
        verdict = Verdict.UNRESOLVED
        findings.append(open_("Not every part of the claim was tried."))
    deciding = [finding for finding in findings if finding.verdict is verdict]
    runs = tuple(dict.fromkeys(run for finding in findings for run in finding.runs))
    counts = f"{len(deciding)} of {len(findings)} comparisons are {verdict}"
    told = " ".join(_capital(finding.sentence) for finding in deciding[:3])
    return Finding(verdict, f"{counts}. {told}", deciding[0].effect, runs)


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def train_follows(scale: Evidence) -> Finding | None:
    """(h) Train cross-entropy follows held-out cross-entropy: the rank correlation over cells, bootstrapped.

    Over the dense model and the layers of one routing: what default routing drops, it drops in both.
    """
    train = {cell.row["cell"]: cell for cell in scale.cells("train_loss")}
    dense = scale.dense()
    cells_ = [cell for cell in (*scale.main, *([dense] if dense else [])) if cell.row["cell"] in train]
    if len(cells_) < 5:
        return Finding(Verdict.UNRESOLVED, f"{len(cells_)} cells are too few to rank.") if cells_ else None
    values = np.array([(train[cell.row["cell"]].mean, cell.mean) for cell in cells_])
    rng = np.random.default_rng(0)
    draws = rank_correlations(values[rng.integers(len(values), size=(RESAMPLES, len(values)))])
    measured, what = float(rank_correlations(values)), "train and held-out loss"
    effect = Effect(measured, percentiles(draws), "rank correlation", "paired bootstrap", what)
    assert effect.interval is not None
    verdict = Verdict.UNRESOLVED
    if effect.value >= FOLLOWS[0] and effect.interval[0] > FOLLOWS[1]:
        verdict = Verdict.SUPPORTED
    elif effect.interval[1] < FOLLOWS[1]:
        verdict = Verdict.CONTRADICTED
    low, high = effect.interval
    sentence = f"Over {len(cells_)} cells of one routing the ranks by {what} correlate by {effect.value:.2f}"
    return Finding(verdict, f"{sentence} [{low:.2f}, {high:.2f}].", effect, runs_of([cells_]))


def reweighting(scale: Evidence) -> Finding | None:
    """(i) Learned weights on experts that are all active (s = 1) are no better than the dense FFN."""
    dense = scale.dense()
    pairs = [(cell, dense) for cell in scale.routed(kind="homogeneous", generalist=None, s=1.0) if dense]
    pairs = [pair for pair in pairs if shared(pair)]
    return everywhere_at_least(pairs, -COMPARABLE, "All experts active less dense") if pairs else None


def gain_without_capacity(scale: Evidence) -> Finding | None:
    """Does the dropless gain survive when default-routed models are evaluated without a capacity?"""
    with_, without = routers(scale, "loss"), routers(scale, "without_capacity_loss")
    if len(without) < 2 or not with_:
        return open_("Too few comparisons.", without) if without else None
    gain, left = mean_difference(with_), mean_difference(without)
    intervals = gain.interval(), left.interval()
    sentence = f"Dropless gains {said(gain)} on default routing, and {said(left)} once that has no capacity to keep to."
    verdict = Verdict.UNRESOLVED
    if intervals[0] is None or intervals[1] is None:
        sentence += " Noise is unknown."
    elif intervals[0][0] <= 0:
        sentence += " There is no gain that could survive."
    elif intervals[1][0] > 0:
        verdict = Verdict.SUPPORTED
    elif intervals[1][1] < gain.value / 2:
        verdict = Verdict.CONTRADICTED
    return Finding(
        verdict, sentence, effect_of(left, "default routing without capacity less dropless"), runs_of(without)
    )


def harm_by_wiring(scale: Evidence) -> Finding | None:
    """Does the generalist's harm depend on its wiring?"""
    parallel = scale.routed(wiring="parallel")
    plain = scale.routed(wiring="plain")
    pairs = match(parallel, plain, lambda c: (arm(c), c.row["granularity"], c.row["n"], c.row["generalist"]))
    if len(pairs) < 2:
        return open_("Too few comparisons.", pairs) if pairs else None
    mean = mean_difference(pairs)
    interval = mean.interval()
    verdict = Verdict.UNRESOLVED
    if interval and interval[0] > -COMPARABLE and interval[1] < COMPARABLE:
        verdict = Verdict.CONTRADICTED
    elif interval and (interval[0] > 0 or interval[1] < 0):
        verdict = Verdict.SUPPORTED
    harm = [f"{w}: {said(mean_difference(p))}" for w in ("parallel", "plain") if (p := generalists(scale, w))]
    what = "parallel less plain wiring"
    sentence = f"{_capital(what)}: {said(mean)} on average over {len(pairs)} pairs."
    return Finding(verdict, f"{sentence} Harm in each: {'; '.join(harm)}.", effect_of(mean, what), runs_of(pairs))
