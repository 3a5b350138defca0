import gzip
import json
import os
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from slicedice.data import DataError, prepare
from slicedice.data.account import Account
from slicedice.data.sources import Document
from slicedice.data.text_files import PIECE_BYTES, read_text_file
from slicedice.data.user_text import UserText
from tests.data.reading import documents

TEXTS = ["Grüße\n", "two 😀", 'a "quoted" line\r\n', "\u2028 stays"]
LINES = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(TEXTS)).encode()


def _write(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def _read(path: Path) -> list[Document]:
    return documents(UserText(str(path)))


def _parquet(path: Path, **columns: list) -> bytes:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path.read_bytes()


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".json.gz", ".jsonl.zst", ".json.zst", ".parquet", ".JSONL"])
def test_each_kind_of_record_file_gives_the_same_texts(tmp_path: Path, suffix: str):
    contents = {
        ".jsonl": b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\n\n", 1),
        ".JSONL": LINES.rstrip(b"\n"),
        ".jsonl.gz": gzip.compress(LINES[:30]) + gzip.compress(LINES[30:]),
        ".jsonl.zst": zstandard.compress(LINES[:30]) + zstandard.compress(LINES[30:].rstrip()),
        ".parquet": _parquet(tmp_path / "x", id=[1, 2, 3, 4], text=TEXTS),
    }
    _write(tmp_path, {"my.web" + suffix: contents[suffix.replace(".json.", ".jsonl.")]})
    found = _read(tmp_path / ("my.web" + suffix))
    assert [text for _, _, text, _ in found] == TEXTS
    assert {domain for domain, _, _, _ in found} == {"my.web"}
    assert len({where for _, where, _, _ in found}) == len(TEXTS)


