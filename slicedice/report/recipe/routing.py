"""How else tokens could reach experts, and whether that was better in the results: router, balancing, layer kinds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slicedice.report.claims import Effect
from slicedice.report.claims.difference import Pair, mean_difference
from slicedice.report.claims.evidence import Evidence, balanced, generalists, parents, routers
from slicedice.report.claims.judgement import effect_of

BALANCING = ((1e-4, 0.0), (1e-2, 0.0), (1e-4, 1e-3), (1e-2, 1e-3))
"""The study's settings of alpha and gamma."""


@dataclass(frozen=True)
class Arm:
    """Another way to route, or another kind of layer, measured beside the one that the law is about.

    name: in words. effect: mean loss less that of the recommended homogeneous layers with the law's routing, over
    `pairs`. scale: where this was measured, of those that have such runs the nearest to what was asked. fields: of the
    router, that choose it; another kind of layer has none.
    """

    name: str
    effect: Effect
    pairs: int
    scale: str
    fields: dict[str, Any]

    @property
    def is_better(self) -> bool:
        """Whether it is, beyond noise."""
        return self.effect.interval is not None and self.effect.interval[1] < 0


def arms(scales: Sequence[Evidence], active: int) -> list[Arm]:
    """The ways that the results compare, each from the scale nearest to `active` parameters, embeddings included."""
    near = sorted(
        (s for s in scales if s.main), key=lambda s: abs(math.log(s.main[0].row["active_parameters"] / active))
    )
    ways: dict[str, tuple[str, int, list[Pair], dict[str, Any]]] = {}
    for scale in near:
        for name, pairs, fields in _ways(scale):
            if pairs and name not in ways:
                ways[name] = (scale.scale, len(pairs), pairs, fields)
    return [
        Arm(name, effect_of(mean_difference(pairs), name), count, scale, fields)
        for name, (scale, count, pairs, fields) in ways.items()
    ]


def routing(law: dict[str, Any], found: Sequence[Arm]) -> dict[str, Any]:
    """The router's fields to use: those of the law's runs, unless another setting is better beyond noise."""
    chosen = dict(law)
    for names in (("router.kind",), ("router.alpha", "router.gamma")):
        better = [arm for arm in found if arm.is_better and tuple(arm.fields) == names]
        if better:
            chosen |= min(better, key=lambda arm: arm.effect.value).fields
    return chosen


def _ways(scale: Evidence) -> list[tuple[str, list[Pair], dict[str, Any]]]:
    row = scale.main[0].row
    ways: list[tuple[str, list[Pair], dict[str, Any]]] = [
        ("default routing, with a capacity", routers(scale, "loss"), {"router.kind": "default"})
    ]
    for alpha, gamma in BALANCING:
        if (alpha, gamma) != (row["alpha"], row["gamma"]):
            pairs = balanced(scale, "loss", (alpha, gamma), (row["alpha"], row["gamma"]))
            ways.append((f"alpha {alpha:g}, gamma {gamma:g}", pairs, {"router.alpha": alpha, "router.gamma": gamma}))
    for wiring in ("plain", "parallel"):
        ways.append((f"a generalist, {wiring} wiring", generalists(scale, wiring), {}))
    ways.append(("experts of two sizes", parents(scale), {}))
    return ways
