"""Which documents are held out, and in which order documents lie.

It must never look at the text: sides follow from keys alone, so that what two domains say about one
module (its code and its docstrings) is held out together, and an edit moves no document across.
"""

import hashlib
from collections.abc import Iterable
from itertools import groupby
from typing import NamedTuple

from slicedice.data.errors import DataError


class Entry(NamedTuple):
    """A tokenised document.

    Attributes:
      domain: name of its domain.
      start: where its tokens begin in the spool.
      stop: where they end, end of document included.
      rank: hash of the key; decides who is held out, and is the same in every domain.
      order: hash of domain and key; sorting by it shuffles documents, and so mixes domains.
    """

    domain: str
    start: int
    stop: int
    rank: int
    order: int


def rank(key: str) -> int:
    """Returns a 64-bit hash of a key, the same on every machine."""
    # File names that are not UTF-8 reach Python with surrogates in their place.
    return int.from_bytes(hashlib.sha256(key.encode(errors="surrogateescape")).digest()[:8], "big")


def total(entries: Iterable[Entry]) -> int:
    """Returns how many tokens the entries have together."""
    return sum(entry.stop - entry.start for entry in entries)


def held_out(entries: Iterable[Entry], source: str, fraction: float) -> set[int]:
    """Returns the ranks that are held out: of each domain the smallest, until they hold enough tokens.

    Counting tokens, not documents, gives every domain enough to measure on where a few documents are
    most of it. A domain's last document stays in training. A rank taken in one domain is taken in all.

    Args:
      entries: every document.
      source: what the user called the text, for the message.
      fraction: share of each domain's tokens to hold out, at least.

    Raises:
      DataError: a domain of one document.
    """
    held: set[int] = set()
    ranked = sorted(entries, key=lambda entry: (entry.domain, entry.rank))
    for domain, group in groupby(ranked, key=lambda entry: entry.domain):
        mine = list(group)
        if len(mine) < 2:
            raise DataError(
                f"The domain {domain!r} of {source} is one document, and needs at least two different ones: "
                "whole documents are held out to measure on. Divide it into more files or records."
            )
        wanted, taken = fraction * total(mine), 0
        for entry in mine[:-1]:
            if taken >= wanted:
                break
            held.add(entry.rank)
            taken += entry.stop - entry.start
    return held
