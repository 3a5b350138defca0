"""Reads `.txt` files: one document, or, when the file is large, pieces cut where the text pauses.

It must never lose or repeat a byte: the pieces of a file, put together, are the file (but for a byte
order mark, and pieces that are blank). Files are streamed, so their size is not bounded by memory.
"""

from collections.abc import Iterator
from pathlib import Path

from slicedice.data.account import Account
from slicedice.data.streams import opened

PIECE_BYTES = 64 * 1024


def read_text_file(path: Path, account: Account) -> Iterator[tuple[int, str]]:
    """Yields (number from 1, text) of each document in a UTF-8 text file.

    A file of up to 64 KiB is one document. A larger one is cut into pieces of at most that, after a
    blank line, else after a line, else between two characters, so that part of it can be held out.

    Raises:
      DataError: the file cannot be read; where problems are refused, also a piece that is not UTF-8.
    """
    line = 1
    for number, raw in enumerate(_pieces(path, account), start=1):
        try:
            yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            account.add("not UTF-8", not_utf8(error, path, line))
        line += raw.count(b"\n")


def _pieces(path: Path, account: Account) -> Iterator[bytes]:
    with opened(path, account) as file:
        buffer = b""
        while block := file.read(PIECE_BYTES):
            buffer += block
            while len(buffer) > PIECE_BYTES:
                end = _pause(buffer)
                yield buffer[:end]
                buffer = buffer[end:]
    yield buffer


def not_utf8(error: UnicodeDecodeError, path: Path, line: int) -> str:
    """What to say of bytes that begin at `line` of a file and are not UTF-8; names the line of the first wrong byte."""
    wrong = line + error.object.count(b"\n", 0, error.start)
    return (
        f"{path}:{wrong} is not UTF-8 (byte 0x{error.object[error.start]:02x}). Text must be UTF-8; "
        "convert the file, for instance with `iconv -f latin1 -t utf-8`."
    )


def _pause(buffer: bytes) -> int:
    """Returns where to end a piece: in the second half of the limit, so that no piece is a crumb."""
    half = PIECE_BYTES // 2
    end = PIECE_BYTES
    for pause in (b"\n\n", b"\n\r\n", b"\n"):
        if (at := buffer.rfind(pause, half, PIECE_BYTES)) >= 0:
            end = at + len(pause)
            break
    # In UTF-8 the bytes 10xxxxxx continue a character. It has at most three of them: not UTF-8 otherwise.
    for _ in range(3):
        if buffer[end] & 0xC0 == 0x80:
            end -= 1
    return end
