"""The one exception of the data room.

It must never carry a traceback's worth of detail: the doors print `str(error)` and stop, so the
message is one paragraph that names the file (and line), the problem, and what would be valid.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class DataError(ValueError):
    """Text, a store or a request for tokens that cannot be used; the message says why and what can."""


class Unusable(DataError):
    """A document that cannot be used, where such are refused."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns the operating system's refusal to read `path` into a `DataError` that names it.

    Only reads may happen inside: a failing write (a full disk) is another paragraph, told by `build`.
    """
    try:
        yield
    except OSError as error:
        name, reason = error.filename or path, error.strerror or error
        raise DataError(f"{name} cannot be read: {reason}. Give one that is readable.") from error
