"""Tokenizers that live in files: Hugging Face `tokenizer.json` and SentencePiece `.model`.

They must never see special tokens in text, add tokens of their own (beginnings, padding) or cut long text: a
document's ids are those of its characters and nothing else.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from slicedice.data.errors import DataError

ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]", "<end_of_text>", "[SEP]")
"""Special tokens that may end a document, in the order they are looked for."""

SPACE = "\u2581"
"""How SentencePiece writes a space."""


class HuggingFaceTokenizer:
    """A `tokenizer.json`, as the `tokenizers` library writes it.

    Args:
      content: of the file.
      name: what to call the file in messages.

    Raises:
      DataError: it is none, or none of its special tokens is one of `ENDS`.
    """

    kind = "tokenizer.json"

    def __init__(self, content: bytes, name: str) -> None:
        import tokenizers

        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
            settings = json.loads(content)
        except Exception as error:  # the library raises nothing narrower
            raise DataError(f"{name} is no readable tokenizer.json: {error}. Save it again.") from error
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        added = self._tokenizer.get_added_tokens_decoder()
        special = {token.content: id_ for id_, token in added.items() if token.special}
        end = next((special[text] for text in ENDS if text in special), None)
        if end is None:
            raise DataError(
                f"{name} has no special token that could end a document. One of {', '.join(ENDS)} is needed; its "
                f"special tokens are: {', '.join(special) or 'none'}."
            )
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.content = content
        self.identity = _identity(self.kind, content)
        self.vocab_size = max(vocabulary.values()) + 1
        self.end_of_document = end
        self._end_text = next(text for text in ENDS if special.get(text) == end)
        # In byte-level vocabularies each character of a token stands for one byte.
        spells_bytes = _mentions(settings.get("decoder"), "ByteLevel")
        pieces = ((id_, token) for token, id_ in vocabulary.items() if id_ not in added)
        lengths = [(id_, len(piece) if spells_bytes else _piece_bytes(piece)) for id_, piece in pieces]
        lengths += [(id_, 0 if token.special else len(token.content.encode())) for id_, token in added.items()]
        self.byte_lengths = _table(self.vocab_size, lengths)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See `Tokenizer.encode`; the library uses as many threads as RAYON_NUM_THREADS says, or cores."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        found = [np.array(encoding.ids, np.uint32) for encoding in encodings]
        return [self._cut(text) if self.end_of_document in ids else ids for text, ids in zip(texts, found, strict=True)]

    def _cut(self, text: str) -> np.ndarray:
        """Encodes a text that spells the end, a piece of text too in some vocabularies, with that cut in two."""
        first, rest = self._end_text[:1], self._end_text[1:]
        parts = [part for part in re.split(f"(?<={re.escape(first)})(?={re.escape(rest)})", text) if part]
        encodings = self._tokenizer.encode_batch_fast(parts, add_special_tokens=False)
        ids = np.concatenate([np.array(encoding.ids, np.uint32) for encoding in encodings])
        return ids[ids != self.end_of_document]

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)


class SentencePieceTokenizer:
    """A SentencePiece model.

    Args:
      content: of the file.
      name: what to call the file in messages.

    Raises:
      DataError: it is none, or has no end-of-sentence id.
    """

    kind = "tokenizer.model"

    def __init__(self, content: bytes, name: str) -> None:
        import sentencepiece

        try:
            if not content:
                raise ValueError("it is empty")
            self._model = sentencepiece.SentencePieceProcessor(model_proto=content)  # pyright: ignore[reportCallIssue]
        except Exception as error:  # the library raises nothing narrower
            raise DataError(f"{name} is no readable SentencePiece model: {error}. Save it again.") from error
        if self._model.eos_id() < 0:
            raise DataError(f"{name} has no end-of-sentence id to end documents with. Train it with one (eos_id).")
        self.content = content
        self.identity = _identity(self.kind, content)
        self.vocab_size = self._model.vocab_size()
        self.end_of_document = self._model.eos_id()
        model = self._model
        silent = [id_ for id_ in range(self.vocab_size) if model.is_control(id_) or model.is_unknown(id_)]
        lengths = [(id_, _piece_bytes(model.id_to_piece(id_))) for id_ in range(self.vocab_size)]
        self.byte_lengths = _table(self.vocab_size, [*lengths, *((id_, 0) for id_ in silent)])

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See `Tokenizer.encode`."""
        return [np.array(ids, np.uint32) for ids in self._model.encode(list(texts), out_type=int)]

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`."""
        return self._model.decode([int(id_) for id_ in ids if not self._model.is_control(int(id_))])


def _identity(kind: str, content: bytes) -> str:
    return f"{kind}:{hashlib.sha256(content).hexdigest()[:16]}"


def _table(vocab_size: int, lengths: Iterable[tuple[int, int]]) -> np.ndarray:
    table = np.zeros(vocab_size, np.int64)
    for id_, length in lengths:
        table[id_] = length
    return table


def _piece_bytes(piece: str) -> int:
    """Bytes that a piece of SentencePiece's or WordPiece's spelling stands for."""
    if re.fullmatch("<0x[0-9A-F]{2}>", piece):
        return 1
    return len(piece.replace(SPACE, " ").removeprefix("##").encode())


def _mentions(settings: Any, kind: str) -> bool:
    """Whether a part of a tokenizer.json is of a kind, at any depth."""
    if isinstance(settings, dict):
        return settings.get("type") == kind or any(_mentions(value, kind) for value in settings.values())
    return isinstance(settings, list) and any(_mentions(value, kind) for value in settings)
