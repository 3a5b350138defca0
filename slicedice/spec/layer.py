"""The MoE layer as the study writes it: sets of experts, how many are active, how fine they are.

Granularity `g` is an expert's hidden width over the dense FFN's width `d_ff`, an exact fraction. Sparsity
`s` is the layer's total expert width over `d_ff` (n*g for one set), so a layer holds `s` times the dense
FFN's parameters and, with k*g = 1, spends the dense FFN's FLOPs.
"""

import functools
import re
from dataclasses import dataclass
from fractions import Fraction

from slicedice.spec.errors import SpecError, require

WIRINGS = ("parallel", "plain")


@dataclass(frozen=True)
class ExpertSet:
    """`n` experts of granularity `g` with a router of their own, `k` of them active for a token."""

    n: int
    k: int
    g: Fraction

    def __str__(self) -> str:
        return f"n={self.n} k={self.k} g={self.g}"


@dataclass(frozen=True)
class LayerSpec:
    """Expert sets, and optionally a generalist (an expert that is always on; elsewhere: shared expert).

    The dense FFN is the layer without routed sets whose always-on expert has granularity 1. `wiring` says
    where routed experts read when a generalist stands beside them: "plain" on the same input, "parallel" on
    the block's input before attention, with a norm of their own.
    """

    experts: tuple[ExpertSet, ...]
    generalist: Fraction | None = None
    wiring: str | None = None

    @property
    def is_dense(self) -> bool:
        """Whether nothing is routed."""
        return not self.experts

    @property
    def count(self) -> int:
        """All routed experts of the layer; 1 for the dense FFN."""
        return sum(e.n for e in self.experts) or 1

    @property
    def active(self) -> int:
        """Routed experts active for a token; 1 for the dense FFN."""
        return sum(e.k for e in self.experts) or 1

    @functools.cached_property
    def granularity(self) -> Fraction:
        """The granularity of the finest set; 1 for the dense FFN."""
        return min((e.g for e in self.experts), default=Fraction(1))

    @functools.cached_property
    def sparsity(self) -> Fraction:
        """Total expert width over `d_ff`, the generalist included."""
        return sum((e.n * e.g for e in self.experts), self.generalist or Fraction(0))

    @functools.cached_property
    def active_width(self) -> Fraction:
        """Width that a token passes through, over `d_ff`: 1 in the study."""
        return sum((e.k * e.g for e in self.experts), self.generalist or Fraction(0))


def fraction(field: str, text: str) -> Fraction:
    """Reads an exact fraction such as "1/4"; floats are refused, since 0.1 is not a tenth."""
    if not re.fullmatch(r"\d+(/[1-9]\d*)?", text) or Fraction(text) <= 0:
        raise SpecError(field, text, "write a positive whole number or an exact fraction such as 1/4")
    return Fraction(text)


@functools.lru_cache(maxsize=4096)  # thousands of runs have a few hundred layers
def parse_layer(experts: str, generalist: str = "", wiring: str = "parallel") -> LayerSpec:
    """Reads a layer as config files write it.

    Args:
      experts: "dense", or sets such as "n=32 k=4 g=1/4" joined by " + ". In a layer of one set `k` may be
        left out: it is then what keeps the active width at `d_ff`.
      generalist: "" for none, or its granularity.
      wiring: one of `WIRINGS`; without effect, and dropped, when there is no generalist.

    Raises:
      SpecError: the text cannot be read, or k > n.
    """
    general = fraction("model.generalist", generalist) if generalist else None
    require(wiring in WIRINGS, "model.wiring", wiring, f"choose one of {', '.join(WIRINGS)}")
    if experts.strip() == "dense":
        require(general is None, "model.generalist", generalist, "a dense layer has no experts for it to stand by")
        return LayerSpec((), Fraction(1))
    parts = experts.split("+")
    sets = tuple(_parse_set(part, general, alone=len(parts) == 1) for part in parts)
    if general is None and len(sets) == 1 and sets[0].n == 1 and sets[0].g == 1:
        return LayerSpec((), Fraction(1))  # one expert that is always on is the dense FFN
    return LayerSpec(sets, general, wiring if general else None)


def _parse_set(text: str, generalist: Fraction | None, *, alone: bool) -> ExpertSet:
    form = 'write "dense" or sets such as "n=32 k=4 g=1/4", joined by " + "'
    found = re.findall(r"\b([nkg])=(\S+)", text)
    pairs = dict(found)
    leftover = re.sub(r"\b[nkg]=\S+", "", text).strip()
    once = len(pairs) == len(found)
    require(not leftover and once and {"n", "g"} <= set(pairs), "model.experts", text.strip(), form)
    g = fraction("model.experts g", pairs["g"])
    n = _whole("n", pairs["n"])
    if "k" in pairs:
        k = _whole("k", pairs["k"])
    else:
        require(alone, "model.experts", text.strip(), "in a layer of several sets k follows from nothing: name k")
        active = (1 - (generalist or 0)) / g
        require(
            active.denominator == 1 and active >= 1,
            "model.experts",
            text.strip(),
            "no whole k gives k*g = 1: name k",
        )
        k = int(active)
    require(k <= n, "model.experts", text.strip(), f"k = {k} experts cannot be active out of n = {n}: use k <= n")
    return ExpertSet(n, k, g)


def _whole(letter: str, text: str) -> int:
    require(text.isdecimal() and int(text) > 0, f"model.experts {letter}", text, "use a whole number above 0")
    return int(text)


def moe_layer(*, s: int | Fraction, g: str | Fraction, generalist: str = "") -> dict[str, str]:
    """The override of a layer of sparsity `s` that costs what the dense FFN does.

    Args:
      s: total expert width over `d_ff`, the generalist included.
      g: granularity of the experts; of each set, as in "1/4+1/8", for a heterogeneous layer. The sets share equally
        what the generalist leaves of active and of total width: k = (1 - generalist) / sets / g, and
        n = (s - generalist) / sets / g.
      generalist: granularity of the expert that is always on; "" for none.

    Raises:
      SpecError: a k or n is not a whole number, or k > n.
    """
    gs = [fraction("g", part) for part in str(g).split("+")]
    always_on = fraction("generalist", generalist) if generalist else Fraction(0)
    active, total = (Fraction(width) - always_on for width in (1, s))
    sets = []
    for g_ in gs:
        k, n = active / len(gs) / g_, total / len(gs) / g_
        require(k.denominator == 1 and k > 0, "g", str(g), f"k = {k} has to be a whole number above 0")
        require(n.denominator == 1 and n >= k, "s", str(s), f"n = {n} has to be a whole number and at least k = {k}")
        sets.append(ExpertSet(int(n), int(k), g_))
    experts = {"model.experts": " + ".join(map(str, sets))}
    return {**experts, "model.generalist": generalist} if generalist else experts
