"""Cross-entropy over the vocabulary on Hopper GPUs, with logits that never leave the chip, where kernels pass a check.

What kernels give, sums and mixes of the head's rows, becomes cross-entropy and gradients here. In float32, but for what
`slicedice.model.cross_entropy` rounds to bfloat16 too: d(logits), before they are multiplied.

In chunks a logit takes 6 D operations of the matrix units, for a width of D, and some 16 bytes of memory traffic, which
on an H200 take as long as 3,300 operations at the peak. The kernels take 8 D operations and no traffic, at a smaller
share of the peak; if that is 45 % where chunks reach 70 %, they gain up to a D of some 350. They are for D up to 128,
the most that registers hold. There exponentials are the other limit: two a logit, of which a processor takes 16 a
cycle. At D = 48 that allows 56 % of the peak, in operations that count; on an H200 they reached 32 %, and took a fifth
of the time of chunks (docs/performance.md).
"""

import functools
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from slicedice.kernels.pallas_gpu import first_use, logits

ROUNDING = 2**-8
"""Of gradients, whose d(logits) are rounded to bfloat16, relative to their norm."""
SUMMING = 2**-18
"""Of sums in float32."""
EXACT_FLOATS = 2**24
"""Numbers up to which float32 holds all: entries of a vocabulary are compared as such."""
SOURCES = (Path(__file__), *(Path(logits.__file__).with_name(f"{name}.py") for name in ("logits", "inside", "tiles")))


class Parts(NamedTuple):
    """What a loss is made of.

    Attributes:
      nats: cross-entropy of each token.
      log_z: logsumexp of its logits.
      drows: the gradient of the sum, over tokens that count, of nats + z_weight * log_z^2; in float32.
      dhead: likewise.
    """

    nats: Float[Array, " T"]
    log_z: Float[Array, " T"]
    drows: Float[Array, "T D"]
    dhead: Float[Array, "D V"]


def fits(rows: Array, head: Array) -> bool:
    """Whether the kernels take rows [T, D] and a head [D, V] of these types and sizes, and gain by it."""
    half = rows.dtype == head.dtype == jnp.bfloat16
    return half and 0 < rows.shape[1] <= logits.WIDEST and rows.shape[0] > 0 and 0 < head.shape[1] <= EXACT_FLOATS


@functools.cache
def available() -> bool:
    """Whether the device is a Hopper GPU on which the kernels passed `check`, in this process or one before."""
    return first_use.passed("cross_entropy", __name__, SOURCES)


def nats(
    rows: Float[Array, "T D"], head: Float[Array, "D V"], targets: Int[Array, " T"]
) -> tuple[Float[Array, " T"], Float[Array, " T"]]:
    """The cross-entropy of each token, and logsumexp of its logits; in nats."""
    given = _Given.of(rows, head, targets)
    log_z = given.softmax(mixed=False).log_z[0] * math.log(2)
    return (log_z - given.chosen)[: rows.shape[0]], log_z[: rows.shape[0]]


def parts(rows: Float[Array, "T D"], head: Float[Array, "D V"], targets: Int[Array, " T"], z_weight: float) -> Parts:
    """Cross-entropy and its gradients; a target of -1 does not count."""
    (tokens, width), entries = rows.shape, head.shape[1]
    given = _Given.of(rows, head, targets)
    mix, log2_z = (x[0] for x in given.softmax(mixed=True))
    log_z, counts = log2_z * math.log(2), given.targets >= 0
    # d(nats + z_weight log_z^2) = weight p - 1[target]
    weight = jnp.where(counts, 1 + 2 * z_weight * log_z, 0)
    drows = weight[:, None] * mix - given.target_rows
    drows = jnp.where(counts[:, None], drows, 0)[:tokens, :width]
    facts = jnp.stack([jnp.where(counts, log2_z, jnp.inf), weight, given.targets.astype(jnp.float32)])
    dhead = logits.over_tokens(given.rows[None], given.head[None], facts[None])[0, :entries, :width].T
    return Parts((log_z - given.chosen)[:tokens], log_z[:tokens], drows, dhead)


class _Given(NamedTuple):
    """Arguments as the kernels take them, padded, with the head by entries; and what is read of each target's entry."""

    rows: Float[Array, "T D"]
    head: Float[Array, "V D"]
    targets: Int[Array, " T"]
    entries: int
    target_rows: Float[Array, "T D"]
    chosen: Float[Array, " T"]

    @classmethod
    def of(cls, rows: Array, head: Array, targets: Array) -> "_Given":
        entries = head.shape[1]
        rows, head = (logits.padded(x) for x in (rows, head.T))
        targets = jnp.pad(targets, (0, rows.shape[0] - targets.shape[0]), constant_values=-1).astype(jnp.int32)
        target_rows = head[jnp.maximum(targets, 0)].astype(jnp.float32)
        return cls(rows, head, targets, entries, target_rows, (rows.astype(jnp.float32) * target_rows).sum(1))

    def softmax(self, *, mixed: bool) -> logits.Softmax:
        return logits.over_vocabulary(self.rows[None], self.head[None], entries=self.entries, mixed=mixed)


def check(seed: int | None = None) -> None:
    """Runs the kernels on small random problems: of one model and of two, axes of odd sizes, targets that do not count.

    Raises:
      AssertionError: a result is off; the message names it.
    """
    rng = np.random.default_rng(seed)
    # Parts of the vocabulary and several tiles; both tilings; entries that are whole steps, and less than one.
    for models, tokens, width, entries in ((1, 700, 48, 4000), (2, 130, 80, 256), (1, 64, 128, 50)):
        arrays = rng.standard_normal((models, tokens, width)), rng.standard_normal((models, width, entries))
        rows, head = (
            jnp.asarray(x * scale, jnp.bfloat16) for x, scale in zip(arrays, (1, 3 / width**0.5), strict=True)
        )
        targets = rng.integers(-1, entries, (models, tokens))
        got = jax.jit(jax.vmap(functools.partial(parts, z_weight=0.01)))(rows, head, jnp.asarray(targets))
        alone = jax.jit(jax.vmap(nats))(rows, head, jnp.asarray(targets))
        for model in range(models):
            want = defined(rows[model], head[model], targets[model], 0.01)
            ours = {**got._asdict(), "nats alone": alone[0], "log_z alone": alone[1]}
            theirs = {**want._asdict(), "nats alone": want.nats, "log_z alone": want.log_z}
            for name, values in ours.items():
                error = np.linalg.norm(np.asarray(values[model], np.float64) - theirs[name])
                most = (ROUNDING if name.startswith("d") else SUMMING) * np.linalg.norm(theirs[name])
                # Raised and not asserted, since Python may be told to leave assertions out.
                if not error <= most:
                    raise AssertionError(f"{name}, {tokens} x {width} x {entries}: error {error:.3g}, over {most:.3g}")


def defined(rows: Any, head: Any, targets: Any, z_weight: float) -> Parts:
    """The same as `parts` by its definition, in float64."""
    rows, head, targets = np.asarray(rows, np.float64), np.asarray(head, np.float64), np.asarray(targets)
    scores, at = rows @ head, (np.arange(len(targets)), np.maximum(targets, 0))
    log_z = np.logaddexp.reduce(scores, axis=1)
    slopes = np.exp(scores - log_z[:, None]) * (1 + 2 * z_weight * log_z[:, None])
    slopes[at] -= 1
    slopes *= (targets >= 0)[:, None]
    return Parts(*(np.asarray(x) for x in (log_z - scores[at], log_z, slopes @ head.T, rows.T @ slopes)))  # pyright: ignore[reportArgumentType]
