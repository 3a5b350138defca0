"""Tokenizers by name: text to token ids and back, and how many bytes of text each id stands for.

A tokenizer must never change under its name: stores, checkpoints and bits per byte all rest on it. So a token
store keeps the tokenizer's file, and its `identity` is in the store's fingerprint.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from slicedice.data.errors import DataError, reading

PADDING = 128
"""Vocabularies are padded to a multiple of this, as the study pads 100,278 to 100,352."""


class Tokenizer(Protocol):
    """What a tokenizer offers.

    Attributes:
      kind: "bytes", or the name of the file that holds it: "tokenizer.json" or "tokenizer.model".
      identity: changes when any text might be encoded otherwise.
      vocab_size: number of ids, V.
      end_of_document: the id put behind each document; no text encodes to it.
      byte_lengths: int64 [V], bytes of UTF-8 text that each id stands for, 0 for end of document.
      content: the file that holds it; empty for bytes.
    """

    kind: str
    identity: str
    vocab_size: int
    end_of_document: int
    byte_lengths: np.ndarray
    content: bytes

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of each text, unsigned [N], without end of document.

        Text is text: what spells a special token is encoded as the characters it is.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of ids; what is not whole characters comes out as U+FFFD."""
        ...


class ByteTokenizer:
    """The 256 byte values; 0xFF never occurs in UTF-8, so it is free to end documents."""

    kind = identity = "bytes"
    vocab_size = 256
    end_of_document = 0xFF
    content = b""

    def __init__(self) -> None:
        self.byte_lengths = np.ones(self.vocab_size, np.int64)
        self.byte_lengths[self.end_of_document] = 0

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the UTF-8 bytes of each text, uint8 [N]."""
        return [np.frombuffer(text.encode(), np.uint8) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`."""
        return bytes(id_ for id_ in ids if id_ != self.end_of_document).decode(errors="replace")


def find_tokenizer(name: str) -> Tokenizer:
    """Returns the tokenizer of a name: "bytes", or the path of a `tokenizer.json` or SentencePiece `.model`.

    Raises:
      DataError: there is no such tokenizer, or its file cannot be used.
    """
    if name == "bytes":
        return ByteTokenizer()
    path = Path(name).expanduser()
    kind = {".json": "tokenizer.json", ".model": "tokenizer.model"}.get(path.suffix)
    if kind is None:
        raise DataError(
            f"There is no tokenizer {name!r}. Valid is 'bytes', or the path of a Hugging Face tokenizer.json or of a "
            "SentencePiece .model; `python -m slicedice.data train` makes one from your text."
        )
    with reading(path):
        return load_tokenizer(kind, path.read_bytes(), name)


def load_tokenizer(kind: str, content: bytes, name: str) -> Tokenizer:
    """Returns the tokenizer that a file holds.

    Args:
      kind: see `Tokenizer.kind`.
      content: of the file.
      name: what to call the file in messages.

    Raises:
      DataError: the file cannot be used.
    """
    if kind == "bytes":
        return ByteTokenizer()
    # Imported here: training reads stores of any tokenizer, and needs none of these libraries.
    from slicedice.data import tokenizer_files

    kinds = {
        "tokenizer.json": tokenizer_files.HuggingFaceTokenizer,
        "tokenizer.model": tokenizer_files.SentencePieceTokenizer,
    }
    if kind not in kinds:
        raise DataError(f"{name} needs a tokenizer of kind {kind!r}. This version knows bytes, {', '.join(kinds)}.")
    return kinds[kind](content, name)


def padded_vocab_size(vocab_size: int) -> int:
    """The vocabulary that a model of this tokenizer is given: `vocab_size`, or the next multiple of 128."""
    return vocab_size if vocab_size <= 256 else -(-vocab_size // PADDING) * PADDING


def token_dtype(vocab_size: int) -> np.dtype:
    """Returns the smallest unsigned type that holds every id; little-endian, so stores can be shared."""
    return np.min_scalar_type(vocab_size - 1).newbyteorder("<")
