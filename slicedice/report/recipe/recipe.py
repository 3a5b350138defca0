"""From a store and a budget to an answer: reads the results, fits the law, chooses, and says what to run next."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slicedice.files import FileError
from slicedice.grid import load_config
from slicedice.grid.study import SCALES, seeds
from slicedice.report.claims.evidence import Evidence, by_scale
from slicedice.report.recipe.answer import Answer, Reach, answer, reach
from slicedice.report.recipe.candidates import active_parameters, candidates, shape
from slicedice.report.recipe.law import Law, Point, fit
from slicedice.report.recipe.next_runs import Proposal, possible, propose
from slicedice.report.recipe.reading import known_noise, law_routing, observe, read_store, settings
from slicedice.report.recipe.routing import Arm, arms, routing
from slicedice.report.recipe.validation import Validation, cross_validate
from slicedice.spec import RunSpec, resolve
from slicedice.spec.config import override
from slicedice.store import Store

TOKENS_PER_PARAMETER = 20
"""The study's budget, of active parameters with embeddings."""

ROUNDED = 0.01
"""By what share budgets differ that are the same but for being whole steps."""


@dataclass(frozen=True)
class Request:
    """What is asked for: parameters that a token passes through and parameters in all, embeddings included; tokens."""

    active: int
    max_total: int
    tokens: int


@dataclass(frozen=True)
class Recipe:
    """The answer, and what a reader needs to judge it.

    allowed: the sparsity that memory would allow, where results reach less far; else None.
    routing: the router's fields to use. arms: other ways to route, as measured.
    settings: for each scale of `proposal`, the fields of its config that the results were trained with. names: what it
      is loaded by.
    """

    request: Request
    law: Law
    answer: Answer
    reach: list[Reach]
    allowed: float | None
    arms: list[Arm]
    routing: dict[str, Any]
    validation: Validation | None
    proposal: Proposal
    settings: dict[str, dict[str, Any]]
    names: dict[str, str]
    notes: list[str]


def make_recipe(store: Store, request: Request, scales: Sequence[str] = ()) -> Recipe:
    """Answers from what the store has.

    Args:
      store: with runs of any grids; it may not exist yet.
      request: the budget.
      scales: where runs may be proposed; if empty, at the study's, `nano` and those of the store.
        Runs that cost more than the model itself are not proposed.

    Raises:
      FileError: one of `scales` is no experiment.
      SpecError: no model fits the memory limit.
    """
    specs, results = read_store(store)
    evidence, others = _of_one_dtype([e for budgets in by_scale(results.rows) for e in budgets])
    observations = [o for e in evidence for o in observe(e, specs)]
    study = [_resolved(name, {}) for name in SCALES]
    own = [specs[e.rows[0]["id"]] for e in evidence]
    template = max(own, key=lambda spec: spec.model.parameters(active=True), default=study[-1])
    models = [spec.model for spec in study], [spec.model for spec in own]
    dense = shape(request.active, template.model.vocab_size, *models, most=request.max_total)
    noise = known_noise(evidence)
    law = fit(observations, noise, Point(active_parameters(dense), request.tokens))
    tokens = _measured_budget(active_parameters(dense), request.tokens, law)
    found, allowed = candidates(dense, tokens, request.max_total, observations)
    chosen, notes = answer(law, found), [*results.notes, *others]
    if len(found) == 1:
        notes.append(f"{request.max_total:,} parameters hold the dense model alone: there is nothing to choose.")
    proposal, with_ = Proposal([], True), {}
    names: dict[str, str] = {}
    if not chosen.is_settled:
        cells = []
        for name in scales or dict.fromkeys(["nano", *SCALES, *(e.scale for e in evidence)]):
            try:
                scale = load_config(name).scale
                names[scale] = name
                with_[scale] = settings(name, evidence, specs, template)
                cells += possible(scale, _resolved(name, with_[scale]), law)
            except FileError:
                if name in scales:
                    raise
                notes.append(f"There is no experiment called {name}, so no runs of it are proposed.")
        flops = request.tokens * dense.flops_per_token(template.data.sequence_length)
        proposal = propose(law, chosen, [cell for cell in cells if cell.flops <= flops * seeds(cell.scale)])
    ways = arms(evidence, request.active)
    return Recipe(
        request=request,
        law=law,
        answer=chosen,
        reach=reach(chosen.chosen, observations),
        allowed=allowed,
        arms=ways,
        routing=routing(law_routing(evidence), ways),
        validation=cross_validate(observations, noise),
        proposal=proposal,
        settings=with_,
        names=names,
        notes=notes,
    )


def _of_one_dtype(found: list[Evidence]) -> tuple[list[Evidence], list[str]]:
    """The evidence of the compute dtype that most cells have, and a note on what is left out."""
    dtypes: Counter[str] = Counter()
    for evidence in found:
        dtypes[evidence.rows[0]["compute_dtype"]] += len(evidence.cells())
    most = max(dtypes, key=dtypes.__getitem__, default="")
    kept = [evidence for evidence in found if evidence.rows[0]["compute_dtype"] == most]
    left = ", ".join(dict.fromkeys(e.scale for e in found if e not in kept))
    return kept, [f"Left out, since losses of another compute dtype than {most} do not compare: {left}"] if left else []


def _measured_budget(active: int, tokens: int, law: Law) -> int:
    """The tokens of a measured set-up that are what is asked for but for a share of a step; else what is asked for."""
    near = (int(d) for n, d in law.setups if n == active and abs(d / tokens - 1) < ROUNDED)
    return next(near, tokens)


def _resolved(scale: str, fields: dict[str, Any]) -> RunSpec:
    return resolve(override(load_config(scale), {**fields, "model.experts": "dense"}, where="the store"))[0]