def test_large_compressed_records_survive_block_borders(tmp_path: Path):
    texts = ["".join(np.random.default_rng(i).choice(list("abc é"), 70_000)) for i in range(5)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    _write(tmp_path, {"t.jsonl.zst": zstandard.compress(lines)})
    assert [text for _, _, text, _ in _read(tmp_path)] == texts


def test_folders_are_domains(tmp_path: Path):
    root = _write(
        tmp_path / "corpus",
        {
            "a.txt": "one",
            "b.txt": "two",
            "wiki/x.txt": "three",
            "wiki/deep/er/y.TXT": "four",
            "wiki/notes.md": b"\xff",
            ".git/z.txt": b"\xff",
            "wiki/.hidden.txt": b"",
            "pictures/p.png": b"",
        },
    )
    assert [document[:3] for document in _read(root)] == [
        ("corpus", "a.txt:1", "one"),
        ("corpus", "b.txt:1", "two"),
        ("wiki", "wiki/deep/er/y.TXT:1", "four"),
        ("wiki", "wiki/x.txt:1", "three"),
    ]


def test_links_are_followed_but_not_in_circles(tmp_path: Path):
    _write(tmp_path, {"elsewhere/x.txt": "one", "corpus/plain/y.txt": "two"})
    (tmp_path / "corpus" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "corpus")
    assert [domain for domain, _, _, _ in _read(tmp_path / "corpus")] == ["linked", "plain"]


def test_a_link_is_read_by_its_own_name(tmp_path: Path, monkeypatch):
    _write(tmp_path, {"0badcafe": LINES})
    (tmp_path / "web.jsonl").symlink_to(tmp_path / "0badcafe")
    monkeypatch.chdir(tmp_path)
    for path in (Path("web.jsonl"), tmp_path / "web.jsonl"):
        assert [(domain, text) for domain, _, text, _ in _read(path)] == [("web", text) for text in TEXTS]
    assert {domain for domain, _, _, _ in _read(Path("."))} == {tmp_path.name}


def test_identity_follows_names_sizes_and_dates(tmp_path: Path):
    root = _write(tmp_path / "corpus", {"a.txt": "one", "b.txt": "two"})
    first = UserText(str(root)).identity()
    assert UserText(str(root)).identity() == first
    (root / "a.txt").write_text("0ne")
    second = UserText(str(root)).identity()
    (root / "b.txt").rename(root / "c.txt")
    assert len({first, second, UserText(str(root)).identity()}) == 3


@pytest.mark.parametrize("pause", ["\n\n", "\r\n\r\n", "\n", ""], ids=repr)
def test_a_large_file_is_cut_where_it_pauses_and_nothing_is_lost(tmp_path: Path, pause: str):
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print("seed", seed)
    draw = np.random.default_rng(seed)
    pieces = ("".join(draw.choice(list("ab é漢😀"), draw.integers(10, 3000))) for _ in range(200))
    text = (pause + "x").join(pieces)
    raw = text.encode()
    path = _write(tmp_path, {"t.txt": raw}) / "t.txt"
    found = [piece for _, piece in read_text_file(path, Account(skip=False))]
    assert "".join(found).encode() == raw
    sizes = [len(piece.encode()) for piece in found]
    assert len(sizes) > 3
    assert max(sizes) <= PIECE_BYTES
    assert min(sizes[:-1]) >= PIECE_BYTES // 2
    assert all(piece.endswith(pause) for piece in found[:-1])


def test_a_blank_line_is_preferred_to_a_line_end(tmp_path: Path):
    raw = ("line\n" * 9000 + "\n" + "line\n" * 9000).encode()
    path = _write(tmp_path, {"t.txt": raw}) / "t.txt"
    assert next(read_text_file(path, Account(skip=False)))[1].endswith("\n\n")


def test_a_file_of_up_to_64_kib_is_one_document(tmp_path: Path):
    path = _write(tmp_path, {"t.txt": "a\n\n" * (PIECE_BYTES // 3)}) / "t.txt"
    assert len(list(read_text_file(path, Account(skip=False)))) == 1


GOOD = '{"text": "one"}\n{"text": "two"}\n'
BAD = {
    "empty": ({"a.txt": ""}, r"a\.txt:1 holds no text"),
    "blank": ({"a.txt": " \n\t\n"}, r"a\.txt:1 holds no text"),
    "blank records": ({"a.jsonl": '{"text": ""}\n\n{"text": " "}\n'}, r"a\.jsonl:1 holds no text"),
    "empty beside good": ({"a.jsonl": GOOD, "b.txt": ""}, r"b\.txt:1 holds no text"),
    "latin": ({"a.txt": b"fine\nGr\xfc\xdfe\n"}, r"a\.txt:2 is not UTF-8 \(byte 0xfc\).*iconv"),
    "late": ({"a.txt": b"fine\n" * 40_000 + b"\xff\n"}, r"a\.txt:40001 is not UTF-8"),
    "continuations": ({"a.txt": b"\x80" * 100_000}, r"a\.txt:1 is not UTF-8"),
    "latin record": ({"a.jsonl": GOOD.encode() + b'{"text": "\xfc"}\n'}, r"a\.jsonl:3 is not UTF-8"),
    "not json": ({"a.jsonl": GOOD + "{'text': 1}\n"}, r"a\.jsonl:3 is not JSON.*must be a JSON object"),
    "no text": ({"a.jsonl": GOOD + '\n{"txt": "x"}\n'}, r'a\.jsonl:4 has no string field "text"'),
    "text is null": ({"a.jsonl": '{"text": null}\n'}, r'a\.jsonl:1 has no string field "text"'),
    "list": ({"a.jsonl": '["text"]\n'}, r"a\.jsonl:1 is no JSON object"),
    "surrogate": ({"a.jsonl": GOOD + '{"text": "\\ud800"}\n'}, r"a\.jsonl:3 .*surrogate"),
    "no gzip": ({"a.jsonl.gz": GOOD}, r"a\.jsonl\.gz is damaged"),
    "short gzip": ({"a.jsonl.gz": gzip.compress(LINES)[:-9]}, r"a\.jsonl\.gz is damaged or incomplete"),
    "no zst": ({"a.jsonl.zst": GOOD}, r"a\.jsonl\.zst is damaged"),
    "short zst": ({"a.jsonl.zst": zstandard.compress(LINES)[:-1]}, r"a\.jsonl\.zst is damaged or incomplete"),
    "no parquet": ({"a.parquet": GOOD}, r"a\.parquet is not a readable Parquet file"),
    "empty parquet": ({"a.parquet": ""}, r"a\.parquet is not a readable Parquet file"),
    "nothing": (
        {"a.md": "text"},
        r"holds no text.*\.txt, \.txt\.gz, \.txt\.zst, \.jsonl, \.jsonl\.gz, .*\.json\.gz, .*\.parquet",
    ),
    "one document": ({"x/a.txt": "one", "y/a.jsonl": GOOD}, r"domain 'x' .* at least two"),
    "one repeated": ({"a.jsonl": '{"text": "one"}\n' * 3}, r"domain 'corpus' .* at least two"),
    "ambiguous": ({"a.jsonl": GOOD, "corpus/b.jsonl": GOOD}, r"both be the domain 'corpus'"),
}


@pytest.mark.parametrize(("files", "message"), BAD.values(), ids=BAD.keys())
def test_bad_text_is_a_paragraph_and_leaves_nothing(tmp_path: Path, files: dict, message: str):
    root = _write(tmp_path / "corpus", files)
    with pytest.raises(DataError, match=message) as caught:
        prepare(str(root), "bytes", tmp_path / "stores")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.glob("stores/[!.]*")) == []
    if "domain" not in message:  # which is known when all is encoded; that stays, for the same command with more text
        assert list(tmp_path.glob("stores/.*.building")) == []


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"txt": ["a"]}, "has the columns txt, but needs"),
        ({"text": ["a", None]}, r":2 \(row\): text is None"),
        ({"text": [7]}, r":1 \(row\): text is 7"),
    ],
)
def test_bad_parquet(tmp_path: Path, columns: dict, message: str):
    _parquet(tmp_path / "a.parquet", **columns)
    with pytest.raises(DataError, match=rf"a\.parquet.*{message}"):
        prepare(str(tmp_path / "a.parquet"), "bytes", tmp_path / "stores")


