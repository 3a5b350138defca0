import json
from pathlib import Path

import numpy as np
import pytest

from slicedice.data import DataError
from slicedice.data.account import Account
from slicedice.data.tokenizer import ByteTokenizer, Tokenizer, find_tokenizer, padded_vocab_size
from slicedice.data.tokenizer_training import train_tokenizer
from slicedice.data.user_text import UserText

LETTERS = [*"abcdefgh  \n\t\"'.,<|/s>éß漢😀\u0301", "\r\n", "the ", "<|endoftext|>", "</s>"]


def _random_text(draw: np.random.Generator, length: int) -> str:
    return "".join(draw.choice(LETTERS, length))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tokenizer of each kind, trained on a few hundred lines."""
    folder = tmp_path_factory.mktemp("tokenizers")
    draw = np.random.default_rng(0)
    texts = [_random_text(draw, 30) + "the cat sat on the mat " * 5 for _ in range(200)]
    (folder / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    source = UserText(str(folder / "t.jsonl"))
    paths = {suffix: folder / f"tokenizer{suffix}" for suffix in (".json", ".model")}
    for path in paths.values():
        train_tokenizer(source, path, 500, 1, Account(skip=False))
    return paths


@pytest.fixture(params=["bytes", ".json", ".model"])
def tokenizer(request, trained) -> Tokenizer:
    return find_tokenizer(str(trained.get(request.param, request.param)))


def test_text_comes_back_and_every_byte_is_counted(tokenizer: Tokenizer, rng):
    texts = [_random_text(rng, rng.integers(1, 300)) for _ in range(50)]
    for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
        assert tokenizer.decode(ids.tolist()) == text
        assert tokenizer.byte_lengths[ids].sum() == len(text.encode())
        assert (ids < tokenizer.vocab_size).all()
        assert tokenizer.end_of_document not in ids
    assert tokenizer.byte_lengths[tokenizer.end_of_document] == 0
    assert tokenizer.byte_lengths.shape == (tokenizer.vocab_size,)


def test_what_spells_a_special_token_is_text(tokenizer: Tokenizer):
    for text in ("<|endoftext|>", "</s>", "a <unk> b"):
        (ids,) = tokenizer.encode([text])
        assert tokenizer.end_of_document not in ids
        assert tokenizer.decode(ids.tolist()) == text


def test_trained_tokenizers_learn(trained, rng):
    text = "the cat sat on the mat " * 20
    for path in trained.values():
        tokenizer = find_tokenizer(str(path))
        assert 300 < tokenizer.vocab_size <= 500
        assert tokenizer.encode([text])[0].size < len(text) * 0.8


def test_the_file_alone_makes_the_identity(trained, tmp_path: Path):
    copy = tmp_path / "other.json"
    copy.write_bytes(trained[".json"].read_bytes())
    first, second = find_tokenizer(str(trained[".json"])), find_tokenizer(str(copy))
    assert first.identity == second.identity
    assert first.content == copy.read_bytes()
    copy.write_bytes(copy.read_bytes() + b"\n")
    assert find_tokenizer(str(copy)).identity != first.identity


def test_settings_of_the_file_that_would_change_text_are_left_aside(trained, tmp_path: Path):
    import tokenizers

    plain = find_tokenizer(str(trained[".json"]))
    changed = tokenizers.Tokenizer.from_file(str(trained[".json"]))
    changed.enable_padding(length=64)
    changed.enable_truncation(max_length=4)
    changed.post_processor = tokenizers.processors.TemplateProcessing(  # pyright: ignore
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", plain.end_of_document)]
    )
    changed.save(str(tmp_path / "changed.json"))
    texts = ["a few words of text", "more"]
    for want, ids in zip(
        plain.encode(texts), find_tokenizer(str(tmp_path / "changed.json")).encode(texts), strict=True
    ):
        np.testing.assert_array_equal(ids, want)


def test_tokens_added_to_a_vocabulary_count_as_their_text(trained, tmp_path: Path):
    import tokenizers

    changed = tokenizers.Tokenizer.from_file(str(trained[".json"]))
    changed.add_tokens(["日本", "    "])
    changed.save(str(tmp_path / "changed.json"))
    tokenizer = find_tokenizer(str(tmp_path / "changed.json"))
    (ids,) = tokenizer.encode(["x日本    y"])
    assert tokenizer.byte_lengths[ids].sum() == len("x日本    y".encode())
    assert tokenizer.vocab_size - 1 in ids


def test_word_pieces_count_as_their_letters(tmp_path: Path):
    import tokenizers

    vocabulary = {"[UNK]": 0, "[SEP]": 1, "play": 2, "##ing": 3, "é": 4}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()  # pyright: ignore
    tokenizer.add_special_tokens(["[SEP]", "[UNK]"])
    tokenizer.save(str(tmp_path / "pieces.json"))
    found = find_tokenizer(str(tmp_path / "pieces.json"))
    assert found.end_of_document == 1
    (ids,) = found.encode(["playing é"])
    assert ids.tolist() == [2, 3, 4]
    assert found.byte_lengths.tolist() == [0, 0, 4, 3, 2]


def test_an_end_that_is_a_piece_of_text_too_ends_no_document(tmp_path: Path):
    import tokenizers

    pieces = [("<unk>", 0.0), ("</s>", -1.0), ("a", -2.0), ("b", -2.0), ("<", -3.0), ("/s>", -3.0)]
    unigram = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=0))
    unigram.add_special_tokens(["</s>"])
    unigram.save(str(tmp_path / "t5.json"))
    tokenizer = find_tokenizer(str(tmp_path / "t5.json"))
    assert tokenizer.end_of_document == 1
    assert [ids.tolist() for ids in tokenizer.encode(["a</s>b", "ab", "</s></s>"])] == [
        [2, 4, 5, 3],
        [2, 3],
        [4, 5, 4, 5],
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.model", b"", r"a\.model is no readable SentencePiece model: it is empty"),
        ("a.json", b"{}", r"a\.json is no readable tokenizer\.json"),
        ("a.json", b"\xff", r"a\.json is no readable tokenizer\.json"),
        ("a.model", b"nothing", r"a\.model is no readable SentencePiece model"),
        ("a.bin", b"", r"no tokenizer .*a\.bin.*Valid is 'bytes', or the path"),
        ("a.json", None, r"a\.json cannot be read: No such file"),
    ],
)
def test_files_that_are_no_tokenizer(tmp_path: Path, name: str, content: bytes | None, message: str):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        find_tokenizer(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_cannot_end_a_document_is_refused(trained, tmp_path: Path):
    content = json.loads(trained[".json"].read_text())
    content["added_tokens"][0]["content"] = "<pad>"
    content["model"]["vocab"]["<pad>"] = content["model"]["vocab"].pop("<|endoftext|>")
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"no special token that could end.*</s>.*special tokens are: <pad>"):
        find_tokenizer(str(tmp_path / "a.json"))


def test_vocabularies_are_padded_as_the_studys_is():
    assert padded_vocab_size(100_278) == 100_352
    assert padded_vocab_size(100_352) == 100_352
    assert padded_vocab_size(257) == 384
    assert padded_vocab_size(ByteTokenizer.vocab_size) == 256


def test_each_domain_gives_its_share_to_learn_from(tmp_path: Path):
    for domain, word, count in (("a", "aaaa", 3000), ("b", "bbbb", 1000)):
        (tmp_path / domain).mkdir()
        (tmp_path / domain / "t.jsonl").write_text(f'{{"text": "{word * 300}"}}\n' * count)
    from slicedice.data.tokenizer_training import _texts

    source = UserText(str(tmp_path))
    read = [text[0] for text in _texts(source, 1_200_000, Account(skip=False))]
    assert read.count("a") == 750
    assert read.count("b") == 250


@pytest.mark.parametrize(
    ("name", "vocab_size", "message"),
    [("t.txt", 400, "ends in neither"), ("t.json", 299, "Valid is from 300"), ("no/t.json", 400, "cannot be written")],
)
def test_training_that_cannot_be(tmp_path: Path, name: str, vocab_size: int, message: str):
    (tmp_path / "t.jsonl").write_text('{"text": "some words"}\n' * 9)
    (tmp_path / "no").write_text("a file")
    with pytest.raises(DataError, match=message):
        train_tokenizer(UserText(str(tmp_path / "t.jsonl")), tmp_path / name, vocab_size, 1, Account(skip=False))


def test_what_sentencepiece_refuses_is_told(tmp_path: Path):
    (tmp_path / "t.txt").write_text("".join(chr(0x4E00 + i) for i in range(1000)))
    with pytest.raises(DataError, match=r"could not train: .*vocab"):
        train_tokenizer(UserText(str(tmp_path / "t.txt")), tmp_path / "t.model", 400, 1, Account(skip=False))
