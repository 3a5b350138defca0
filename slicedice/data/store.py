"""The token store: tokenised text in a folder, memory-mapped.

A store must never change once it has its name: all runs of a sweep read one at the same time. It is
written elsewhere, whole, by `writer`, and given its name by `build`. The folder holds `meta.json`,
`train.bin` and a `heldout-<i>.bin` for each domain, in the order of the domains.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from slicedice.data.errors import DataError
from slicedice.data.tokenizer import Tokenizer, find_tokenizer, token_dtype

FORMAT = 1  # Raise when the files of a store mean something else than before.


class TokenStore:
    """An opened store.

    Attributes:
      path: its folder.
      fingerprint: 12 hex digits of the content: tokenizer, domains and every token.
      tokenizer: the tokenizer its ids belong to.
      domains: names of the domains, sorted.
      train: unsigned integers [N], the training documents of all domains in a fixed random order,
        each followed by end of document.
      heldout: for each domain its held-out documents, in the same form.

    Raises:
      DataError: no store there, one of another version, or one whose files are damaged.
    """

    path: Path
    fingerprint: str
    tokenizer: Tokenizer
    domains: tuple[str, ...]
    train: np.ndarray
    heldout: dict[str, np.ndarray]

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
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
        self.fingerprint = meta["fingerprint"]
        self.tokenizer = find_tokenizer(meta["tokenizer"])
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

    @property
    def vocab_size(self) -> int:
        """Number of ids, V."""
        return self.tokenizer.vocab_size

    @property
    def end_of_document(self) -> int:
        """The id behind each document."""
        return self.tokenizer.end_of_document

    def summary(self) -> str:
        """Returns a line for each domain: documents and tokens to train on, and held out."""
        return "\n".join(
            f"{d['name']}: {d['train_documents']:,} documents with {d['train_tokens']:,} tokens to train on; "
            f"{d['heldout_documents']:,} with {d['heldout_tokens']:,} held out; "
            f"{d['repeated_documents']:,} repeated and left out"
            for d in self._counts
        )