def test_paths_that_are_not_there(tmp_path: Path):
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    for path in (tmp_path / "missing", tmp_path / "gone.txt", tmp_path):
        with pytest.raises(DataError, match="No such file"):
            prepare(str(path), "bytes", tmp_path / "stores")


def test_what_is_left_out_by_its_suffix_is_counted(tmp_path: Path):
    root = _write(tmp_path, {"a.txt": "one", "b.md": "", "c.md": "", "d.json": "", "Makefile": ""})
    assert UserText(str(root)).left_out == {".md": 2, ".json": 1, "Makefile": 1}


def test_compressed_text_is_text(tmp_path: Path):
    _write(tmp_path, {"a.txt.gz": gzip.compress(b"one"), "b.txt.zst": zstandard.compress(b"two")})
    assert [text for _, _, text, _ in _read(tmp_path)] == ["one", "two"]


def test_a_domain_that_cannot_be_printed_is_refused(tmp_path: Path):
    folder = os.fsencode(tmp_path) + b"/dom\xff"
    os.mkdir(folder)
    Path(os.fsdecode(folder), "a.txt").write_text("text")
    with pytest.raises(DataError, match=r"a domain called 'dom.udcff', which cannot be printed"):
        UserText(str(tmp_path))


def test_no_domain_takes_the_name_of_the_mean(tmp_path):
    (tmp_path / "macro").mkdir()
    (tmp_path / "macro" / "a.txt").write_text("text")
    with pytest.raises(DataError, match="mean over domains"):
        UserText(str(tmp_path))
