"""Writes a token store into an empty folder: tokenise, de-duplicate, hold out, put in order.

It must never hold the text in memory: tokens go through a spool file, and only an entry and a digest
of each document stay. And it must never open or name a store: that is for `build`, once all is written.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from slicedice.data.errors import DataError
from slicedice.data.holdout import Entry, held_out, rank, total
from slicedice.data.sources import Source
from slicedice.data.store import FORMAT
from slicedice.data.tokenizer import Tokenizer, token_dtype


def write_store(folder: Path, source: Source, tokenizer: Tokenizer, heldout_fraction: float) -> None:
    """Fills an empty folder with the store of a source; `meta.json` is written last.

    Raises:
      DataError: a document that cannot be used, or a domain of fewer than two.
      OSError: the disk refuses, for instance because it is full.
    """
    spool = folder / "spool.bin"
    entries, repeated = _spool(spool, source, tokenizer)
    domains = sorted({entry.domain for entry in entries})
    held = held_out(entries, source.name, heldout_fraction)
    tokens = np.memmap(spool, token_dtype(tokenizer.vocab_size), mode="r")
    digest = hashlib.sha256(json.dumps([tokenizer.name, domains]).encode())
    train = [entry for entry in entries if entry.rank not in held]
    _write(folder / "train.bin", train, tokens, digest)
    counts: list[dict[str, Any]] = []
    for i, domain in enumerate(domains):
        mine = [entry for entry in train if entry.domain == domain]
        out = [entry for entry in entries if entry.domain == domain and entry.rank in held]
        _write(folder / f"heldout-{i}.bin", out, tokens, digest)
        count = {"name": domain, "repeated_documents": repeated[domain]}
        count |= {"train_documents": len(mine), "train_tokens": total(mine)}
        count |= {"heldout_documents": len(out), "heldout_tokens": total(out)}
        counts.append(count)
    meta = {"format": FORMAT, "fingerprint": digest.hexdigest()[:12], "tokenizer": tokenizer.name}
    _save(folder / "meta.json", [json.dumps({**meta, "domains": counts}, indent=1).encode()])
    spool.unlink()


def _spool(path: Path, source: Source, tokenizer: Tokenizer) -> tuple[list[Entry], Counter[str]]:
    """Tokenises every document once, in the source's order; returns them and each domain's repeats."""
    dtype = token_dtype(tokenizer.vocab_size)
    entries: list[Entry] = []
    seen: set[bytes] = set()
    repeated: Counter[str] = Counter()
    start = 0
    with path.open("wb") as file:
        for domain, key, text in source.documents():
            try:
                content = hashlib.sha256(f"{domain}\0{text}".encode()).digest()
            except UnicodeEncodeError as error:
                raise DataError(
                    f"{key} of {source.name} holds half of a surrogate pair, which UTF-8 cannot express "
                    f"({error.object[error.start]!r}). Write the character whole."
                ) from error
            if content in seen:
                repeated[domain] += 1
                continue
            seen.add(content)
            ids = np.append(tokenizer.encode(text), tokenizer.end_of_document).astype(dtype)
            file.write(ids.tobytes())
            entries.append(Entry(domain, start, start + ids.size, rank(key), rank(f"{domain}\0{key}")))
            start += ids.size
    return entries, repeated


def _write(path: Path, entries: list[Entry], tokens: np.ndarray, digest: Any) -> None:
    """Writes documents by their order and adds them to the fingerprint."""
    ordered = sorted(entries, key=lambda entry: (entry.order, entry.start))
    chunks = (tokens[entry.start : entry.stop].tobytes() for entry in ordered)
    # The length first: without it, tokens could move between two files unnoticed.
    digest.update(f"{total(entries)}:".encode())
    _save(path, (digest.update(chunk) or chunk for chunk in chunks))


def _save(path: Path, chunks: Iterable[bytes]) -> None:
    with path.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
        # A power cut must not leave a store whose name is on disk and whose bytes are not.
        file.flush()
        os.fsync(file.fileno())
