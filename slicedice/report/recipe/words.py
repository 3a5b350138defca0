"""A recipe in words, tables and JSON."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from slicedice.report.captions import number
from slicedice.report.claims import COMPARABLE
from slicedice.report.recipe.answer import Interval, Option, Reach, interval
from slicedice.report.recipe.law import PRIOR, Law
from slicedice.report.recipe.recipe import Recipe, Request
from slicedice.report.tables import lines_table, show

FORM = "loss = E + exp(sum of terms), terms in octaves of active parameters N, tokens D, sparsity s and 1/g"

QUANTITIES = {
    "active": "active parameters outside embeddings",
    "tokens": "training tokens",
    "s": "sparsity s",
    "g": "granularity g",
}

TOLD_WITHIN = 1.5
"""Ratio of the ends of an interval of a loss, above which it says nothing."""


def asked_for(request: Request) -> str:
    """The request in words."""
    active, total, tokens = (number("", x) for x in (request.active, request.max_total, request.tokens))
    return f"{active} active parameters of at most {total}, trained on {tokens} tokens"


def write(recipe: Recipe, written: Path | None, store: str, console: Console) -> None:
    """Prints the answer, what it was chosen from, how sure it is, and what to run next."""

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    for note in recipe.notes:
        say(note)
    if not recipe.law.has_experts:
        say(f"There are no results of layers with experts in {store}, so nothing to answer from.")
    else:
        say(f"For {asked_for(recipe.request)}:")
        if not recipe.answer.is_settled:
            say(
                f"  Not settled: another layer may be better by up to {recipe.answer.regret:.3f} nats, and "
                f"{COMPARABLE:g} is what is called comparable."
            )
        for line in _answer(recipe):
            say(f"  {line}")
        show(lines_table("The best of each granularity", [_option(o) for o in recipe.answer.options]), console)
        if recipe.arms:
            show(lines_table("Other ways, as measured", [_arm(arm) for arm in recipe.arms]), console)
        for line in [*_trust(recipe), *(_reach(r) for r in recipe.reach if abs(r.outside) > 0.05)]:
            say(line)
    if not recipe.answer.is_settled:
        for line in _next(recipe, written, store):
            say(line)


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON types."""
    answer = recipe.answer
    validation, proposal = recipe.validation, recipe.proposal
    return {
        "active": recipe.request.active,
        "max_total": recipe.request.max_total,
        "tokens": recipe.request.tokens,
        "cells": len(recipe.law.observations),
        "settled": answer.is_settled,
        **(_answer_dict(recipe) if recipe.law.has_experts else dict.fromkeys(_answer_dict(recipe))),
        "arms": [
            {
                "name": a.name,
                "scale": a.scale,
                "pairs": a.pairs,
                "effect": a.effect.value,
                "interval": a.effect.interval,
            }
            for a in recipe.arms
        ],
        "reach": [vars(r) for r in recipe.reach],
        "law": law_dict(recipe.law),
        "cross_validation": validation and vars(validation),
        "next": [{"scale": c.scale, "s": c.s, "g": c.g, "flops": c.flops} for c in proposal.cells],
        "next_settles": proposal.settles,
        "notes": recipe.notes,
    }


def _answer_dict(recipe: Recipe) -> dict[str, Any]:
    answer = recipe.answer
    return {
        "regret": answer.regret,
        "recipe": _option_dict(answer.chosen) | {"config": config(recipe)},
        "granularities": [str(g) for g in answer.granularities],
        "options": [_option_dict(option) for option in answer.options],
    }


def law_dict(law: Law) -> dict[str, Any]:
    """The law's form and numbers: E and each coefficient with its 95 % interval and prior, and the noise of a run."""
    columns = {name: law.coefficients[:, i] for i, name in enumerate(PRIOR)}
    return {
        "form": FORM,
        "E": {"value": float(np.mean(law.irreducible)), "interval": interval(law.irreducible)},
        "terms": {
            name: {"value": float(draws.mean()), "interval": interval(draws), "prior": list(PRIOR[name])}
            for name, draws in columns.items()
        },
        "centre": {"N": law.centre[0], "D": law.centre[1]},
        "noise": law.noise,
    }


def config(recipe: Recipe) -> dict[str, Any]:
    """The fields of a config that make the recommended run, beside the text's."""
    model = recipe.answer.chosen.candidate.model
    names = ("d_model", "layers", "heads", "d_ff", "vocab_size")
    fields: dict[str, Any] = {f"model.{name}": getattr(model, name) for name in names}
    fields |= {"model.experts": " + ".join(map(str, model.layer.experts)) or "dense"}
    fields |= {} if model.layer.is_dense else recipe.routing
    return fields | {"budget.tokens": recipe.request.tokens}


def _is_told(option: Option) -> bool:
    """Whether its loss is known at all."""
    return option.interval[1] <= TOLD_WITHIN * option.interval[0]


def _answer(recipe: Recipe) -> list[str]:
    chosen, (coarse, fine) = recipe.answer.chosen, recipe.answer.granularities
    model = chosen.candidate.model
    if not _is_told(chosen):
        return ["The results are too far from that for any layer to be recommended."]
    lines = [_layer(chosen)]
    if not model.layer.is_dense:
        kind, alpha, gamma = (recipe.routing[f"router.{name}"] for name in ("kind", "alpha", "gamma"))
        lines.append(f"{kind} routing, alpha {alpha:g}, gamma {gamma:g}")
    loss = f"expected loss {chosen.loss:.3f} nats, {_span(chosen.interval)}"
    dense = next((o for o in recipe.answer.options if o.candidate.point.dense and o is not chosen), None)
    if dense:
        loss += f"; less than the dense model's by {dense.behind:.3f}, {_span(dense.behind_interval)}"
    lines.append(loss)
    if len(recipe.answer.options) > 1:
        lines.append(f"the best granularity lies between {coarse} and {fine} with 95 % probability")
    lines.append(" ".join(f"--config.{name}={_quoted(value)}" for name, value in config(recipe).items()))
    return lines


