"""Writes a token store into a folder: encode, de-duplicate, hold out, put in order.

It must never hold the text or an entry for each document in memory: tokens go through a spool file, entries into
an index beside it. What a killed writer left is gone on with. And it must never open or name a store: that is for
`build`, once all is written.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from slicedice.data.account import Account
from slicedice.data.encoding import Batch, Encoded, batches, encoded
from slicedice.data.errors import DataError
from slicedice.data.index import Index
from slicedice.data.sources import Source
from slicedice.data.store import FORMAT
from slicedice.data.tokenizer import Tokenizer, token_dtype

COMMIT_BYTES = 32 * 1024 * 1024
"""Of tokens between commits: what a killed build has to encode again, at most."""


class Progress(NamedTuple):
    """How far a build is.

    position, size: bytes of the source that were read, and that there are; sizes that are not known count 0.
    tokens, wanted: tokens so far, and asked for; 0 for all there are.
    problems: documents that could not be used.
    """

    position: int
    size: int
    tokens: int
    wanted: int
    problems: int


Watch = Callable[[Progress], None]


class Writer:
    """Builds the store of a source in `folder`.

    Args:
      folder: where files are written; empty, or left by a writer with the same arguments.
      source: the text.
      tokenizer: encodes it.
      heldout_fraction: share of each domain's tokens to hold out, at least, in whole documents.
      tokens: about how many to take in all, in shares of domains as the source has them; 0 for all.
      skip_bad: pass over what cannot be used, and count it.
      processes: that encode.
      watch: called with the progress after each batch.
    """

    def __init__(
        self,
        folder: Path,
        source: Source,
        tokenizer: Tokenizer,
        *,
        heldout_fraction: float,
        tokens: int,
        skip_bad: bool,
        processes: int,
        watch: Watch,
    ) -> None:
        self._folder, self._source, self._tokenizer = folder, source, tokenizer
        self._fraction, self._wanted, self._processes, self._watch = heldout_fraction, tokens, processes, watch
        self._reading = Account(skip=skip_bad)
        self._account = Account(skip=True)
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._quotas = _quotas(source, tokens)
        self._taken: Counter[str] = Counter()
        self._repeated: Counter[str] = Counter()
        self._full: set[str] = set()

    def write(self) -> None:
        """Writes all files of the store; `meta.json` is written last.

        Raises:
          DataError: text that cannot be used, or a domain of fewer than two documents.
          OSError, sqlite3.Error: the disk refuses, for instance because it is full.
        """
        spool, index = self._folder / "spool.bin", Index(self._folder / "index.sqlite")
        try:
            self._spool(spool, index)
            index.hold_out(self._fraction, self._source.name)
            with spool.open("rb") as file:
                self._arrange(file.fileno(), index)
        finally:
            index.close()
        for name in ("spool.bin", "index.sqlite"):
            (self._folder / name).unlink()

    def _spool(self, path: Path, index: Index) -> None:
        """Encodes every document once, in the source's order, going on from the last commit."""
        state = index.state()
        if state:
            self._taken, self._repeated = Counter(state["taken"]), Counter(state["repeated"])
            self._account.include(state["account"])
        self._full.update(domain for domain in self._taken if self._has_enough(domain))
        size = sum(part.size for part in self._source.parts())
        at = {"part": state.get("part", 0), "done": state.get("done", 0)}
        with path.open("ab") as spool:
            committed = state.get("spool", 0)
            if spool.tell() > committed:
                spool.truncate(committed)  # what was written later is not in the index
            begin, batch = committed, None
            source = batches(self._source, self._reading, self._full, **at)
            for batch, result in encoded(source, self._tokenizer, self._processes):
                # How far reading goes ahead must make no difference: what is beyond a domain's share never was.
                needed = batch.domain not in self._full
                begin += spool.write(self._new(result, index, begin // self._dtype.itemsize))
                if needed:
                    self._account.include(batch.account)
                if batch.fault and batch.domain not in self._full:
                    raise batch.fault
                taken, problems = self._taken.total(), self._account.counts.total()
                self._watch(Progress(batch.position, size, taken, self._wanted, problems))
                if begin - committed >= COMMIT_BYTES:
                    self._commit(index, spool, batch)
                    committed = begin
            if batch:
                self._commit(index, spool, batch)

    def _new(self, result: Encoded, index: Index, start: int) -> bytes:
        """Adds to the index what is new and wanted of a batch; returns its tokens, the first of which is `start`."""
        kept, offset = [], 0
        for entry in result.entries:
            tokens = result.tokens[offset : offset + entry.tokens * self._dtype.itemsize]
            offset += len(tokens)
            if entry.domain in self._full:
                continue
            if not index.add(entry, start):
                self._repeated[entry.domain] += 1
                continue
            kept.append(tokens)
            start += entry.tokens
            self._taken[entry.domain] += entry.tokens
            if self._has_enough(entry.domain):
                self._full.add(entry.domain)
        return b"".join(kept)

    def _has_enough(self, domain: str) -> bool:
        return bool(self._wanted) and self._taken[domain] >= self._quotas.get(domain, 0)

    def _commit(self, index: Index, spool: Any, batch: Batch) -> None:
        spool.flush()
        os.fsync(spool.fileno())
        index.commit(
            {
                "part": batch.part,
                "done": batch.done,
                "account": self._account.state(),
                "spool": spool.tell(),
                "taken": self._taken,
                "repeated": self._repeated,
            }
        )

    def _arrange(self, spool: int, index: Index) -> None:
        """Writes the documents in their order, and the manifest."""
        train, held = index.counts(held=False), index.counts(held=True)
        domains, everything = sorted(train), sum(count.tokens for count in train.values())
        digest = hashlib.sha256(json.dumps([self._tokenizer.identity, domains]).encode())

        def arrange(name: str, domain: str | None, tokens: int) -> None:
            width = self._dtype.itemsize
            chunks = (os.pread(spool, n * width, start * width) for start, n in index.spans(domain))
            # The length first: without it, tokens could move between two files unnoticed.
            digest.update(f"{tokens}:".encode())
            _save(self._folder / name, (digest.update(chunk) or chunk for chunk in chunks))

        arrange("train.bin", None, everything)
        for i, domain in enumerate(domains):
            arrange(f"heldout-{i}.bin", domain, held[domain].tokens)
        if self._tokenizer.content:
            _save(self._folder / self._tokenizer.kind, [self._tokenizer.content])
        lengths = self._tokenizer.byte_lengths.astype("<i4").tobytes()
        _save(self._folder / "byte_lengths.bin", [lengths])
        counts = [
            {
                "name": domain,
                "share": train[domain].tokens / everything,
                "repeated_documents": self._repeated[domain],
                "wanted_tokens": round(self._quotas[domain]) if self._wanted else 0,
                **{f"train_{name}": number for name, number in train[domain]._asdict().items()},
                **{f"heldout_{name}": number for name, number in held[domain]._asdict().items()},
            }
            for domain in domains
        ]
        meta = {
            "format": FORMAT,
            "fingerprint": digest.hexdigest()[:12],
            "source": self._source.name,
            "heldout_fraction": self._fraction,
            "tokenizer": {
                "kind": self._tokenizer.kind,
                "identity": self._tokenizer.identity,
                "vocab_size": self._tokenizer.vocab_size,
                "end_of_document": self._tokenizer.end_of_document,
            },
            "domains": counts,
            "problems": self._account.state(),
        }
        _save(self._folder / "meta.json", [json.dumps(meta, indent=1).encode()])


def has_begun(folder: Path) -> bool:
    """Whether a writer has put something on disk there that another can go on with."""
    if not (folder / "index.sqlite").exists():
        return False
    index = Index(folder / "index.sqlite")
    try:
        return bool(index.state())
    finally:
        index.close()


def _quotas(source: Source, tokens: int) -> dict[str, float]:
    """Tokens that each domain is to have."""
    shares = source.shares()
    if tokens and not shares:
        raise DataError(f"tokens is {tokens}, and {source.name} is taken as a whole. Valid is 0.")
    total = sum(shares.values()) or 1.0
    return {domain: tokens * share / total for domain, share in shares.items()}


def _save(path: Path, chunks: Iterable[bytes]) -> None:
    with path.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
        # A power cut must not leave a store whose name is on disk and whose bytes are not.
        file.flush()
        os.fsync(file.fileno())
