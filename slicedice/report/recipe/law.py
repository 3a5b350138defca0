"""The law that a recipe rests on: held-out loss over active parameters, tokens, sparsity and granularity.

    L = E + exp(b0 + b . x)

E is the loss that no model removes. The terms x are in octaves: of active parameters outside embeddings N, training
tokens D, sparsity s and fineness 1/g. So the loss over E is a power law in each (Kaplan et al., arXiv 2001.08361), with
exponents of s that may change with N, D and s itself (Clark et al., arXiv 2202.01169, equation 2, has such products),
and in 1/g a parabola, whose lowest point, the best granularity, may move with N and s: the study's claim (b) is that
it moves with the first and hardly with the second. A dense model is no limit of layers with experts: it has an offset.

What results cannot tell keeps its prior, so that intervals grow where data end instead of terms being dropped.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PRIOR = {
    "1": (0.0, 10.0),
    "N": (-0.1, 0.1),
    "D": (-0.1, 0.1),
    "s": (0.0, 0.1),
    "s N": (0.0, 0.01),
    "s D": (0.0, 0.01),
    "s s": (0.0, 0.005),
    "1/g": (0.0, 0.05),
    "1/g N": (0.0, 0.01),
    "1/g s": (0.0, 0.005),
    "1/g 1/g": (0.0, 0.01),
    "dense": (0.0, 0.1),
    "dense N": (0.0, 0.03),
    "dense D": (0.0, 0.03),
}
"""Terms by name, each with mean and standard deviation of its coefficient before any result is seen, in log loss for
each octave. Doubling s is known to move log loss by 0.01 to 0.03; doubling N or D by 0.05 with E = 0 (Kaplan et al.),
and by 0.2 over the E of Hoffmann et al. (arXiv 2203.15556)."""

SETUP = 0.03
"""Standard deviation of what a set-up, one model shape at one budget, does to the log loss of all its layers alike."""

DRAWS = 2000
LEVELS = 8
"""Values of the noise's variance among the draws."""

NOISE = (0.02, 4)
"""Nats of noise of one run, and how many degrees of freedom this is worth, before any result is seen."""

TAIL = 4.0
"""Degrees of freedom of Student's t, which errors are taken to follow, so that a few runs gone wrong do not bend the
law (Lange, Little and Taylor, 1989). They tell (TAIL + 1)/(TAIL + 3) of what weighted least squares takes them to."""


@dataclass(frozen=True)
class Point:
    """What the law is about.

    active: parameters that a token passes through, outside embeddings and routers. tokens: trained on.
    s: sparsity. g: granularity. Dense models have 1 for both.
    """

    active: float
    tokens: float
    s: float = 1.0
    g: float = 1.0
    dense: bool = False


@dataclass(frozen=True)
class Observation:
    """The mean held-out loss of a cell in nats, over so many seeds; and the ids of its runs."""

    point: Point
    loss: float
    seeds: int
    runs: tuple[str, ...] = ()

    @property
    def setup(self) -> tuple[float, float]:
        """What shares an offset: one model shape at one budget."""
        return self.point.active, self.point.tokens


@dataclass(frozen=True)
class Law:
    """The law's posterior, as draws.

    centre: (N, D) from which octaves count. setups: of the data, in the order of the last columns of `coefficients`.
    irreducible: E, [draws]. coefficients: of `PRIOR`'s terms and of the set-ups, [draws, terms + setups].
    precision: of the coefficients at the likeliest E, [terms + setups, terms + setups].
    noise: of one run, in nats: what seeds do, and what the form misses.
    """

    observations: tuple[Observation, ...]
    centre: tuple[float, float]
    setups: tuple[tuple[float, float], ...]
    irreducible: NDArray
    coefficients: NDArray
    precision: NDArray
    noise: float

    @property
    def has_experts(self) -> bool:
        """Whether it knows of any layer with experts; all else it says of them is its prior."""
        return any(not o.point.dense for o in self.observations)

    def features(self, points: Sequence[Point]) -> NDArray:
        """The terms of each point, with an indicator for its set-up, [points, terms + setups]."""
        known = np.array([[float((p.active, p.tokens) == setup) for setup in self.setups] for p in points])
        return np.hstack([terms(points, self.centre), known.reshape(len(points), len(self.setups))])

    def predict(self, points: Sequence[Point]) -> NDArray:
        """Draws of the mean loss of each point, [draws, points]; points of a new set-up share its unknown offset."""
        rng = np.random.default_rng(1)
        offsets = {setup: rng.normal(0, SETUP, len(self.irreducible)) for setup in sorted({_setup(p) for p in points})}
        new = np.array([offsets[_setup(p)] * (_setup(p) not in self.setups) for p in points]).T
        exponent = self.coefficients @ self.features(points).T + new
        return self.irreducible[:, None] + np.exp(np.clip(exponent, -50, 50))


def terms(points: Sequence[Point], centre: tuple[float, float]) -> NDArray:
    """The values of `PRIOR`'s terms, [points, terms]."""
    n = np.log2([p.active / centre[0] for p in points])
    d = np.log2([p.tokens / centre[1] for p in points])
    s, v = np.log2([p.s for p in points]), np.log2([1 / p.g for p in points])
    dense = np.array([float(p.dense) for p in points])
    one = np.ones(len(points))
    return np.stack([one, n, d, s, s * n, s * d, s * s, v, v * n, v * s, v * v, dense, dense * n, dense * d], axis=1)


