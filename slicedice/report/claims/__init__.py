"""Claims of the study as functions from results to verdicts, with effects, intervals and the runs behind them."""

from slicedice.report.claims.claims import CLAIMS, Claim, Judgement, judge
from slicedice.report.claims.judgement import COMPARABLE, Effect, Finding, Verdict

__all__ = ["CLAIMS", "COMPARABLE", "Claim", "Effect", "Finding", "Judgement", "Verdict", "judge"]
