"""Trains a tokenizer on a source: byte-level BPE, or SentencePiece's unigram.

Both must lose nothing: any text comes back from its ids as it was, and each id stands for a known number of bytes.
(But for U+2581, by which SentencePiece writes a space.)
"""

import io
import os
from collections.abc import Iterator
from pathlib import Path

from slicedice.data.account import Account
from slicedice.data.errors import DataError
from slicedice.data.sources import Source
from slicedice.data.tokenizer import Tokenizer, load_tokenizer
from slicedice.data.tokenizer_files import ENDS

LEAST = 300
"""Ids: 256 for bytes, the special ones, and some for what is learned."""


def train_tokenizer(source: Source, path: Path, vocab_size: int, megabytes: int, account: Account) -> Tokenizer:
    """Trains a tokenizer and writes its file.

    Args:
      source: the text; each domain gives its share of what is read.
      path: ends in .json or .model, which says what kind to train.
      vocab_size: number of ids, V; less if the text is too small for it.
      megabytes: of text to learn from, at most.
      account: refuses or counts what cannot be used.

    Raises:
      DataError: another ending, a vocabulary below `LEAST`, text that cannot be used, or a file that cannot be written.
    """
    trainers = {".json": _bpe, ".model": _unigram}
    if path.suffix not in trainers:
        raise DataError(f"{path} ends in neither .json (byte-level BPE) nor .model (SentencePiece). Name one of them.")
    if vocab_size < LEAST or megabytes < 1:
        raise DataError(f"vocab_size is {vocab_size}, megabytes {megabytes}. Valid is from {LEAST} and from 1.")
    content = trainers[path.suffix](_texts(source, megabytes * 10**6, account), vocab_size)
    tokenizer = load_tokenizer(
        {".json": "tokenizer.json", ".model": "tokenizer.model"}[path.suffix], content, str(path)
    )
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}. Name a file that can be.") from error
    return tokenizer


def _texts(source: Source, size: int, account: Account) -> Iterator[str]:
    """Yields documents until each domain has given its share of `size` bytes."""
    shares = source.shares()
    whole = sum(shares.values()) or 1.0
    left = {domain: size * share / whole for domain, share in shares.items()}
    for part in source.parts():
        if left.get(part.domain, size) <= 0:
            continue
        for document in part.read(account):
            left[document.domain] = left.get(document.domain, size) - len(document.text.encode())
            yield document.text
            if left[document.domain] <= 0 and part.domain:
                break


def _bpe(texts: Iterator[str], vocab_size: int) -> bytes:
    """Byte-level BPE with the word splitting of GPT-2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[ENDS[0]], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str(pretty=True).encode()


def _unigram(texts: Iterator[str], vocab_size: int) -> bytes:
    """SentencePiece's unigram model, with bytes for what it has no piece for and text left as it is."""
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            # Longer ones than about 4 kB would be left out.
            sentence_iterator=(line for text in texts for line in text.split("\n") if line.strip()),
            model_writer=model,
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            max_sentence_length=1 << 20,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            bos_id=-1,
            pad_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(f"SentencePiece could not train: {error}. Take more text, or a smaller vocabulary.") from error
    return model.getvalue()
