"""Writing files so that a reader, or a power cut, meets the whole file or none of it."""

import errno
import hashlib
import json
import os
import re
import secrets
from pathlib import Path
from typing import Any

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


def write_whole(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Replaces `path` by `content`, text as UTF-8, at once, and if it is to be durable only after it is on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
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
    temporary = _beside(path)
    write_json(temporary, content)
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
