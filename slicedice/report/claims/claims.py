"""The list of claims, and judging them all from a report's rows."""

from collections.abc import Callable
from dataclasses import dataclass

from slicedice.report.claims import across, study
from slicedice.report.claims.evidence import Evidence, by_scale
from slicedice.report.claims.judgement import Effect, Finding, Verdict, both
from slicedice.report.results import Row

Scales = list[list[Evidence]]
"""The budgets of each scale, the one with most cells first."""


@dataclass(frozen=True)
class Claim:
    """A claim of the study, or a question that it leaves open.

    key: its letter. text: what is claimed. grid: whose runs tell. find: what each scale says, by the scale's name.
    """

    key: str
    text: str
    grid: str
    find: Callable[[Scales], dict[str, Finding]]


@dataclass(frozen=True)
class Judgement:
    """What results say of a claim.

    sentence: what a reader needs. effect: of the scale that decides. runs: ids of all that were used.
    findings: of each scale.
    """

    claim: Claim
    verdict: Verdict
    sentence: str
    effect: Effect | None
    runs: tuple[str, ...]
    findings: dict[str, Finding]

    def as_dict(self) -> dict:
        """As JSON types."""
        effect = self.effect
        return {
            "claim": self.claim.key,
            "text": self.claim.text,
            "verdict": str(self.verdict),
            "sentence": self.sentence,
            "effect": effect and effect.value,
            "interval": effect and effect.interval and list(effect.interval),
            "unit": effect and effect.unit,
            "method": effect and effect.method,
            "of": effect and effect.of,
            "runs": list(self.runs),
            "scales": {name: str(finding.verdict) for name, finding in self.findings.items()},
        }


def judge(rows: list[Row]) -> list[Judgement]:
    """Judges every claim from the finished runs among `rows`."""
    scales = by_scale(rows)
    return [_judge(claim, scales) for claim in CLAIMS]


def _judge(claim: Claim, scales: Scales) -> Judgement:
    findings = claim.find(scales)
    if not findings:
        return Judgement(claim, Verdict.UNRESOLVED, f"No runs tell: train --grid {claim.grid}.", None, (), {})
    verdict = both(list(findings.values()))
    deciding = next((finding for finding in findings.values() if finding.verdict is verdict), None)
    sentences = [f"{name}: {finding.sentence}" for name, finding in findings.items()]
    sentence = " ".join(sentences) if len(sentences) > 1 else next(iter(findings.values())).sentence
    runs = tuple(dict.fromkeys(run for finding in findings.values() for run in finding.runs))
    return Judgement(claim, verdict, sentence, deciding and deciding.effect, runs, findings)


def _at_each(find: Callable[[Evidence], Finding | None]) -> Callable[[Scales], dict[str, Finding]]:
    """A claim on each scale apart, from the budget with most cells."""

    def found(scales: Scales) -> dict[str, Finding]:
        findings = {budgets[0].scale: find(budgets[0]) for budgets in scales}
        return {scale: finding for scale, finding in findings.items() if finding}

    return found


def _over_budgets(scales: Scales) -> dict[str, Finding]:
    findings = {budgets[0].scale: across.compute_threshold(budgets) for budgets in scales}
    return {scale: finding for scale, finding in findings.items() if finding}


def _best_size(scales: Scales) -> dict[str, Finding]:
    findings = _at_each(study.best_size)(scales)
    if findings:
        depends = across.best_size_depends_on_width([budgets[0] for budgets in scales])
        findings[ACROSS] = depends or Finding(
            Verdict.UNRESOLVED, "Whether it depends on the active size takes two scales."
        )
    return findings


ACROSS = "across scales"
"""What a finding that compares scales is called among those of each."""

CLAIMS = (
    Claim(
        "a", "Loss falls monotonically with total expert parameters.", "granularity_vs_count", _at_each(study.monotone)
    ),
    Claim(
        "b",
        "The best granularity (expert size over d_ff) hardly depends on the total and depends on the active size.",
        "granularity_vs_count",
        _best_size,
    ),
    Claim(
        "c",
        "Heterogeneous layers lie between their homogeneous parents, or are no better.",
        "heterogeneous",
        _at_each(study.between_parents),
    ),
    Claim("d", "A generalist is comparable or worse everywhere.", "generalist", _at_each(study.generalist_hurts)),
    Claim("e", "Dropless is comparable or better everywhere.", "dropless", _at_each(study.dropless_wins)),
    Claim(
        "f",
        "Balancing settings are comparable, except alpha 1e-2 with gamma 1e-3, which hurts from n = 512; alpha 1e-4 "
        "with gamma 0 has the highest load-balancing loss and imbalance.",
        "load_balancing",
        _at_each(study.balancing),
    ),
    Claim(
        "g",
        "Trained briefly, MoEs are worse than dense in all configurations; trained longer, they win.",
        "compute_threshold",
        _over_budgets,
    ),
    Claim(
        "h",
        "Train cross-entropy follows validation cross-entropy.",
        "granularity_vs_count",
        _at_each(study.train_follows),
    ),
    Claim("i", "Reweighting without sparsity is no better than dense.", "reweighting", _at_each(study.reweighting)),
    Claim(
        "j",
        "Open: the dropless gain survives when default-routed models are evaluated without capacity.",
        "dropless",
        _at_each(study.gain_without_capacity),
    ),
    Claim("k", "Open: a generalist's harm depends on its wiring.", "generalist", _at_each(study.harm_by_wiring)),
)
"""The study's (a) to (i), and two questions that it leaves open."""
