"""The study's claims (a) to (i) as functions of the runs of one scale, and two questions that it leaves open.

Each returns a `Finding`, or None where the runs say nothing on the claim. Source: arXiv 2605.11689.
"""

from itertools import pairwise

import numpy as np

from slicedice.report.claims.bootstrap import HARDLY, RESAMPLES, SURE, percentiles, rank_correlations
from slicedice.report.claims.bootstrap import best_size as fit_best_size
from slicedice.report.claims.difference import mean_difference, shared
from slicedice.report.claims.evidence import Evidence, arm, balanced, generalists, lines, match, parents, routers
from slicedice.report.claims.judgement import (
    COMPARABLE,
    Effect,
    Finding,
    Verdict,
    above,
    both,
    comparable,
    effect_of,
    everywhere_at_least,
    name,
    open_,
    runs_of,
    said,
    under,
)

MANY_EXPERTS = 512
"""From which count on the study finds strong balancing to hurt."""

FOLLOWS = 0.9, 0.7
"""Rank correlation of train and validation loss above which one follows the other, and under which it does not."""


def monotone(scale: Evidence) -> Finding | None:
    """(a) Loss falls monotonically with total expert parameters, through the size of experts or their count.

    Steps lead from one cell to the next along lines of one granularity or one count.
    """
    steps = [
        (fine, coarse)
        for fixed, grows in (("g", "s"), ("n", "s"))
        for line in lines(scale.main, fixed, grows)
        for coarse, fine in pairwise(line)
        if shared((coarse, fine))
    ]
    if not steps:
        return None
    long = [line for fixed in ("g", "n") for line in lines(scale.main, fixed, "s") if len(line) > 2]
    if len(long) < 2:
        return open_("Fewer than two lines have three cells.", steps)
    mean = mean_difference(steps)
    interval = mean.interval()
    if interval is None:
        return open_("No cell has two seeds, so noise is unknown.", steps)
    rises = under([(one, two) for two, one in steps], 0.0)
    verdict = Verdict.UNRESOLVED
    if rises or interval[0] > 0:
        verdict = Verdict.CONTRADICTED
    elif interval[1] < 0:
        verdict = Verdict.SUPPORTED
    top = max(cell.row["s"] for cell in scale.main)
    upward = f"{len(rises)} of {len(steps)} steps rise beyond chance" if rises else f"none of {len(steps)} steps rises"
    return Finding(
        verdict,
        f"A step to more expert parameters changes the loss on average by {said(mean)}; {upward} beyond chance"
        f"{'' if not rises else ', as to ' + name(rises[0][1])}; seen up to s = {top:g}.",
        effect_of(mean),
        runs_of(steps),
    )


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
    low, high = percentiles(best.move[1:])
    effect = Effect(float(best.move[0]), (low, high), "octaves of g per doubling of s", "parametric bootstrap")
    moves = f"moves by {effect.value:+.2f} [{low:+.2f}, {high:+.2f}] octaves when the sparsity doubles"
    if best.inside < SURE:
        return Finding(Verdict.UNRESOLVED, "No best granularity stands out of the noise in what was tried.", None, runs)
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
    """(f) Settings are comparable but for strong loss with bias at many experts; the weakest balances least."""
    weak, strong = (1e-4, 0.0), (1e-2, 1e-3)
    settings = [(1e-4, 1e-3), weak, strong]
    findings = []
    for alpha, gamma in settings:
        pairs = balanced(scale, "loss", (alpha, gamma), (1e-2, 0.0))
        few = [pair for pair in pairs if (alpha, gamma) != strong or pair[0].row["n"] < MANY_EXPERTS]
        if len(few) > 1:
            findings.append(comparable(few, f"Alpha {alpha:g}, gamma {gamma:g} less alpha 0.01, gamma 0"))
    many = [p for p in balanced(scale, "loss", strong, (1e-2, 0.0)) if p[0].row["n"] >= MANY_EXPERTS]
    if many:
        findings.append(above(many, f"Strong balancing at n >= {MANY_EXPERTS}"))
    for measure, word in (("load_balancing_loss", "load-balancing loss"), ("load_imbalance", "load imbalance")):
        rivals = [balanced(scale, measure, weak, other) for other in ((1e-4, 1e-3), (1e-2, 0.0), strong)]
        rivals = [pairs for pairs in rivals if pairs]
        if rivals:
            findings.append(above(min(rivals, key=lambda p: mean_difference(p).value), f"Weakest balancing's {word}"))
    if not findings:
        return None
    verdict = both(findings)
    # All three parts of the claim have to have been looked at before it is supported.
    if verdict is Verdict.SUPPORTED and (len(findings) < 6 or not many):
        verdict = Verdict.UNRESOLVED
        findings.append(open_(f"Not every part was tried (n >= {MANY_EXPERTS}: {len(many)} comparisons)."))
    effect = next((finding.effect for finding in findings if finding.verdict is verdict), findings[0].effect)
    runs = tuple(dict.fromkeys(run for finding in findings for run in finding.runs))
    return Finding(verdict, " ".join(finding.sentence for finding in findings), effect, runs)


def train_follows(scale: Evidence) -> Finding | None:
    """(h) Train cross-entropy follows held-out cross-entropy: the rank correlation over cells, bootstrapped."""
    train = {cell.row["cell"]: cell for cell in scale.cells("train_loss")}
    cells_ = [cell for cell in scale.cells() if cell.row["cell"] in train]
    if len(cells_) < 5:
        return Finding(Verdict.UNRESOLVED, f"{len(cells_)} cells are too few to rank.") if cells_ else None
    values = np.array([(train[cell.row["cell"]].mean, cell.mean) for cell in cells_])
    rng = np.random.default_rng(0)
    draws = rank_correlations(values[rng.integers(len(values), size=(RESAMPLES, len(values)))])
    measured = float(rank_correlations(values))
    effect = Effect(measured, percentiles(draws), "rank correlation", "paired bootstrap")
    assert effect.interval is not None
    verdict = Verdict.UNRESOLVED
    if effect.value >= FOLLOWS[0] and effect.interval[0] > FOLLOWS[1]:
        verdict = Verdict.SUPPORTED
    elif effect.interval[1] < FOLLOWS[1]:
        verdict = Verdict.CONTRADICTED
    sentence = f"Over {len(cells_)} cells the ranks by train and by held-out loss correlate by {effect.value:.2f}."
    return Finding(verdict, sentence, effect, runs_of([cells_]))


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
    return Finding(verdict, sentence, effect_of(left), runs_of(without))


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
    if interval and (interval[0] > 0 or interval[1] < 0):
        verdict = Verdict.SUPPORTED
    elif interval and interval[0] > -COMPARABLE and interval[1] < COMPARABLE:
        verdict = Verdict.CONTRADICTED
    harm = [f"{w}: {said(mean_difference(p))}" for w in ("parallel", "plain") if (p := generalists(scale, w))]
    sentence = f"Parallel less plain wiring, on average over {len(pairs)} pairs: {said(mean)}."
    return Finding(verdict, f"{sentence} Harm in each: {'; '.join(harm)}.", effect_of(mean), runs_of(pairs))
