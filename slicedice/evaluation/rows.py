"""Texts become rows of tokens, and rows batches of few shapes, of which each target counts once.

Numpy alone: nothing here may ever import JAX, so that a sweep's parent can ask what is to be evaluated.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

HALVINGS = 4
"""Rows are as long as the window, or a half of it, down to a sixteenth: short texts do not pay for a whole window,
and few shapes are compiled."""

Score = Callable[[np.ndarray, np.ndarray, np.ndarray], Any]
"""A model's nats summed over the counted targets of each row: see `scoring.Scorer`."""


class Row(NamedTuple):
    """Tokens of which those from `first` on are targets that count for `key`.

    Attributes:
      tokens: ids [S+1], at most one more than the window.
      first: at least 1, since nothing stands before the first token.
      key: what the row's nats belong to.
    """

    tokens: np.ndarray
    first: int
    key: Any


class Batch(NamedTuple):
    """Rows of one length, the last ones empty where there are too few.

    Attributes:
      tokens: ids [B, S+1]; inputs are `[:, :-1]`, targets `[:, 1:]`.
      text: [B, S], False where the input is padding.
      counted: [B, S], where the target counts.
      keys: of the rows that are not empty.
    """

    tokens: Int[np.ndarray, "B S1"]
    text: Bool[np.ndarray, "B S"]
    counted: Bool[np.ndarray, "B S"]
    keys: list[Any]


def windows(tokens: np.ndarray, first: int, window: int, stride: int, key: Any) -> Iterator[Row]:
    """Cuts tokens into windows that are `stride` apart, each target from `first` on counted in the first that has it.

    With a stride below the window, a target behind the first window has at least window - stride tokens before it.

    Args:
      tokens: ids [N].
      first: index of the first token that counts, at least 1.
      window: targets of a window, S; the last one may have fewer.
      stride: from 1 to `window`.
      key: of all rows.
    """
    start = 0
    while first < tokens.size:
        end = min(start + window, tokens.size - 1)
        if end >= first:
            yield Row(tokens[start : end + 1], first - start, key)
            first = end + 1
        start += stride


def lengths(window: int) -> list[int]:
    """The lengths of rows that are scored, ascending: the window, and halves of it while these are whole."""
    found = [window]
    while len(found) <= HALVINGS and found[-1] % 2 == 0:
        found.append(found[-1] // 2)
    return found[::-1]


def batches(rows: Iterable[Row], batch_size: int, window: int, padding: int) -> Iterator[Batch]:
    """Gathers rows into batches that all have `batch_size * window` positions, shorter rows being more.

    So each routing group of a model with a capacity has as many positions as of whole windows. Memory does not grow
    with the number of rows.

    Args:
      rows: of at most `window` targets.
      batch_size: rows of whole windows in a batch.
      window: targets of the longest rows.
      padding: the id behind the end of a row, which is no text.
    """
    waiting: dict[int, list[Row]] = {length: [] for length in lengths(window)}
    for row in rows:
        length = next(length for length in waiting if row.tokens.size - 1 <= length)
        waiting[length].append(row)
        if len(waiting[length]) == batch_size * (window // length):
            yield _batch(waiting[length], length, len(waiting[length]), padding)
            waiting[length] = []
    for length, rest in waiting.items():
        if rest:
            yield _batch(rest, length, batch_size * (window // length), padding)


def _batch(rows: list[Row], length: int, count: int, padding: int) -> Batch:
    tokens = np.full((count, length + 1), padding, np.int32)
    sizes, firsts = np.zeros((2, count, 1), np.int32)
    for i, row in enumerate(rows):
        tokens[i, : row.tokens.size] = row.tokens
        sizes[i], firsts[i] = row.tokens.size, row.first
    targets = np.arange(1, length + 1)
    counted = (targets >= firsts) & (targets < sizes)
    return Batch(tokens, targets - 1 < sizes - 1, counted, [row.key for row in rows])


def summed(
    rows: Iterable[Row], scores: dict[str, Score], *, batch_size: int, window: int, padding: int
) -> dict[str, dict[Any, float]]:
    """Scores rows in every way of `scores`, in one pass.

    Args:
      rows: see `batches`.
      scores: ways to score, by name.
      batch_size: see `batches`.
      window: see `batches`.
      padding: see `batches`.

    Returns:
      For each name the nats of every key, summed over its rows.
    """
    totals: dict[str, dict[Any, float]] = {name: {} for name in scores}
    for batch in batches(rows, batch_size, window, padding):
        for name, score in scores.items():
            nats: Float[np.ndarray, " B"] = np.asarray(score(batch.tokens, batch.text, batch.counted), np.float64)
            for key, value in zip(batch.keys, nats.tolist(), strict=False):
                totals[name][key] = totals[name].get(key, 0.0) + value
    return totals
