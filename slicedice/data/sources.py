"""What a source of text is: a name, a cheap identity, and documents in a fixed order.

A source must never depend on anything but its files: the same files give the same documents in the
same order, on every machine and in every process, because the fingerprint is made from them.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from slicedice.data.errors import reading


class Document(NamedTuple):
    """One text that is trained on or held out as a whole.

    Attributes:
      domain: the domain whose loss it counts for.
      key: what the hold-out is decided by, unique within the domain. Documents of two domains with
        the same key (a module's code and its docstrings) are always on the same side.
      text: the text itself, not empty.
    """

    domain: str
    key: str
    text: str


class Source(Protocol):
    """Where documents come from."""

    @property
    def name(self) -> str:
        """What the user called it, for messages."""
        ...

    def identity(self) -> str:
        """A string that changes when the documents may have changed; made without reading contents."""
        ...

    def documents(self) -> Iterator[Document]:
        """Yields every document, in an order that depends on nothing but the files."""
        ...


def listing(root: Path, paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Returns (name below root, bytes, modification time in ns) of each path, for an identity."""
    rows = []
    for path in paths:
        with reading(path):
            status = path.stat()
        rows.append((path.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns))
    return rows
