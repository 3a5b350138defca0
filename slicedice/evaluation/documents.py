"""Whole documents of named domains, each scored alone and each of its tokens once: the evaluation of Paloma.

A document is end of document, its tokens, and end of document as the last target. Longer than the window, it is cut
into windows; no document sees another. Source: Paloma (arXiv 2312.10523), which also evaluates documents apart and
averages over domains; its windows do not overlap.
"""

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from slicedice.data.account import Account
from slicedice.data.encoding import batches
from slicedice.data.errors import DataError
from slicedice.data.sources import Document
from slicedice.data.tokenizer import Tokenizer
from slicedice.evaluation.cross_entropy import entry, with_macro
from slicedice.evaluation.rows import Row, Score, summed, windows
from slicedice.evaluation.sets import Collection


class Settings(NamedTuple):
    """How long texts are cut: targets of a window, and how far windows are apart."""

    window: int
    stride: int


class DocumentEvaluation:
    """The evaluation of a collection.

    Args:
      collection: what is evaluated on.
    """

    kind = "documents"

    def __init__(self, collection: Collection):
        self.name, self._collection = collection.name, collection

    def settings(self, settings: Settings) -> dict[str, int]:
        """What results depend on beside model and text."""
        return settings._asdict()

    def fingerprint(self) -> str:
        """12 hex digits of all documents that can be scored, in their order. Reads all text.

        Raises:
          DataError: a file cannot be read.
        """
        digest = hashlib.sha256()
        for batch in batches(self._collection, Account(skip=True), ()):
            if batch.fault:
                raise batch.fault
            for document in batch.documents:
                digest.update(_content(document))
        return digest.hexdigest()[:12]

    def evaluate(
        self, scores: dict[str, Score], tokenizer: Tokenizer, settings: Settings, *, batch_size: int
    ) -> dict[str, Any]:
        """Scores every document in every way of `scores`. Memory does not grow with the text.

        Args:
          scores: ways to score, by name.
          tokenizer: the model's.
          settings: of windows.
          batch_size: rows of whole windows in a batch.

        Returns:
          `kind` and `settings`; `scores`, for each way by domain and "macro" (`nats` a target, `bits_per_byte` of text,
          `targets`, `documents`); `fingerprint`; `problems` by kind (`counts`, the first `named`); `missing` domains.

        Raises:
          DataError: a file cannot be read, or there is no document.
        """
        account, digest = Account(skip=True), hashlib.sha256()
        counts: dict[str, dict[str, int]] = {}
        end = [tokenizer.end_of_document]

        def rows() -> Iterator[Row]:
            for batch in batches(self._collection, Account(skip=True), ()):
                account.include(batch.account)
                if batch.fault:
                    raise batch.fault
                encoded = tokenizer.encode([document.text for document in batch.documents])
                for document, ids in zip(batch.documents, encoded, strict=True):
                    digest.update(_content(document))
                    tokens = np.concatenate([end, ids, end]).astype(np.int32)
                    own = counts.setdefault(document.domain, {"documents": 0, "targets": 0, "bytes": 0})
                    own["documents"] += 1
                    own["targets"] += tokens.size - 1
                    own["bytes"] += len(document.text.encode())
                    yield from windows(tokens, 1, settings.window, settings.stride, document.domain)

        nats = summed(rows(), scores, batch_size=batch_size, window=settings.window, padding=end[0])
        wanted = dict.fromkeys(part.domain for part in self._collection.parts())
        if not counts:
            told = "; ".join(message for messages in account.named.values() for message in messages[:1])
            raise DataError(f"The evaluation set {self.name} has no document that can be scored. {told}".rstrip())
        return {
            "kind": self.kind,
            "settings": self.settings(settings),
            "scores": {
                name: with_macro(
                    {
                        domain: entry(own[domain], c["targets"], c["bytes"], documents=c["documents"])
                        for domain, c in counts.items()
                    }
                )
                for name, own in nats.items()
            },
            "fingerprint": digest.hexdigest()[:12],
            "problems": account.state(),
            "missing": [*self._collection.missing, *(domain for domain in wanted if domain not in counts)],
        }


def _content(document: Document) -> bytes:
    """What makes a document another: its domain and text, of which neither can run into the other."""
    text = document.text.encode()
    return f"{document.domain}\0{len(text)}\0".encode(errors="surrogateescape") + text
