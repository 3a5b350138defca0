"""Claims that compare budgets or scales with each other."""

from collections import Counter

from slicedice.report.captions import number
from slicedice.report.claims.bootstrap import HARDLY, SURE, best_size, percentiles
from slicedice.report.claims.difference import Pair, shared
from slicedice.report.claims.evidence import Evidence, lines
from slicedice.report.claims.judgement import (
    Effect,
    Finding,
    Verdict,
    both,
    everywhere_at_least,
    open_,
    runs_of,
)


def compute_threshold(budgets: list[Evidence]) -> Finding | None:
    """(g) At the smaller budget MoEs are worse than dense in all configurations; at the larger they win."""
    if len(budgets) < 2:
        return None
    ordered = sorted(budgets, key=lambda evidence: evidence.tokens)
    small, large = _against_dense(ordered[0]), _against_dense(ordered[-1])
    if len(small) < 2 or len(large) < 2:
        return open_("Too few MoE layers beside dense at one of the budgets.", [*small, *large])
    findings = [
        everywhere_at_least(small, 0.0, f"With {_said_of(ordered[0])} MoE less dense"),
        everywhere_at_least(
            [(dense, cell) for cell, dense in large], 0.0, f"With {_said_of(ordered[-1])} dense less MoE"
        ),
    ]
    verdict = both(findings)
    deciding = next((finding for finding in findings if finding.verdict is verdict), findings[0])
    sentence = " ".join(finding.sentence for finding in findings)
    return Finding(verdict, sentence, deciding.effect, (*findings[0].runs, *findings[1].runs))


def _said_of(budget: Evidence) -> str:
    active = budget.main[0].row["active_parameters"]
    return f"{number('tokens', budget.tokens)} tokens ({budget.tokens / active:.1f} an active parameter)"


def best_size_depends_on_width(scales: list[Evidence]) -> Finding | None:
    """(b), second half: the best granularity depends on the active size.

    From the smallest scale to the largest it moves by more than half an octave.
    """
    # Losses of different compute dtypes are not compared.
    dtypes = Counter(cell.row["compute_dtype"] for scale in scales for cell in scale.main)
    most = max(dtypes, key=dtypes.__getitem__, default="")
    found = []
    for stream, scale in enumerate(s for s in scales if s.main and s.main[0].row["compute_dtype"] == most):
        at_s = lines(scale.main, "s", "g")
        best = best_size(at_s, stream) if sum(len(line) > 2 for line in at_s) > 1 else None
        if best is not None:
            found.append((at_s[0][0].row["active_parameters"], scale, best, runs_of(at_s)))
    found.sort(key=lambda item: item[0])
    if len({item[0] for item in found}) < 2:
        return None
    (_, small, low, runs), (_, large, high, more) = found[0], found[-1]
    shift = high.log2_g - low.log2_g
    interval = percentiles(shift[1:])
    verdict = Verdict.UNRESOLVED
    if (interval[0] > 0 or interval[1] < 0) and abs(shift[0]) > HARDLY:
        verdict = Verdict.SUPPORTED
    elif interval[0] > -HARDLY and interval[1] < HARDLY:
        verdict = Verdict.CONTRADICTED
    sure = min(low.inside, high.inside) >= SURE
    what = f"the best g at {large.scale} over that at {small.scale}"
    effect = Effect(float(shift[0]), interval, "octaves", "parametric bootstrap", what)
    sentence = f"From {small.scale} to {large.scale} the best granularity moves by {effect}"
    sentence += "." if sure else "; at one of them none stands out of the noise."
    return Finding(verdict if sure else Verdict.UNRESOLVED, sentence, effect, (*runs, *more))


def _against_dense(budget: Evidence) -> list[Pair]:
    dense = budget.dense()
    pairs = [(cell, dense) for cell in budget.main if dense]
    return [pair for pair in pairs if shared(pair)]
