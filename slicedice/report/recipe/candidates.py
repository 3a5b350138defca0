"""What may be recommended: a model shape for an active-parameter budget, and the layers that fit a memory limit."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from slicedice.report.recipe.law import Observation, Point
from slicedice.spec import ExpertSet, LayerSpec, ModelSpec
from slicedice.spec.errors import require

GRANULARITIES = tuple(Fraction(1, 2**i) for i in range(7))
"""The study's: 1 to 1/64."""

BEYOND = 1.0
"""Octaves outside the results' sparsities and granularities in which layers are still considered."""

STEP = 16
"""Of model widths; also the study's."""

NAMED_WITHIN = 0.06
"""How far a known size may be from what is asked for; the study's are as far from their names."""

DENSE = LayerSpec((), Fraction(1))


@dataclass(frozen=True)
class Candidate:
    """A model that the budget and the limit allow.

    tried: whether its granularity is among those measured. Others are what may be better, and are not recommended.
    """

    model: ModelSpec
    point: Point
    tried: bool = True

    @property
    def granularity(self) -> Fraction:
        """Of its experts; 1 for the dense model."""
        return self.model.layer.granularity


def shape(
    active: int, vocab_size: int, study: Sequence[ModelSpec], own: Sequence[ModelSpec] = (), most: float = math.inf
) -> ModelSpec:
    """The dense model whose parameters, both embeddings included, are nearest to `active` and at most `most`.

    One of the results or of the study if it is within `NAMED_WITHIN`; else of the study's proportions: layers are
    interpolated over log2 of the width, and past the ends follow the nearest two widths. Heads are at most 64 wide.

    Args:
      active: parameters.
      vocab_size: of the tokenizer, padded as the models are.
      study: models of the study's scales, at least two.
      own: models of the results.
      most: parameters that memory holds.

    Raises:
      SpecError: no model is near, since even the smallest is larger.
    """
    dense = [dataclasses.replace(model, layer=DENSE) for model in (*own, *study) if model.vocab_size == vocab_size]
    fitting = [model for model in dense if model.parameters() <= most]
    near = min(fitting, key=lambda model: abs(model.parameters() - active), default=None)
    if near and abs(near.parameters() - active) <= NAMED_WITHIN * active:
        return near
    family = sorted({(model.d_model, model.layers) for model in study})
    width, models = STEP, []
    while not models or models[-1].parameters() < active:
        layers = max(1, round(_interpolate(np.log2(width), family)))
        heads = next(h for h in range(1, width) if width % h == 0 and (width // h) % 2 == 0 and width // h <= 64)
        models.append(ModelSpec(width, layers, heads, 4 * width, vocab_size, DENSE))
        width += STEP
    least = models[0].parameters()
    require(least <= min(most, 2 * active), "--active", active, f"the smallest model has {least:,} parameters")
    return min(
        (model for model in models if model.parameters() <= most), key=lambda model: abs(model.parameters() - active)
    )


def _interpolate(x: float, family: Sequence[tuple[int, int]]) -> float:
    widths, layers = np.log2([w for w, _ in family]), np.array([count for _, count in family], float)
    i = int(np.clip(np.searchsorted(widths, x), 1, len(widths) - 1))
    slope = (layers[i] - layers[i - 1]) / (widths[i] - widths[i - 1])
    return float(layers[i - 1] + slope * (x - widths[i - 1]))


def candidates(
    dense: ModelSpec, tokens: int, max_total: int, observations: Sequence[Observation]
) -> tuple[list[Candidate], float | None]:
    """The dense model, and for each granularity the layers of n experts that `max_total` parameters hold.

    n is k times a power of two, or the largest multiple of 8 that fits. Layers further than `BEYOND` from the
    sparsities and granularities of `observations` are left out.

    Returns:
      The candidates; and the sparsity that memory would allow, where results reach less far, else None.
    """
    active = active_parameters(dense)
    seen = [o.point for o in observations if not o.point.dense]
    found, allowed = [Candidate(dense, Point(active, tokens, dense=True))], 0.0
    most = max((p.s for p in seen), default=64) * 2**BEYOND
    for g in GRANULARITIES:
        k = int(1 / g)
        if (g * dense.d_ff).denominator > 1 or not _is_within(float(g), seen, BEYOND):
            continue
        largest = _largest(dense, g, max_total)
        allowed = max(allowed, largest * float(g))
        counts = {k * 2**i for i in range(1, 20)} | {largest // 8 * 8}
        for n in sorted(n for n in counts if k < n <= min(largest, most / g)):
            model = with_experts(dense, n, g)
            point = Point(active, tokens, n * float(g), float(g))
            found.append(Candidate(model, point, _is_within(float(g), seen, 0.0)))
    return found, allowed if allowed > most else None


def with_experts(dense: ModelSpec, n: int, g: Fraction) -> ModelSpec:
    """The model with n experts of granularity g, 1/g of them active."""
    return dataclasses.replace(dense, layer=LayerSpec((ExpertSet(n, int(1 / g), g),)))


def active_parameters(model: ModelSpec) -> int:
    """Those that the law counts: what a token passes through, outside embeddings and routers."""
    return model.non_embedding_parameters(active=True, routers=False)


def _is_within(g: float, seen: Sequence[Point], octaves: float) -> bool:
    """Whether a granularity is at most so far outside of those seen; any is where none was."""
    gs = [p.g for p in seen]
    return not gs or min(gs) / 2**octaves <= g <= max(gs) * 2**octaves


def _largest(dense: ModelSpec, g: Fraction, max_total: int) -> int:
    """The largest n whose model has at most `max_total` parameters, routers included; 0 if not even one fits."""
    none, one = (with_experts(dense, n, g).parameters() for n in (1, 2))
    each = one - none
    return max(0, (max_total - (none - each)) // each)
