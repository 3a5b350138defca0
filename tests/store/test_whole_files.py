"""Files are replaced whole or not at all, and nothing is left behind."""

import errno
import os
from pathlib import Path

import pytest

from slicedice.store.files import StoreError, create, read_json, write_json, write_whole


def test_a_file_is_made_with_its_folders_and_replaced(tmp_path: Path):
    path = tmp_path / "a" / "b" / "c.json"
    write_json(path, {"ä": 1})
    assert read_json(path) == {"ä": 1}
    write_json(path, {"b": None})
    assert read_json(path) == {"b": None}
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("call", ["replace", "fsync"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_an_error_keeps_the_old_file_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: BaseException
):
    path = tmp_path / "result.json"
    write_whole(path, "old")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(type(error)):
        write_whole(path, "new" * 10_000)
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is full is Linux's /dev/full")
def test_a_disk_that_is_really_full_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "result.json"
    write_whole(path, "old")
    # Where the new text goes before it takes the old one's place.
    monkeypatch.setattr("slicedice.store.files.secrets.token_hex", lambda _: "draw")
    (tmp_path / f".result.json.{os.getpid()}-draw").symlink_to("/dev/full")
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_text_is_on_disk_before_it_takes_the_old_ones_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda *a: calls.append("fsync") or fsync(*a))
    monkeypatch.setattr(os, "replace", lambda *a: calls.append(Path(a[0]).read_text()) or replace(*a))
    write_whole(tmp_path / "x", "whole")
    assert calls == ["fsync", "whole"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe", b'{"a": 1', b"[" * 10**5])
def test_what_is_no_object_is_read_as_none(tmp_path: Path, content: bytes):
    path = tmp_path / "x.json"
    assert read_json(path) is None
    path.write_bytes(content)
    assert read_json(path) is None
    assert read_json(path / "below") is None


def test_two_containers_with_one_process_number_do_not_write_each_others_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Their stores are one, and each takes itself for process 1."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    path, link, got = tmp_path / "claim.json", os.link, []

    def meanwhile(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "link", link)
        got.append(create(path, {"by": "the other"}))
        link(source, target)

    monkeypatch.setattr(os, "link", meanwhile)
    got.append(create(path, {"by": "the first"}))
    assert got == [True, False]
    assert read_json(path) == {"by": "the other"}
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_made_once(tmp_path: Path):
    path = tmp_path / "a" / "claim.json"
    assert create(path, {"by": 1})
    assert not create(path, {"by": 2})
    assert read_json(path) == {"by": 1}
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_was_made_while_the_answer_was_lost_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """NFS asks again when no answer comes, and is told that the file is there."""
    link = os.link

    def twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", twice)
    assert create(tmp_path / "claim.json", {"by": 1})
    assert not create(tmp_path / "claim.json", {"by": 2})
    assert read_json(tmp_path / "claim.json") == {"by": 1}


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_links_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int):
    def link(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(StoreError, match=f"{tmp_path} is on a file system without hard links.*--store"):
        create(tmp_path / "claim.json", {})
    assert list(tmp_path.iterdir()) == []
