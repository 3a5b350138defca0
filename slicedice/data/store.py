"""The token store: tokenised text in a folder, memory-mapped.

A store must never change once it has its name: all runs of a sweep read one at the same time. It is
written elsewhere, whole, by `writer`, and given its name by `build`. The folder holds `meta.json`,
`train.bin`, a `heldout-<i>.bin` for each domain, in the order of the domains, `byte_lengths.bin`, and the
tokenizer's file if it has one.
"""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from slicedice.data.errors import DataError
from slicedice.data.tokenizer import Tokenizer, load_tokenizer, token_dtype

FORMAT = 2  # Raise when the files of a store mean something else than before.


class TokenStore:
    """An opened store.

    Attributes:
      path: its folder.
      manifest: what `meta.json` says: source, tokenizer, domains with their documents, tokens and bytes, and what of
        the text could not be used.
      fingerprint: 12 hex digits of the content: tokenizer, domains and every token.
      vocab_size: number of ids, V.
      end_of_document: the id behind each document.
      byte_lengths: int [V], bytes of text that each id stands for.
      domains: names of the domains, sorted.
      train: unsigned integers [N], the training documents of all domains in a fixed random order,
        each followed by end of document.
      heldout: for each domain its held-out documents, in the same form.

    Raises:
      DataError: no store there, one of another version, or one whose files are damaged.
    """

    path: Path
    manifest: dict[str, Any]
    fingerprint: str
    vocab_size: int
    end_of_document: int
    byte_lengths: np.ndarray
    domains: tuple[str, ...]
    train: np.ndarray
    heldout: dict[str, np.ndarray]

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._implied: dict[str, int] = {}
        try:
            meta = json.loads((self.path / "meta.json").read_bytes())
            if meta["format"] != FORMAT:
                raise DataError(
                    f"{self.path} is a token store of format {meta['format']!r}, and this version of "
                    f"slicedice reads format {FORMAT}. Remove the folder: it is made again from the text."
                )
            self._open(meta)
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"{self.path} is not a readable token store ({type(error).__name__}: {error}). Remove the "
                "folder: it is made again from the text."
            ) from error

    def _open(self, meta: dict[str, Any]) -> None:
        self.manifest = meta
        self.fingerprint = meta["fingerprint"]
        self.vocab_size = int(meta["tokenizer"]["vocab_size"])
        self.end_of_document = int(meta["tokenizer"]["end_of_document"])
        self.byte_lengths = np.fromfile(self.path / "byte_lengths.bin", "<i4")
        if self.byte_lengths.size != self.vocab_size:
            raise ValueError(f"byte_lengths.bin holds {self.byte_lengths.size} numbers instead of {self.vocab_size}")
        self._counts = meta["domains"]
        self.domains = tuple(domain["name"] for domain in self._counts)
        self.train = self._tokens("train.bin", sum(domain["train_tokens"] for domain in self._counts))
        self.heldout = {
            domain["name"]: self._tokens(f"heldout-{i}.bin", domain["heldout_tokens"])
            for i, domain in enumerate(self._counts)
        }

    def _tokens(self, name: str, count: int) -> np.ndarray:
        tokens = np.memmap(self.path / name, token_dtype(self.vocab_size), mode="r")
        if tokens.size != count:
            raise ValueError(f"{name} holds {tokens.size} tokens instead of {count}")
        # The map's buffer without its class, which makes every slice of it slow.
        return tokens.view(np.ndarray)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that its ids belong to, which training does not need.

        Raises:
          DataError: its file is missing or damaged.
        """
        kind = self.manifest["tokenizer"]["kind"]
        path = self.path / kind
        try:
            content = b"" if kind == "bytes" else path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}. Prepare the text again.") from error
        return load_tokenizer(kind, content, str(path))

    def heldout_bytes(self, domain: str, targets: np.ndarray) -> float:
        """Bytes of UTF-8 text that held-out tokens of a domain stand for.

        A tokenizer that normalises text has ids for what the text does not say (a space at its beginning, a letter for
        its variants). The bytes of its ids are then scaled to the bytes that the domain's held-out text had.
        """
        counts = self._counts[self.domains.index(domain)]
        implied = self._implied_bytes(domain)
        scale = counts["heldout_bytes"] / implied if implied else 1.0
        return float(self.byte_lengths[targets].sum()) * scale

    def _implied_bytes(self, domain: str) -> int:
        if domain not in self._implied:
            counts = np.bincount(self.heldout[domain], minlength=self.vocab_size)
            self._implied[domain] = int(counts @ self.byte_lengths)
        return self._implied[domain]

    def summary(self) -> str:
        """Returns a line for each domain: documents and tokens to train on, and held out."""
        return "\n".join(
            f"{d['name']}: {d['train_documents']:,} documents with {d['train_tokens']:,} tokens to train on; "
            f"{d['heldout_documents']:,} with {d['heldout_tokens']:,} held out; "
            f"{d['repeated_documents']:,} repeated and left out"
            for d in self._counts
        )
