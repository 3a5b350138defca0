import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import slicedice.data
from slicedice.data import DataError, TokenStore, prepare
from slicedice.data.holdout import Entry, held_out
from slicedice.data.user_text import UserText


def test_text_survives(text: Path, store: TokenStore):
    want = {d: {t for domain, _, t in UserText(str(text)).documents() if domain == d} for d in "ab"}
    assert store.domains == ("a", "b")
    train = set(store.train.tobytes().decode("utf-8", "surrogateescape").split("\udcff"))
    for domain in store.domains:
        out = set(store.heldout[domain].tobytes().decode("utf-8", "surrogateescape").split("\udcff")) - {""}
        assert out
        assert out < want[domain]
        assert not out & train
        assert want[domain] - out < train


def test_tokens_are_bytes(store: TokenStore):
    assert store.train.dtype == np.uint8
    assert (store.vocab_size, store.end_of_document) == (256, 255)
    assert store.train[-1] == 255
    assert (store.path / "train.bin").stat().st_size == store.train.size


def test_repeats_are_left_out_within_a_domain(tmp_path: Path):
    for domain in "xy":
        (tmp_path / "t" / domain).mkdir(parents=True)
        lines = [json.dumps({"text": text}) for text in ("same", domain)]
        (tmp_path / "t" / domain / "a.jsonl").write_text("\n".join(lines))
        (tmp_path / "t" / domain / "b.jsonl").write_text('{"text": "same"}\n')
    store = prepare(str(tmp_path / "t"), "bytes", tmp_path / "stores")
    everything = store.train.tobytes() + b"".join(store.heldout[d].tobytes() for d in "xy")
    assert sorted(everything.split(b"\xff")) == [b"", b"same", b"same", b"x", b"y"]
    assert all("1 repeated" in line for line in store.summary().splitlines())


