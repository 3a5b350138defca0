"""The tokenizer that `transformers` loads beside a model: ids and text are those that the run was trained on."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tokenizers
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, processors, trainers

from slicedice.data.tokenizer import Tokenizer, find_tokenizer, load_tokenizer
from slicedice.hugging_face import ExportError
from slicedice.hugging_face_tokenizer import agreement, tokenizer_files

transformers = pytest.importorskip("transformers")

SPECIAL = ["<|endoftext|>", "</s>", "<s>", "<unk>", "[SEP]", "[UNK]"]

LINES = [
    "the model is what it says, and the tests say so",
    "  def total(self, rows):\n        return sum(row.size for row in rows)",
    "1, 2, 3; 10 % of 4,500.75 is 450.075",
    "Größe, naïve, 漢字 and ﬁne ½",
    "don't   lose spaces \t or tabs\n\n",
]


def random_text(rng: np.random.Generator) -> str:
    """Words, spaces, line ends, special tokens, and characters from all of Unicode."""

    def character() -> str:
        low, high = [(1, 0x250), (0x250, 0xD800), (0xE000, 0x10000), (0x1F300, 0x1F700)][rng.integers(4)]
        return chr(rng.integers(low, high))

    def piece() -> str:
        kind = rng.integers(4)
        if kind == 0:
            return "".join(character() for _ in range(rng.integers(1, 8)))
        return str(rng.choice([LINES, SPECIAL, [" ", "  ", "\n", "\r\n", "\t", "x", ". "]][kind - 1]))

    return "".join(piece() for _ in range(rng.integers(0, 7)))


@pytest.fixture
def texts(rng: np.random.Generator) -> list[str]:
    return ["", " ", "\n", *SPECIAL, *LINES, *(random_text(rng) for _ in range(400))]


@pytest.fixture
def written(tmp_path: Path) -> Callable[[Tokenizer], Any]:
    """The tokenizer as `AutoTokenizer` finds it beside a model's config."""

    def load(tokenizer: Tokenizer) -> Any:
        for name, content in tokenizer_files(tokenizer, 10**6).items():
            (tmp_path / name).write_bytes(content)
        (tmp_path / "config.json").write_text('{"model_type": "flex_olmo"}')
        return transformers.AutoTokenizer.from_pretrained(tmp_path)

    return load


def check(theirs: Any, ours: Tokenizer, texts: list[str]) -> None:
    """Ids of texts, their text again, and the token that ends a document."""
    for text, ids in zip(texts, ours.encode(texts), strict=True):
        assert theirs(text)["input_ids"] == ids.tolist(), repr(text)
        assert theirs.decode(ids.tolist(), skip_special_tokens=True) == ours.decode(ids.tolist()), repr(text)
    assert theirs.eos_token_id == theirs.pad_token_id == ours.end_of_document
    assert theirs.bos_token_id is None
    assert theirs.decode([*ours.encode(["x"])[0], ours.end_of_document], skip_special_tokens=True) == ours.decode(
        ours.encode(["x"])[0].tolist()
    )
    assert theirs(["x", "xxx x"], padding=True)["input_ids"][0][-1] == ours.end_of_document


def test_bytes_are_bytes(written, texts: list[str]):
    ours = find_tokenizer("bytes")
    theirs = written(ours)
    check(theirs, ours, texts)
    assert len(theirs) == ours.vocab_size
    for text in texts:
        assert theirs(text)["input_ids"] == list(text.encode())
        assert theirs.decode(list(text.encode())) == text


def byte_level(lines: list[str]) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<s>", "<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(lines, trainer)
    made.add_tokens([AddedToken("total", normalized=False)])
    return made


def words(lines: list[str]) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.Lowercase()])
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = tokenizers.decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=["<s>", "[UNK]", "[SEP]"], show_progress=False)
    made.train_from_iterator(lines, trainer)
    return made


