"""Writing files so that a reader, or a power cut, meets the whole file or none of it.

A store is a folder, or lies in a bucket. Paths are `pathlib.Path` or `ObjectPath`, which has the same methods where the
store needs them; what has to be done otherwise is done here, and nobody else has to know.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar, cast

T = TypeVar("T")
R = TypeVar("R")

IN_BUCKET = re.compile(r"gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9](/[^/]+)*/?")
"""Addresses in buckets, whose names are of these letters."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
"""Numbers of errors that mean no room: on the disk, or in the user's share of it."""


NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""Numbers of errors by which file systems say that they have no hard links."""


def is_disk_full(error: BaseException) -> bool:
    """Whether the disk was full; Orbax reports that in errors of its own, by the system's words."""
    if (isinstance(error, OSError) and error.errno in NO_ROOM) or any(os.strerror(n) in str(error) for n in NO_ROOM):
        return True
    return error.__cause__ is not None and is_disk_full(error.__cause__)


class StoreError(RuntimeError):
    """A store that cannot be used, and why."""


class BucketError(OSError):
    """A bucket that cannot be used: its service refuses, or does not answer though it was asked again."""

    def __str__(self) -> str:
        """What to tell: without the system's number, which stands for a kind of error that is none of the system's."""
        return f"{self.filename}: {self.strerror}" if self.filename else str(self.strerror)

    @property
    def passes(self) -> bool:
        """Whether it may be otherwise in a while; refusals, and rights and packages that are lacking, stay so."""
        return self.errno == errno.EIO


def as_path(place: Path | str) -> Path:
    """The path of a folder, or of what is in a bucket, by its name.

    Raises:
      StoreError: it names no bucket, or something else than a bucket of Google's.
    """
    text = os.fspath(place)
    if "://" not in text:
        return Path(place)
    if not IN_BUCKET.fullmatch(text) or {".", ".."} & set(text.split("/")):
        raise StoreError(f"{text} cannot be a store: name a folder, or one in a bucket as gs://BUCKET/FOLDER.")
    from slicedice.store.objects import ObjectPath  # here, since importing it takes a moment

    return cast(Path, ObjectPath(text))


def is_object(path: Path) -> bool:
    """Whether a path is of a bucket."""
    return not isinstance(path, Path)


def each(do: Callable[[T], R], items: Iterable[T], where: Path) -> list[R]:
    """What `do` returns for each item, in order; where a request takes long, in a bucket, many at a time."""
    if not is_object(where):
        return [do(item) for item in items]
    from slicedice.store.objects import AT_ONCE

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(do, items))


def read_end(path: Path, size: int) -> bytes:
    """The last bytes of a file, all if it has no more."""
    if is_object(path):
        return cast(Any, path).read_end(size)
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - size))
        return file.read()


def size_of(path: Path) -> int:
    """Bytes of a file, or of a folder with all that is in it."""
    if is_object(path):
        return cast(Any, path).size()
    return sum(part.lstat().st_size for part in [path, *(path.rglob("*") if path.is_dir() else [])])


def remove_all(folder: Path) -> None:
    """Removes a folder, if it is there, and as much of what is in it as can be."""
    if is_object(folder):
        with contextlib.suppress(OSError):
            cast(Any, folder).rmtree(missing_ok=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def write_whole(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Replaces `path` by `content`, text as UTF-8, at once, and if it is to be durable only after it is on disk."""
    content = content.encode() if isinstance(content, str) else content
    if is_object(path):
        path.write_bytes(content)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def create(path: Path, content: Any) -> bool:
    """Makes `path` with `content` as JSON, whole and at once, unless it is there; returns whether it was made.

    Of several processes, on several machines, that try, one is told so.

    Raises:
      StoreError: the file system has no hard links.
    """
    text = json.dumps(content, indent=1) + "\n"
    if is_object(path):
        return cast(Any, path).create(text.encode())
    temporary = _beside(path)
    write_whole(temporary, text)
    try:
        os.link(temporary, path)  # unlike a rename, it replaces nothing
    except FileExistsError:
        return os.path.samefile(temporary, path)  # over a network it may have been made, and the answer lost
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        raise StoreError(
            f"{path.parent} is on a file system without hard links ({error}). A store needs them, so that of several "
            "workers one gets a run: name a folder on another file system with --store."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return True


def write_json(path: Path, content: Any, *, durable: bool = True) -> None:
    """Replaces `path` by `content` as JSON; see `write_whole`."""
    write_whole(path, json.dumps(content, indent=1) + "\n", durable=durable)


def safe_name(text: str, whole: str = "") -> str:
    """What a file name can hold of a text; a digest, of `whole` if there is more to tell, stands for what it cannot."""
    kept = re.sub(r"[^a-zA-Z0-9.,=+_-]+", "_", text)[:80].strip("_-")
    if kept == text and not whole:
        return text
    return f"{kept}-{hashlib.sha256((whole or text).encode(errors='surrogateescape')).hexdigest()[:6]}"


def read_json(path: Path) -> dict | None:
    """The object in `path`; None if there is no such file, or it does not hold one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _beside(path: Path) -> Path:
    """Where a file is written before it is put in place: two containers may have one process number, and one store."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
