"""A run's tokenizer as files that `transformers` loads: `tokenizer.json` and `tokenizer_config.json`.

What they encode is what the run was trained on: a text's characters and nothing else, special tokens in text
included. Of bytes and of a `tokenizer.json` that holds for all text; a SentencePiece model is converted, which is
checked on text and said, and the model itself lies beside.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from slicedice.data.tokenizer_files import SPACE

if TYPE_CHECKING:
    from slicedice.data.tokenizer import Tokenizer

BYTE_END = "<|endoftext|>"
"""What the end of a document is called where tokens are bytes."""

NEVER = -1e6
"""Log probability of pieces that stand for bytes, whose names no text should be taken for."""

UNIGRAM, BPE = 1, 2
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
"""Kinds of models and of pieces in SentencePiece's format."""


def tokenizer_files(tokenizer: "Tokenizer", sequence_length: int) -> dict[str, bytes]:
    """The content of each file, by its name.

    Args:
      tokenizer: of the token store that was trained on.
      sequence_length: tokens that the model was trained on at once.
    """
    kind, content = tokenizer.kind, tokenizer.content
    made = {"bytes": _bytes, "tokenizer.json": _cleaned, "tokenizer.model": _converted}[kind](content)
    special = {token["id"]: token["content"] for token in json.loads(made)["added_tokens"]}
    end = special[tokenizer.end_of_document]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": end,
        "pad_token": end,
        "model_max_length": sequence_length,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,  # what spells one in text is text
    }
    files = {"tokenizer.json": made, "tokenizer_config.json": (json.dumps(config, indent=2) + "\n").encode()}
    return files | ({kind: content} if kind == "tokenizer.model" else {})


def agreement(tokenizer: "Tokenizer", files: dict[str, bytes], texts: Sequence[str]) -> int:
    """How many of `texts` the written `tokenizer.json` encodes as `tokenizer` does."""
    written = tokenizers.Tokenizer.from_buffer(files["tokenizer.json"])
    written.encode_special_tokens = True
    ours = (ids.tolist() for ids in tokenizer.encode(texts))
    theirs = (encoding.ids for encoding in written.encode_batch_fast(list(texts), add_special_tokens=False))
    return sum(a == b for a, b in zip(ours, theirs, strict=True))


def _bytes(_: bytes) -> bytes:
    """The 255 bytes of UTF-8 as a vocabulary without merges, and the end of a document as the 256th token."""
    # As in GPT-2, bytes that are no visible character of Latin-1 are written as those from 256 on.
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    spelled = {chr(byte if byte in visible else next(others)): byte for byte in range(0xFF)}
    made = tokenizers.Tokenizer(models.BPE(vocab=spelled, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(BYTE_END, special=True, normalized=False)])
    return made.to_str(pretty=True).encode()


def _cleaned(content: bytes) -> bytes:
    """A tokenizer.json without what adds tokens to text, pads it or cuts it, as the data room reads it."""
    return json.dumps({**json.loads(content), "post_processor": None, "padding": None, "truncation": None}).encode()


def _converted(content: bytes) -> bytes:
    """A SentencePiece model in the terms of `tokenizers`, whose arithmetic and Unicode differ in corner cases."""
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2.ModelProto.FromString(content)  # pyright: ignore[reportAttributeAccessIssue]
    pieces = list(proto.pieces)
    unknown = next(i for i, piece in enumerate(pieces) if piece.type == UNKNOWN)
    fallback = bool(proto.trainer_spec.byte_fallback)
    if proto.trainer_spec.model_type == UNIGRAM:
        # Names of special tokens are pieces like others there: a space, of which normalised text has none, keeps them
        # from being found in it.
        for piece in pieces:
            piece.piece += " " * (piece.type in (UNKNOWN, CONTROL))
        spelled = [(piece.piece, NEVER if piece.type == BYTE else piece.score) for piece in pieces]
        made = tokenizers.Tokenizer(models.Unigram(spelled, unknown, fallback))
    elif proto.trainer_spec.model_type == BPE:
        vocabulary = {piece.piece: i for i, piece in enumerate(pieces)}
        word = models.BPE(
            vocab=vocabulary,
            merges=_merges(pieces, vocabulary),
            unk_token=pieces[unknown].piece,
            fuse_unk=True,
            byte_fallback=fallback,
        )
        made = tokenizers.Tokenizer(word)
    else:
        from slicedice.hugging_face import ExportError

        raise ExportError("its tokenizer is a SentencePiece model of words or characters, which is not converted")
    made.normalizer = normalizers.Sequence(list(_normalizers(proto.normalizer_spec)))
    parts = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence(
        parts + ([decoders.Strip(" ", 1, 0)] if proto.normalizer_spec.add_dummy_prefix else [])
    )
    silent = [p.piece for p in pieces if p.type in (UNKNOWN, CONTROL)]
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in silent])
    symbols = [p.piece for p in pieces if p.type == USER_DEFINED]
    made.add_tokens([AddedToken(text, normalized=False) for text in symbols])
    return made.to_str(pretty=True).encode()


def _merges(pieces: Sequence[Any], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """All ways to make a piece of two others, those of the best pieces first, as SentencePiece joins them."""
    found = []
    for piece in pieces:
        if piece.type in (NORMAL, USER_DEFINED):
            text = piece.piece
            pairs = ((text[:i], text[i:]) for i in range(1, len(text)))
            known = [(a, b) for a, b in pairs if a in vocabulary and b in vocabulary]
            found += [(-piece.score, vocabulary[a], vocabulary[b], a, b) for a, b in known]
    return [(a, b) for *_, a, b in sorted(found)]


def _normalizers(spec: Any):
    """What SentencePiece does to text before it cuts it."""
    if spec.precompiled_charsmap:
        if "nfkc" in spec.name:
            # SentencePiece composes a letter and its marks, and `tokenizers` looks them up one by one.
            yield normalizers.NFC()
        yield normalizers.Precompiled(spec.precompiled_charsmap)
    if spec.remove_extra_whitespaces:
        # Spaces alone, and at the ends of the text, not of lines.
        yield normalizers.Replace(Regex(r"\A +| +\z"), "")
        yield normalizers.Replace(Regex(" {2,}"), " ")
    if spec.add_dummy_prefix:
        yield normalizers.Prepend(SPACE)
    yield normalizers.Replace(" ", SPACE)
