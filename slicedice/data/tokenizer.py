"""Tokenizers by name: text to token ids, and how many bytes of text each id stands for.

A tokenizer must never change under its name: stores, checkpoints and bits per byte all rest on it.
One with a larger vocabulary is a class like `ByteTokenizer` and a line in `TOKENIZERS`.
"""

from typing import Protocol

import numpy as np

from slicedice.data.errors import DataError


class Tokenizer(Protocol):
    """What a tokenizer offers.

    Attributes:
      name: its key in `TOKENIZERS`.
      vocab_size: number of ids, V.
      end_of_document: the id put behind each document; no text encodes to it.
      byte_lengths: int64 [V], bytes of UTF-8 text that each id stands for, 0 for end of document.
    """

    name: str
    vocab_size: int
    end_of_document: int
    byte_lengths: np.ndarray

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of a text, integer [N], without end of document."""
        ...


class ByteTokenizer:
    """The 256 byte values; 0xFF never occurs in UTF-8, so it is free to end documents."""

    name = "bytes"
    vocab_size = 256
    end_of_document = 0xFF

    def __init__(self) -> None:
        self.byte_lengths = np.ones(self.vocab_size, np.int64)
        self.byte_lengths[self.end_of_document] = 0

    def encode(self, text: str) -> np.ndarray:
        """Returns the UTF-8 bytes of a text, uint8 [N]."""
        return np.frombuffer(text.encode(), np.uint8)


# Classes, not instances: a tokenizer with a large table loads it only when it is asked for.
TOKENIZERS: dict[str, type[Tokenizer]] = {"bytes": ByteTokenizer}


def find_tokenizer(name: str) -> Tokenizer:
    """Returns the tokenizer of that name; raises DataError with the known names if there is none."""
    if name not in TOKENIZERS:
        raise DataError(f"There is no tokenizer {name!r}. Valid names: {', '.join(sorted(TOKENIZERS))}.")
    return TOKENIZERS[name]()


def token_dtype(vocab_size: int) -> np.dtype:
    """Returns the smallest unsigned type that holds every id; little-endian, so stores can be shared."""
    return np.min_scalar_type(vocab_size - 1).newbyteorder("<")
