"""What a source of text is: a name, a cheap identity, and parts that give documents in a fixed order.

A source must never depend on anything but its files: the same files give the same documents in the
same order, on every machine and in every process, because the fingerprint is made from them.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from slicedice.data.account import Account
from slicedice.data.errors import reading


class Document(NamedTuple):
    """One text that is trained on or held out as a whole.

    Attributes:
      domain: the domain whose loss it counts for.
      where: how messages name it: file:line, or the like.
      text: the text itself, not blank.
      group: documents of one group (a module's code and its docstrings) are held out together; "" for a document
        that stands alone, and is held out or not by its own text.
    """

    domain: str
    where: str
    text: str
    group: str = ""


@dataclass(frozen=True)
class Part:
    """A piece of a source that is read from its beginning: a file, or a task.

    name: how messages and progress call it.
    domain: that of all its documents; "" if it has several.
    size: in bytes, for progress; 0 if it is not known.
    read: yields its documents, passing over those that cannot be used, which it reports.
    """

    name: str
    domain: str
    size: int
    read: Callable[[Account], Iterator[Document]]


class Source(Protocol):
    """Where documents come from."""

    @property
    def name(self) -> str:
        """What the user called it, for messages."""
        ...

    def identity(self) -> str:
        """A string that changes when the documents may have changed; made without reading contents."""
        ...

    def parts(self) -> list[Part]:
        """All parts, in an order that depends on nothing but the files."""
        ...

    def shares(self) -> dict[str, float]:
        """How a budget of tokens is divided over domains; empty where there is none to divide."""
        ...


def listing(root: Path, paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Returns (name below root, bytes, modification time in ns) of each path, for an identity."""
    rows = []
    for path in paths:
        with reading(path):
            status: Any = path.stat()
        # Paths of etils, which may be of buckets, have other names for these.
        size, time = (status.st_size, status.st_mtime_ns) if isinstance(path, Path) else (status.length, status.mtime)
        rows.append((path.relative_to(root).as_posix(), size, time))
    return rows
