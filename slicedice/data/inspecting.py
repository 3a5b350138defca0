"""Looks into a token store that is there: samples of its text, and whether it is what it should be."""

import hashlib
import json
from collections.abc import Iterator
from itertools import islice

import numpy as np

from slicedice.data.store import TokenStore

BLOCK = 1 << 22
"""Tokens that are looked at together."""


def samples(tokens: TokenStore, domain: str, number: int, characters: int = 400) -> list[str]:
    """The beginnings of the first held-out documents of a domain, decoded."""
    # A character is four tokens at most, where each is a byte.
    found = islice(documents(tokens.heldout[domain], tokens.end_of_document), number)
    return [tokens.tokenizer.decode(ids[: 4 * characters].tolist())[:characters] for ids in found]


def check(tokens: TokenStore) -> list[str]:
    """Reads every token; returns what is wrong, each in a sentence.

    The fingerprint has to be that of the tokens, and no held-out document may be trained on or held out twice.
    """
    faults = []
    if fingerprint(tokens) != tokens.fingerprint:
        faults.append(f"The tokens in {tokens.path} are not those its fingerprint {tokens.fingerprint} is of.")
    held: dict[bytes, str] = {}
    for domain in tokens.domains:
        for ids in documents(tokens.heldout[domain], tokens.end_of_document):
            digest = _digest(ids)
            if digest in held:
                faults.append(f"A document is held out in {held[digest]} and again in {domain}: {_begin(tokens, ids)}")
            held[digest] = domain
    leaked = (ids for ids in documents(tokens.train, tokens.end_of_document) if _digest(ids) in held)
    faults += [f"A document held out in {held[_digest(ids)]} is trained on: {_begin(tokens, ids)}" for ids in leaked]
    return faults


def fingerprint(tokens: TokenStore) -> str:
    """The fingerprint of the tokens that are there, as `writer` makes it."""
    digest = hashlib.sha256(json.dumps([tokens.manifest["tokenizer"]["identity"], list(tokens.domains)]).encode())
    for stream in (tokens.train, *tokens.heldout.values()):
        digest.update(f"{stream.size}:".encode())
        for start in range(0, stream.size, BLOCK):
            digest.update(stream[start : start + BLOCK].tobytes())
    return digest.hexdigest()[:12]


def documents(stream: np.ndarray, end_of_document: int) -> Iterator[np.ndarray]:
    """Yields the documents of a stream, unsigned [N] each, without end of document."""
    rest = stream[:0]
    for start in range(0, stream.size, BLOCK):
        block = np.concatenate([rest, stream[start : start + BLOCK]])
        begin = 0
        for end in np.flatnonzero(block == end_of_document):
            yield block[begin:end]
            begin = end + 1
        rest = block[begin:]


def _digest(ids: np.ndarray) -> bytes:
    return hashlib.sha256(ids.tobytes()).digest()[:16]


def _begin(tokens: TokenStore, ids: np.ndarray) -> str:
    return repr(tokens.tokenizer.decode(ids[:40].tolist()))
