"""Files as streams of bytes: local or remote, plain, gzip or Zstandard.

Damage must always surface: a compressed file that was cut short is never taken for a whole one.
"""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from slicedice.data.account import Account
from slicedice.data.errors import DataError, reading


class Damaged(DataError):
    """A compressed file that cannot be decompressed to its end."""


@contextmanager
def opened(path: Path, account: Account) -> Iterator[BinaryIO]:
    """Opens a file for reading, decompressed by its suffix; `path` may be an `etils.epath.Path` of a bucket.

    Raises:
      DataError: the file cannot be read.
      Damaged: it is damaged or incomplete; what came before the damage has been given out by then.
    """
    with reading(path):
        try:
            with path.open("rb") as file:
                account.tell = file.tell
                yield _decompressed(path.suffix.lower(), file)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise Damaged(f"{path} is damaged or incomplete: {error}. Copy or compress it again.") from error


def _decompressed(suffix: str, file: Any) -> BinaryIO:
    if suffix == ".gz":
        return gzip.GzipFile(fileobj=file)  # pyright: ignore[reportReturnType]
    if suffix == ".zst":
        return io.BufferedReader(_Frames(file), 256 * 1024)
    return file


class _Frames(io.RawIOBase):
    """Decompresses Zstandard frame by frame: the package's own reader takes a truncated file for a whole one."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._frame, self._ready, self._rest = file, None, b"", b""

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills a buffer; 0 at the end of the last frame."""
        while not self._ready:
            if not self._decompress():
                return 0
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _decompress(self) -> bool:
        """Decompresses the next block; False at the end."""
        import zstandard

        block = self._rest or self._file.read(64 * 1024)
        self._rest = b""
        if not block:
            if self._frame:
                raise EOFError("it ends within a frame")
            return False
        self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
        try:
            self._ready = self._frame.decompress(block)
        except zstandard.ZstdError as error:
            raise EOFError(str(error)) from error
        if self._frame.eof:
            self._rest, self._frame = self._frame.unused_data, None
        return True
