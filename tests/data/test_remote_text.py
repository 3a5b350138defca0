"""Text in a bucket, for which a file system in memory stands in behind the same library."""

import gzip
import json
from typing import ClassVar

import pyarrow
import pyarrow.parquet
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from slicedice.data import DataError, prepare
from slicedice.data.user_text import UserText
from tests.data.reading import documents


class Bucket(MemoryFileSystem):
    protocol = ("gs", "gcs")
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> MemoryFileSystem:
    """The bucket gs://corpus, empty."""
    from etils.epath import backend, gpath

    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)  # it would read buckets where it is there
    monkeypatch.setattr(Bucket, "store", {})
    monkeypatch.setattr(Bucket, "pseudo_dirs", [""])
    monkeypatch.setattr(backend.fsspec_backend, "_get_filesystem", lambda name: Bucket())
    return Bucket()


def _write(bucket: MemoryFileSystem, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        with bucket.open(f"gs://corpus/{name}", "wb") as file:
            file.write(content)  # pyright: ignore[reportArgumentType]


def test_a_bucket_reads_as_a_folder_does(bucket, tmp_path):
    lines = "".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(5)).encode()
    table = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"text": ["row 1", "row 2"]}), table)
    files = {
        "web/part-0.jsonl.gz": gzip.compress(lines),
        "web/deep/part-1.parquet": table.getvalue().to_pybytes(),
        "notes/a.txt": "Grüße".encode(),
        "notes/b.txt": b"two",
        "notes/.hidden.txt": b"no",
        "notes/c.md": b"no",
    }
    _write(bucket, files)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    remote, local = UserText("gs://corpus"), UserText(str(tmp_path))
    assert documents(remote) == documents(local)
    assert remote.shares() == local.shares()
    one, other = (prepare(name, "bytes", tmp_path / "stores") for name in ("gs://corpus", str(tmp_path)))
    assert one.fingerprint == other.fingerprint


def test_identity_changes_with_a_file(bucket):
    _write(bucket, {"a/a.txt": b"one"})
    first = UserText("gs://corpus").identity()
    assert UserText("gs://corpus").identity() == first
    _write(bucket, {"a/b.txt": b"two"})
    assert UserText("gs://corpus").identity() != first


def test_what_is_not_there_is_named(bucket):
    with pytest.raises(
        DataError, match=r"gs://corpus/none cannot be read: .*No such file|gs://corpus/none .*cannot be read"
    ):
        UserText("gs://corpus/none")


def test_a_missing_library_is_named(monkeypatch):
    from etils.epath import gpath

    def missing(self):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(gpath.PosixGPath, "exists", missing)
    with pytest.raises(DataError, match=r"gs://corpus cannot be read: Please install gcsfs.*pip install gcsfs"):
        UserText("gs://corpus")
