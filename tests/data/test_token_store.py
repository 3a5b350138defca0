import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import slicedice.data
from slicedice.data import DataError, TokenStore, prepare
from slicedice.data.index import Entry, Index
from slicedice.data.user_text import UserText
from tests.data.reading import documents


def test_text_survives(text: Path, store: TokenStore):
    want = {d: {t for domain, _, t, _ in documents(UserText(str(text))) if domain == d} for d in "ab"}
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


def test_repeats_are_left_out_wherever_they_are(tmp_path: Path):
    """Also in another domain: a text held out in one would be trained on in the other."""
    for domain in "xy":
        (tmp_path / "t" / domain).mkdir(parents=True)
        lines = [json.dumps({"text": text}) for text in ("same", domain, domain * 2)]
        (tmp_path / "t" / domain / "a.jsonl").write_text("\n".join(lines))
        (tmp_path / "t" / domain / "b.jsonl").write_text('{"text": "same"}\n')
    store = prepare(str(tmp_path / "t"), "bytes", tmp_path / "stores")
    everything = store.train.tobytes() + b"".join(store.heldout[d].tobytes() for d in "xy")
    assert sorted(everything.split(b"\xff")) == [b"", b"same", b"x", b"xx", b"y", b"yy"]
    repeated = {domain["name"]: domain["repeated_documents"] for domain in store.manifest["domains"]}
    assert repeated == {"x": 1, "y": 2}
    assert "y: " in store.summary().splitlines()[1]
    assert "2 repeated" in store.summary().splitlines()[1]


@pytest.mark.parametrize("fraction", [0.001, 0.5])
def test_two_documents_are_one_on_each_side(tmp_path: Path, fraction: float):
    (tmp_path / "t.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    store = prepare(str(tmp_path / "t.jsonl"), "bytes", tmp_path / "stores", fraction)
    assert store.train.size == store.heldout["t"].size == 4


def test_one_document_stays_however_little_is_held_out_by_then(tmp_path: Path):
    index = Index(tmp_path / "index.sqlite")
    index.add(Entry("t", 1000, 9, rank=2**63 + 2, place=0, content=b"large"), 1)
    index.add(Entry("t", 1, 9, rank=1, place=0, content=b"small"), 0)
    index.hold_out(0.5, "t")
    assert list(index.spans("t")) == [(0, 1)]
    assert list(index.spans(None)) == [(1, 1000)]
    index.close()


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
    monkeypatch.setattr("slicedice.data.build.Writer", lambda *_, **__: pytest.fail("built again"))
    assert prepare(str(text), "bytes", store.path.parent, 0.2).path == store.path


# A writer that stops before it writes anything, until a file appears.
_BUILD = """
import sys, time
from pathlib import Path
from slicedice.data import build
text, root, here, go = sys.argv[1:]
class Waiting(build.Writer):
    def write(self):
        Path(here).touch()
        while not Path(go).exists():
            time.sleep(0.01)
        super().write()
build.Writer = Waiting
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
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _await(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_of_two_processes_one_builds_and_the_other_waits(text: Path, store: TokenStore, tmp_path: Path):
    root, here, go = tmp_path / "stores", tmp_path / "here", tmp_path / "go"
    first = _start(_BUILD, text, root, here, go)
    _await(here)
    second = _start(_BUILD, text, root, tmp_path / "never", go)
    assert second.stderr is not None
    assert "another process prepares this text" in second.stderr.readline()
    go.touch()
    outputs = [process.communicate(timeout=120)[0] for process in (first, second)]
    assert outputs[0].split() == outputs[1].split() == [store.fingerprint, str(store.train.size)]
    assert not (tmp_path / "never").exists(), "both have written"
    assert [path.name for path in root.glob("[!.]*[!n]")] == [store.path.name]
    left = {path.name for path in (root / store.path.name).iterdir()}
    assert left == {"meta.json", "byte_lengths.bin", "train.bin", "heldout-0.bin", "heldout-1.bin"}


def test_one_that_waits_goes_on_when_the_other_is_killed(text: Path, store: TokenStore, tmp_path: Path):
    root, here, go = tmp_path / "stores", tmp_path / "here", tmp_path / "go"
    first = _start(_BUILD, text, root, here, tmp_path / "never")
    _await(here)
    go.touch()
    second = _start(_BUILD, text, root, here, go)
    assert second.stderr is not None
    assert "another process prepares this text" in second.stderr.readline()
    first.kill()
    assert second.communicate(timeout=120)[0].split()[0] == store.fingerprint
    first.communicate()


def test_a_killed_build_leaves_nothing_that_is_opened(text: Path, store: TokenStore, tmp_path: Path):
    process = _start(_DIE, text, tmp_path)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert list(tmp_path.glob("[!.]*")) == []
    assert len(list(tmp_path.glob(".*.building"))) == 1
    assert prepare(str(text), "bytes", tmp_path, 0.2).fingerprint == store.fingerprint
    assert list(tmp_path.glob(".*.building")) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's device that is always full")
@pytest.mark.parametrize("name", ["spool.bin", "train.bin", "heldout-1.bin", "byte_lengths.bin", "meta.json"])
def test_a_full_disk(text: Path, store: TokenStore, tmp_path: Path, monkeypatch, name: str):
    real = Path.open

    def full(path: Path, mode: str = "r"):
        return real(Path("/dev/full") if path.name == name and mode[0] in "wa" else path, mode)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(DataError, match=r"disk is full.*goes on where it was") as caught:
        prepare(str(text), "bytes", tmp_path, 0.2)
    monkeypatch.undo()
    assert "\n" not in str(caught.value)
    assert list(tmp_path.glob("[!.]*")) == []
    assert prepare(str(text), "bytes", tmp_path, 0.2).fingerprint == store.fingerprint


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
        ("meta.json", b'{"format": 2}', "not a readable token store"),
        ("meta.json", b'{"format": 999}', "format 999, and this version of slicedice reads format 2"),
        ("byte_lengths.bin", b"1234", "byte_lengths.bin holds 1 numbers instead of 256"),
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
    meta["tokenizer"]["kind"] = "words"
    (copy / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(DataError, match=r"words cannot be read.*Prepare the text again"):
        _ = TokenStore(copy).tokenizer
    (copy / "words").write_text("")
    with pytest.raises(DataError, match=r"needs a tokenizer of kind 'words'.*knows bytes, tokenizer.json"):
        _ = TokenStore(copy).tokenizer


def test_arguments_out_of_range(text: Path, tmp_path: Path):
    with pytest.raises(DataError, match=r"no tokenizer 'gpt'.*Valid is 'bytes', or the path"):
        prepare(str(text), "gpt", tmp_path)
    for fraction in (0, 0.6, -1, float("nan")):
        with pytest.raises(DataError, match="heldout_fraction is"):
            prepare(str(text), "bytes", tmp_path, fraction)
    with pytest.raises(DataError, match="tokens is -1"):
        prepare(str(text), "bytes", tmp_path, tokens=-1)
    with pytest.raises(DataError, match="tokens is 9, and embedded is taken as a whole"):
        prepare("embedded", "bytes", tmp_path, tokens=9)