@pytest.mark.parametrize("fraction", [0.001, 0.5])
def test_two_documents_are_one_on_each_side(tmp_path: Path, fraction: float):
    (tmp_path / "t.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    store = prepare(str(tmp_path / "t.jsonl"), "bytes", tmp_path / "stores", fraction)
    assert store.train.size == store.heldout["t"].size == 4


def test_one_document_stays_however_little_is_held_out_by_then():
    small = Entry("t", 0, 1, rank=1, order=0)
    large = Entry("t", 1, 1001, rank=2, order=0)
    assert held_out([large, small], "t", 0.5) == {1}


def test_more_held_out_contains_less(text: Path, tmp_path: Path):
    stores = [prepare(str(text), "bytes", tmp_path, fraction) for fraction in (0.05, 0.2, 0.4)]
    for domain in "ab":
        sets = [set(store.heldout[domain].tobytes().split(b"\xff")) for store in stores]
        assert sets[0] < sets[1] < sets[2]
    assert len({store.fingerprint for store in stores}) == 3


def test_the_fingerprint_is_of_the_content(text: Path, store: TokenStore, tmp_path: Path):
    copy = shutil.copytree(text, tmp_path / "copy")
    os.utime(copy / "a" / "all.jsonl", (0, 0))
    same = prepare(str(copy), "bytes", tmp_path / "stores", 0.2)
    assert same.fingerprint == store.fingerprint
    assert same.path.name != store.path.name
    content = (copy / "a" / "all.jsonl").read_text()
    (copy / "a" / "all.jsonl").write_text(content.replace('"text": "x', '"text": "y', 1))
    assert prepare(str(copy), "bytes", tmp_path / "stores", 0.2).fingerprint != store.fingerprint
    (copy / "a" / "all.jsonl").write_text(content)
    (copy / "a").rename(copy / "c")
    assert prepare(str(copy), "bytes", tmp_path / "stores", 0.2).fingerprint != store.fingerprint


def test_a_store_is_built_once(text: Path, store: TokenStore, monkeypatch):
    monkeypatch.setattr("slicedice.data.build.write_store", lambda *_: pytest.fail("built again"))
    assert prepare(str(text), "bytes", store.path.parent, 0.2).path == store.path


# Each process announces that its store is written, and renames it only when the other has said so too.
_BUILD = """
import sys, time
from pathlib import Path
from slicedice.data import build
text, root, me, other = sys.argv[1:]
write = build.write_store
def write_and_wait(*arguments):
    write(*arguments)
    Path(me).touch()
    deadline = time.monotonic() + 60
    while not Path(other).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
build.write_store = write_and_wait
store = build.prepare(text, "bytes", Path(root), 0.2)
print(store.fingerprint, store.train.size)
"""

_DIE = """
import os, signal, sys
from pathlib import Path
from slicedice.data import build, writer
writer.os.fsync = lambda number: os.kill(os.getpid(), signal.SIGKILL)
build.prepare(sys.argv[1], "bytes", Path(sys.argv[2]), 0.2)
"""


def _start(code: str, *arguments: Path) -> subprocess.Popen:
    top = Path(slicedice.data.__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(top)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_two_processes_build_at_once(text: Path, store: TokenStore, tmp_path: Path):
    root, marks = tmp_path / "stores", (tmp_path / "1", tmp_path / "2")
    both = [_start(_BUILD, text, root, *marks), _start(_BUILD, text, root, *reversed(marks))]
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert all(mark.exists() for mark in marks), "the processes did not overlap"
    assert outputs[0].split() == outputs[1].split() == [store.fingerprint, str(store.train.size)]
    assert [path.name for path in root.iterdir()] == [store.path.name]
    assert not (root / store.path.name / "spool.bin").exists()


def test_a_killed_build_leaves_nothing_that_is_opened(text: Path, store: TokenStore, tmp_path: Path):
    process = _start(_DIE, text, tmp_path)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    assert prepare(str(text), "bytes", tmp_path, 0.2).fingerprint == store.fingerprint
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's device that is always full")
@pytest.mark.parametrize("name", ["spool.bin", "train.bin", "heldout-1.bin", "meta.json"])
def test_a_full_disk(text: Path, tmp_path: Path, monkeypatch, name: str):
    real = Path.open

    def full(path: Path, mode: str = "r"):
        return real(Path("/dev/full") if path.name == name and "w" in mode else path, mode)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(DataError, match=r"disk is full.*Free about twice") as caught:
        prepare(str(text), "bytes", tmp_path, 0.2)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_root_that_cannot_be_written(text: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"could not be written.*Choose a folder"):
        prepare(str(text), "bytes", tmp_path / "file")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("meta.json", b"{", "not a readable token store"),
        ("meta.json", b"\xff", "not a readable token store"),
        ("meta.json", b"[]", "not a readable token store"),
        ("meta.json", b'{"format": 1}', "not a readable token store"),
        ("meta.json", b'{"format": 999}', "format 999, and this version of slicedice reads format 1"),
        ("meta.json", None, "not a readable token store"),
        ("train.bin", b"short", "train.bin holds 5 tokens instead of"),
        ("train.bin", b"", "not a readable token store"),
        ("heldout-0.bin", None, "not a readable token store"),
    ],
)
def test_a_damaged_store(text: Path, tmp_path: Path, file: str, content: bytes | None, message: str):
    path = prepare(str(text), "bytes", tmp_path).path / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        prepare(str(text), "bytes", tmp_path)
    assert "Remove the folder" in str(caught.value)


def test_a_store_of_an_unknown_tokenizer(store: TokenStore, tmp_path: Path):
    copy = shutil.copytree(store.path, tmp_path / "copy")
    meta = json.loads((copy / "meta.json").read_text())
    (copy / "meta.json").write_text(json.dumps({**meta, "tokenizer": "words"}))
    with pytest.raises(DataError, match=r"no tokenizer 'words'.*Valid names: bytes"):
        TokenStore(copy)


def test_arguments_out_of_range(text: Path, tmp_path: Path):
    with pytest.raises(DataError, match=r"no tokenizer 'gpt'.*Valid names: bytes"):
        prepare(str(text), "gpt", tmp_path)
    for fraction in (0, 0.6, -1, float("nan")):
        with pytest.raises(DataError, match="heldout_fraction is"):
            prepare(str(text), "bytes", tmp_path, fraction)
