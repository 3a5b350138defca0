"""Documents become tokens, batch by batch, on as many processes as pay.

What comes out must never depend on how many processes there are: batches are cut by the documents alone, and come
back in the order they went in.
"""

import hashlib
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Container, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np

from slicedice.data.account import Account
from slicedice.data.errors import DataError
from slicedice.data.index import Entry
from slicedice.data.sources import Document, Source
from slicedice.data.tokenizer import Tokenizer, load_tokenizer, token_dtype

BATCH_BYTES = 1024 * 1024
BATCH_DOCUMENTS = 4096
ORPHAN_SECONDS = 1.0
"""Between two looks of an encoding process at whether its parent is there."""

ALONE_BYTES = 8 * 1024 * 1024
"""Of text: so much is encoded before other processes are started, which takes about a second."""


class Batch(NamedTuple):
    """Documents to encode together, and where the source stands behind the last of them.

    domain: that of all of them; "" if there may be several.
    part: number of the part to go on with. done: documents of it that were read.
    position: bytes of the source that were read. account: what could not be used, since the batch before.
    fault: why nothing more of the part can be read, if that is so.
    """

    documents: list[Document]
    domain: str
    part: int
    done: int
    position: int
    account: dict[str, Any]
    fault: DataError | None = None


def batches(source: Source, account: Account, full: Container[str], *, part: int = 0, done: int = 0) -> Iterator[Batch]:
    """Reads a source in batches of about a mebibyte of text; the last of each part says that the next one begins.

    Args:
      source: the source.
      account: keeps what could not be used, until the batch that it is of is made.
      full: domains that need no more documents; it may grow meanwhile, and reading goes ahead of that. So what cannot
        be read is a part of the batch, and not raised: it may turn out that nobody needs it.
      part: the part to go on with.
      done: documents of it to pass over, which were accounted for before.
    """
    parts = source.parts()
    before = sum(earlier.size for earlier in parts[:part])
    for number, current in enumerate(parts[part:], start=part):
        account.tell = lambda: 0
        documents = iter(()) if current.domain in full else current.read(account)
        taken, size, fault = [], 0, None
        try:
            for _ in islice(documents, done):
                pass
            if done:
                account.take()
            for document in documents:
                taken.append(document)
                size, done = size + len(document.text), done + 1
                if size >= BATCH_BYTES or len(taken) >= BATCH_DOCUMENTS:
                    yield Batch(taken, current.domain, number, done, before + account.tell(), account.take())
                    taken, size = [], 0
                    if current.domain in full:
                        break
        except DataError as error:
            fault = error
        before, done = before + current.size, 0
        yield Batch(taken, current.domain, number + 1, 0, before, account.take(), fault)


class Encoded(NamedTuple):
    """The tokens of a batch, one document after another, and what is known of each."""

    entries: list[Entry]
    tokens: bytes


def encode(documents: list[Document], tokenizer: Tokenizer) -> Encoded:
    """Encodes documents, each with end of document behind it."""
    dtype, end = token_dtype(tokenizer.vocab_size), tokenizer.end_of_document
    entries: list[Entry] = []
    chunks: list[bytes] = []
    for document, ids in zip(documents, tokenizer.encode([d.text for d in documents]), strict=True):
        utf8 = document.text.encode()
        digest = hashlib.sha256(utf8).digest()
        rank, place = _number(digest), _number(digest[8:])
        if document.group:
            rank, place = hash64(document.group), hash64(f"{document.domain}\0{document.group}")
        tokens = np.append(ids, end).astype(dtype).tobytes()
        # Texts that a tokenizer reads alike are one document: one could be held out and the other trained on.
        content = hashlib.sha256(tokens).digest()[:16]
        entries.append(Entry(document.domain, ids.size + 1, len(utf8), rank, place, content))
        chunks.append(tokens)
    return Encoded(entries, b"".join(chunks))


def hash64(text: str) -> int:
    """Returns a 64-bit hash of a text, the same on every machine."""
    # File names that are not UTF-8 reach Python with surrogates in their place.
    return _number(hashlib.sha256(text.encode(errors="surrogateescape")).digest())


def _number(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "big")


def encoded(source: Iterator[Batch], tokenizer: Tokenizer, processes: int) -> Iterator[tuple[Batch, Encoded]]:
    """Encodes batches in their order, the first few here and the rest on `processes` others, if more than one.

    Raises:
      DataError: one of the processes was killed.
    """
    size = 0
    for batch in source:
        yield batch, encode(batch.documents, tokenizer)
        size += sum(len(document.text) for document in batch.documents)
        if processes > 1 and size >= ALONE_BYTES:
            break
    else:
        return
    pool = ProcessPoolExecutor(
        processes, get_context("spawn"), _begin, (tokenizer.kind, tokenizer.content, os.getpid())
    )
    waiting: deque[tuple[Batch, Future[Encoded]]] = deque()
    try:
        for batch in source:
            waiting.append((batch, pool.submit(_encode, batch.documents)))
            # As many ahead as keep all busy, and no more: memory stays as it is however long the text.
            while len(waiting) > 2 * processes:
                first, result = waiting.popleft()
                yield first, result.result()
        while waiting:
            first, result = waiting.popleft()
            yield first, result.result()
    except BrokenProcessPool as error:
        raise DataError(
            "A process that encodes text was killed, perhaps because memory ran out. Nothing that was written is lost; "
            "the same command goes on. Fewer --processes take less memory."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_tokenizer: Tokenizer


def _begin(kind: str, content: bytes, parent: int) -> None:
    """Prepares a process: it has a tokenizer, one thread, leaves Ctrl-C to its parent, and ends when that is gone."""
    global _tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _tokenizer = load_tokenizer(kind, content, kind)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(ORPHAN_SECONDS)
    os._exit(1)


def _encode(documents: list[Document]) -> Encoded:
    return encode(documents, _tokenizer)