def _layer(option: Option) -> str:
    model = option.candidate.model
    shape = f"width {model.d_model}, {model.layers} layers of {model.heads} heads, vocabulary {model.vocab_size:,}"
    total = f"{number('', model.parameters())} parameters in all"
    if model.layer.is_dense:
        return f"a dense model: {shape}; {total}"
    (experts,) = model.layer.experts
    layer = f"n = {experts.n} experts of g = {experts.g}, k = {experts.k} active, s = {option.candidate.point.s:g}"
    return f"{layer}: {shape}; {total}"


def _option(option: Option) -> dict[str, str]:
    model, point = option.candidate.model, option.candidate.point
    experts = model.layer.experts[0] if model.layer.experts else None
    return {
        "g": str(experts.g) if experts else "dense",
        "n": str(experts.n) if experts else "",
        "k": str(experts.k) if experts else "",
        "s": f"{point.s:g}" if experts else "",
        "total": number("", model.parameters()),
        "expected loss": f"{option.loss:.3f} {_span(option.interval)}" if _is_told(option) else "not told",
        "behind": f"{option.behind:+.4f} {_span(option.behind_interval, 4)}" if option.behind else "",
        "best": f"{option.share:.0%}",
        "": "" if option.candidate.tried else "not measured",
    }


def _option_dict(option: Option) -> dict[str, Any]:
    model, point = option.candidate.model, option.candidate.point
    experts = model.layer.experts[0] if model.layer.experts else None
    return {
        "dense": model.layer.is_dense,
        **({"g": str(experts.g), "n": experts.n, "k": experts.k} if experts else {"g": "1", "n": 1, "k": 1}),
        "s": point.s,
        "total_parameters": model.parameters(),
        "active_parameters": model.parameters(active=True),
        "loss": option.loss,
        "interval": option.interval,
        "behind": option.behind,
        "behind_interval": option.behind_interval,
        "share": option.share,
        "tried": option.candidate.tried,
    }


def _arm(arm: Any) -> dict[str, str]:
    interval_ = arm.effect.interval
    within = interval_ is not None and interval_[0] <= 0 <= interval_[1]
    return {
        "way": arm.name,
        "less the recommended": str(arm.effect) + (", within noise" if within else ""),
        "comparisons": str(arm.pairs),
        "at": arm.scale,
    }


def _trust(recipe: Recipe) -> list[str]:
    law, validation = recipe.law, recipe.validation
    points = {(o.point.active, o.point.tokens) for o in law.observations}
    lines = [
        f"The law: {FORM}; fitted robustly (errors of Student's t) to {_count(len(law.observations), 'cell')} of "
        f"{_count(len(points), 'model size or budget', 'model sizes and budgets')}; the noise of a run is "
        f"{law.noise:.4f} nats. --json has its coefficients."
    ]
    if validation:
        lines.append(
            f"Cross-validated, leaving out {validation.left_out}: it is off by {validation.level:.4f} nats in level "
            f"and by {validation.difference:.4f} in differences between layers (root mean square); "
            f"{validation.covered:.0%} of what was left out lies in its 95 % interval."
        )
    else:
        lines.append(f"{len(law.observations)} cells are too few to cross-validate.")
    if recipe.allowed:
        lines.append(
            f"The memory limit would allow s = {recipe.allowed:.0f}; sparsities more than an octave past those "
            "measured are not considered."
        )
    return lines


def _reach(reach: Reach) -> str:
    above = reach.outside > 0
    asked, edge = (_amount(reach.name, x) for x in (reach.asked, reach.most if above else reach.least))
    side, end = ("above", "the most") if above else ("below", "the least")
    return (
        f"Outside the results: {QUANTITIES[reach.name]}, {asked}, lies {abs(reach.outside):.1f} octaves {side} {edge}, "
        f"{end} that was measured."
    )


def _amount(name: str, value: float) -> str:
    return f"{value:,.0f}" if 1000 <= value < 1e6 else number(name, value)


def _next(recipe: Recipe, written: Path | None, store: str) -> list[str]:
    proposal = recipe.proposal
    if written is None:
        return [
            "No runs that cost less than the model itself would settle it: train it, or name more scales by --scale."
        ]
    flops = sum(cell.flops for cell in proposal.cells)
    scales = ", ".join(dict.fromkeys(cell.scale for cell in proposal.cells))
    sure = "would settle it" if proposal.settles else "would come nearest to settling it"
    ask = "" if store == "runs" else f" --store {store}"
    return [
        f"{proposal.runs} runs at {scales}, of {flops:.1e} FLOPs in all, {sure}:",
        f"  python -m slicedice.sweep --grid {written}{ask}",
    ]


def _count(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def _span(span: Interval, digits: int = 3) -> str:
    return f"[{span[0]:.{digits}f}, {span[1]:.{digits}f}]"


def _quoted(value: Any) -> str:
    return f"'{value}'" if isinstance(value, str) and " " in value else str(value)