def fit(observations: Sequence[Observation], noise: tuple[float, int] = NOISE, centre: Point | None = None) -> Law:
    """Fits the law by Bayesian linear regression of log(L - E) with Student's t as errors, at each E of a grid.

    Args:
      observations: cells; the law of none is its prior.
      noise: of one run in nats, as known from seeds, and its degrees of freedom.
      centre: from where octaves count where there are no observations.
    """
    points = [o.point for o in observations] or [centre or Point(1e6, 2e7)]
    middle = (float(np.exp(np.mean(np.log([p.active for p in points])))),)
    middle += (float(np.exp(np.mean(np.log([p.tokens for p in points])))),)
    setups = tuple(sorted({o.setup for o in observations}))
    law = Law(tuple(observations), middle, setups, np.zeros(1), np.zeros((1, 1)), np.zeros((1, 1)), noise[0])
    features = law.features([o.point for o in observations]) if observations else np.zeros((0, len(PRIOR)))
    fits = [_fit_at(e, features, observations, noise) for e in _irreducible(observations)]
    evidence = np.array([f.evidence for f in fits])
    rng = np.random.default_rng(0)  # the same results give the same answer
    counts = rng.multinomial(DRAWS, _shares(evidence))
    draws = [f.draw(count, rng) for f, count in zip(fits, counts, strict=True)]
    best = fits[int(np.argmax(evidence))]
    irreducible = np.repeat([f.irreducible for f in fits], counts)
    return Law(tuple(observations), middle, setups, irreducible, np.vstack(draws), best.precision, best.noise)


def _irreducible(observations: Sequence[Observation]) -> NDArray:
    """Values of E to try: more than 0 only where three sizes or budgets could tell it from a power of N or D."""
    told = max((len({getattr(o.point, name) for o in observations}) for name in ("active", "tokens")), default=0)
    return np.linspace(0, 0.95, 20) * min(o.loss for o in observations) if told >= 3 else np.zeros(1)


@dataclass(frozen=True)
class _Fit:
    """The regression at one value of E.

    data: precision that the results give the coefficients, [terms + setups] squared; pull: that times their estimate.
    prior, prior_pull: the same of the prior. noise: of one run. freedom: degrees of freedom that this is known with.
    """

    irreducible: float
    data: NDArray
    pull: NDArray
    prior: NDArray
    prior_pull: NDArray
    noise: float
    freedom: float
    evidence: float

    @property
    def precision(self) -> NDArray:
        """Of the coefficients."""
        return self.data + self.prior

    def draw(self, count: int, rng: np.random.Generator) -> NDArray:
        """Coefficients from their posterior, [count, terms + setups]: normal, given a variance of the noise.

        That is chi-squared; where results say little, the prior is what counts, whatever the noise.
        """
        levels = np.sort(rng.chisquare(self.freedom, count)) / self.freedom  # of precision, over the expected one
        drawn = []
        for part in np.array_split(levels, LEVELS):
            precision = self.data * part.mean() + self.prior if len(part) else self.prior
            mean = np.linalg.solve(precision, self.pull * (part.mean() if len(part) else 0) + self.prior_pull)
            normal = rng.normal(size=(len(mean), len(part)))
            drawn.append(mean + np.linalg.solve(np.linalg.cholesky(precision).T, normal).T)
        return np.vstack(drawn)


def _fit_at(e: float, features: NDArray, observations: Sequence[Observation], noise: tuple[float, int]) -> _Fit:
    over = np.array([o.loss - e for o in observations])
    seeds = np.array([float(o.seeds) for o in observations])
    setups = features.shape[1] - len(PRIOR)
    expected = np.array([mean for mean, _ in PRIOR.values()] + [0.0] * setups)
    prior = np.diag([sd**-2 for _, sd in PRIOR.values()] + [SETUP**-2] * setups)
    y, kept = np.log(over), np.ones(len(over))
    scale, mean, data, pull = noise[0], expected, np.zeros_like(prior), np.zeros_like(expected)
    freedom, u, told = float(noise[1]), np.zeros(len(over)), (TAIL + 1) / (TAIL + 3)
    for _ in range(30 if len(over) else 0):  # of the EM algorithm, whose weights are those of Student's t
        # An error in nats is one in log(L - E) times L - E.
        weight = told * kept * seeds * over**2 / scale**2
        data, pull = features.T @ (weight[:, None] * features), features.T @ (weight * y)
        mean = np.linalg.solve(data + prior, pull + prior @ expected)
        used = np.trace(np.linalg.solve(data + prior, data))  # parameters that the results determine
        z = (y - features @ mean) * over * np.sqrt(seeds)
        freedom = noise[1] + max(float(len(over) - used), 0.0)
        scale = float(np.sqrt((noise[1] * noise[0] ** 2 * told + (kept * z**2).sum()) / freedom))
        u = z / scale
        kept = (TAIL + 1) / (TAIL + u**2)
    bare = -0.5 * (TAIL + 1) * np.log1p(u**2 / TAIL).sum() - len(over) * np.log(scale)
    bare -= 0.5 * (mean - expected) @ prior @ (mean - expected)
    evidence = bare + 0.5 * np.linalg.slogdet(prior)[1] - 0.5 * np.linalg.slogdet(data + prior)[1]
    return _Fit(e, data, pull, prior, prior @ expected, scale / told**0.5, freedom, float(evidence))


def _shares(evidence: NDArray) -> NDArray:
    likely = np.exp(evidence - evidence.max())
    return likely / likely.sum()


def _setup(point: Point) -> tuple[float, float]:
    return point.active, point.tokens