@pytest.mark.parametrize("make", [byte_level, words])
def test_a_tokenizer_json_without_what_it_adds(make: Callable, written, texts: list[str]):
    """As it comes it would begin texts with <s>, pad them and cut them; the run was trained on none of that."""
    made = make(LINES)
    made.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", made.token_to_id("<s>"))])
    made.enable_truncation(5)
    made.enable_padding(length=8)
    ours = load_tokenizer("tokenizer.json", made.to_str().encode(), "made")
    theirs = written(ours)
    check(theirs, ours, texts)
    assert agreement(ours, tokenizer_files(ours, 16), texts) == len(texts)


def pieces(lines: list[str], **options: Any) -> Tokenizer:
    """A SentencePiece model of the lines."""
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter([line for text in lines * 20 for line in text.split("\n")]),
        model_writer=buffer,
        vocab_size=380,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return load_tokenizer("tokenizer.model", buffer.getvalue(), "made")


@pytest.mark.parametrize(
    "options",
    [
        {"normalization_rule_name": "identity", "add_dummy_prefix": False, "remove_extra_whitespaces": False},
        {"normalization_rule_name": "identity", "remove_extra_whitespaces": False},
        {"normalization_rule_name": "identity"},
    ],
)
def test_a_sentencepiece_bpe_is_converted_to_the_id(options: dict[str, Any], written, texts: list[str]):
    ours = pieces(LINES, model_type="bpe", byte_fallback=True, **options)
    check(written(ours), ours, texts)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_sentencepiece_that_normalizes_is_converted_but_for_rare_marks(kind: str, written, rng: np.random.Generator):
    """Where they differ, it is in marks that combine as no font has them, or in ties; words and accents agree."""
    ours = pieces(LINES, model_type=kind, byte_fallback=True)
    texts = [" ".join(rng.choice("\n".join(LINES).split(), 12)) + str(rng.integers(10**6)) for _ in range(100)]
    texts += ["Gro\u0308ße na\u0131\u0308ve e\u0301", "ﬁ ① ½", "  two  \n\n lines ", *SPECIAL, "か\u3099"]
    check(written(ours), ours, texts)
    wild = [random_text(rng) for _ in range(400)]
    assert agreement(ours, tokenizer_files(ours, 16), wild) > 320


def test_disagreement_is_counted():
    """Another model's ids are not taken for this one's."""
    ours, other = (pieces(lines, model_type="unigram") for lines in (LINES, LINES[:2]))
    assert agreement(ours, tokenizer_files(ours, 16), LINES) == len(LINES)
    assert agreement(ours, tokenizer_files(other, 16), LINES) < len(LINES)


def test_a_sentencepiece_of_words_is_refused():
    with pytest.raises(ExportError, match="words or characters"):
        tokenizer_files(pieces(LINES, model_type="char"), 16)


@pytest.mark.parametrize("kind", ["json", "model"])
def test_the_door_takes_the_tokenizer_from_the_tokens(
    kind: str, ours, exported, prepared, shelf, tiny, text: Path, tmp_path: Path, texts: list[str]
):
    """Not from the file that the run names, which may have changed since; a SentencePiece model lies beside."""
    path, lines = tmp_path / f"mine.{kind}", [path.read_text() for path in text.iterdir()]
    # Merges, since of two ways to cut a word that a unigram model finds as likely, rounding decides.
    made = pieces(lines, model_type="bpe") if kind == "model" else None
    path.write_bytes(made.content if made else byte_level(lines).to_str().encode())
    wanted = find_tokenizer(str(path))
    fingerprint = prepared(str(path))
    path.unlink()
    mine = ours({"data.source": str(text), "data.tokenizer": str(path), "model.vocab_size": 512})
    folder = exported(mine, fingerprint=fingerprint)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for line in lines:
        assert theirs(line)["input_ids"] == wanted.encode([line])[0].tolist()
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == wanted.end_of_document
    assert (folder / "tokenizer.model").exists() == (kind == "model")
    assert ("as the model does" in (folder / "README.md").read_text()) == (kind == "model")
    shelf.put(mine, tiny()[1], fingerprint="f" * 12)
    status, _, err = shelf.export("tiny-dense-seed0", "again")
    assert status == 2
    assert "f" * 12 in err
