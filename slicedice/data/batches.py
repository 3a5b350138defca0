"""Batches as pure functions of a store: nothing is consumed, so nothing has to be restored.

Nothing here may ever depend on what was read before: the batch of a step is the same in a run that
was resumed, in a process that reads only that step, and on every host and version of numpy.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from slicedice.data.errors import DataError
from slicedice.data.store import TokenStore


class EvaluationBatch(NamedTuple):
    """One batch of held-out text.

    Attributes:
      tokens: int32 [B, S+1]; inputs are `[:, :-1]`, targets `[:, 1:]`, padding is end of document.
      mask: bool [B, S], true where the target counts. It is the mask of the inputs as well: the input
        in front of a target that counts is text. The one input of text that it hides is the last of
        the stream, whose target is padding; no counted position can see that far.
      target_bytes: bytes of UTF-8 text the counted targets stand for, see `TokenStore.heldout_bytes`. Nats summed over
        them, divided by `target_bytes * log(2)`, are bits per byte, for any tokenizer.
    """

    tokens: np.ndarray
    mask: np.ndarray
    target_bytes: float


ALL = slice(None)


def train_batch(
    store: TokenStore, seed: int, step: int, batch_size: int, sequence_length: int, rows: slice = ALL
) -> np.ndarray:
    """Returns the training batch of a step, or some of its rows.

    The stream is cut into windows of S+1 tokens, S apart, so that each token but the first is a target
    once. Each epoch visits every window once in an order of its own; an epoch may begin within a batch.

    Args:
      store: the store.
      seed: picks the orders.
      step: number of the batch from 0.
      batch_size: sequences, B.
      sequence_length: positions, S.
      rows: which sequences of the batch to read: a host's share.

    Returns:
      int32 [B, S+1], or as many rows as asked for; inputs are `[:, :-1]`, targets `[:, 1:]`.

    Raises:
      DataError: the training text is shorter than one window.
    """
    windows = (store.train.size - 1) // sequence_length
    if windows < 1:
        raise DataError(
            f"The training text has {store.train.size:,} tokens, and one sequence of length "
            f"{sequence_length:,} takes {sequence_length + 1:,}. Use a sequence length below "
            f"{store.train.size:,}, or more text."
        )
    wanted = range(batch_size)[rows]
    batch = np.empty((len(wanted), sequence_length + 1), np.int32)
    for place, row in enumerate(wanted):
        epoch, position = divmod(step * batch_size + row, windows)
        start = int(_order(windows, seed, epoch)[position]) * sequence_length
        batch[place] = store.train[start : start + sequence_length + 1]
    return batch


# Room for the two epochs of a batch for each seed of a few runs that train side by side.
@lru_cache(maxsize=16)
def _order(windows: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the permutation of the windows in an epoch, int64 [windows].

    Sorting raw Philox output is slower than `Generator.permutation`, whose result numpy may change in
    any version; the counter-based stream is fixed by its paper (Salmon et al. 2011).
    """
    generator = np.random.Philox(key=np.array([seed % 2**64, epoch], np.uint64))
    order = np.argsort(generator.random_raw(windows), kind="stable")
    order.flags.writeable = False  # Shared by every caller.
    return order


def evaluation_batches(
    store: TokenStore, domain: str, batch_size: int, sequence_length: int, max_tokens: int
) -> Iterator[EvaluationBatch]:
    """Reads the held-out text of a domain from its beginning, each target once.

    Args:
      store: the store.
      domain: one of `store.domains`.
      batch_size: sequences, B; the last batch is padded to it.
      sequence_length: positions, S; windows are S apart and the last is padded.
      max_tokens: targets that count, at most.

    Returns:
      An iterator of batches that all have one shape.

    Raises:
      DataError: an unknown domain, or max_tokens below 1.
    """
    if domain not in store.heldout:
        raise DataError(f"There is no domain {domain!r} in this text. Valid: {', '.join(store.domains)}.")
    if max_tokens < 1:
        raise DataError(f"max_tokens is {max_tokens}. Valid is a whole number from 1.")
    return _evaluation_batches(store, domain, batch_size, sequence_length, max_tokens)


def _evaluation_batches(
    store: TokenStore, domain: str, batch_size: int, sequence_length: int, max_tokens: int
) -> Iterator[EvaluationBatch]:
    stream = store.heldout[domain]
    targets = min(max_tokens, stream.size - 1)
    size = batch_size * sequence_length
    windows = np.arange(batch_size)[:, None] * sequence_length + np.arange(sequence_length + 1)
    for start in range(0, targets, size):
        count = min(size, targets - start)
        flat = np.full(size + 1, store.end_of_document, np.int32)
        flat[: count + 1] = stream[start : start + count + 1]
        mask = (np.arange(size) < count).reshape(batch_size, sequence_length)
        yield EvaluationBatch(flat[windows], mask, store.heldout_bytes(domain, flat[1 : count + 1]))
