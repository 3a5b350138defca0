"""Reads files of records, `.jsonl` (plain, gzip or Zstandard) and `.parquet`, by their field `text`.

It must never pass over a record it cannot use: a text missing from training is found out by nobody.
Only a record whose text is blank is left out, as it holds nothing to learn.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from slicedice.data.errors import DataError, reading
from slicedice.data.text_files import decode

_WANTED = 'Each line must be a JSON object with a string field "text", like {"text": "Once upon a time"}.'


def read_jsonl(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (line number from 1, text) of a `.jsonl`, `.jsonl.gz` or `.jsonl.zst` file; lines may be blank.

    Raises:
      DataError: naming file and line: not UTF-8, not JSON, no `text`, or a damaged compressed file.
    """
    with reading(path), path.open("rb") as file:
        for number, raw in enumerate(_lines(path, file), start=1):
            line = decode(raw, path, number, first=number == 1)
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}:{number} is not JSON ({error.msg}). {_WANTED}") from error
            if not isinstance(record, dict) or not isinstance(record.get("text"), str):
                raise DataError(f'{path}:{number} has no string field "text". {_WANTED}')
            yield number, record["text"]


def read_parquet(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (row number from 1, text) of a Parquet file, row group by row group.

    Raises:
      DataError: not a Parquet file, no column `text`, a row whose text is not a string.
    """
    # Slow to import, and most text is not Parquet.
    import pyarrow
    import pyarrow.parquet

    with reading(path), path.open("rb") as file:
        try:
            table = pyarrow.parquet.ParquetFile(file)
            names = table.schema_arrow.names
            if "text" not in names:
                raise DataError(f"{path} has the columns {', '.join(names)}, but needs a string column named text.")
            number = 0
            for rows in table.iter_batches(batch_size=1024, columns=["text"]):
                for text in rows.column(0).to_pylist():
                    number += 1
                    if not isinstance(text, str):
                        raise DataError(f"{path}:{number} (row): text is {text!r:.40}, and must be a string.")
                    yield number, text
        except (pyarrow.ArrowException, UnicodeDecodeError) as error:
            raise DataError(f"{path} is not a readable Parquet file: {error}. Write it again.") from error


def _lines(path: Path, file: BinaryIO) -> Iterator[bytes]:
    """Yields the lines of a plain or compressed file; damage becomes a DataError."""
    try:
        if path.suffix.lower() == ".gz":
            yield from gzip.GzipFile(fileobj=file)
        elif path.suffix.lower() == ".zst":
            yield from _zstandard_lines(path, file)
        else:
            yield from file
    except (EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged or incomplete: {error}. Copy or compress it again.") from error


def _zstandard_lines(path: Path, file: BinaryIO) -> Iterator[bytes]:
    # By frames, and not through the package's stream reader, which takes a truncated file for a whole one.
    import zstandard

    frame, line = None, b""
    while block := file.read(64 * 1024):
        while block:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            try:
                *lines, line = (line + frame.decompress(block)).split(b"\n")
            except zstandard.ZstdError as error:
                raise EOFError(str(error)) from error
            yield from lines
            block, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame:
        raise EOFError("it ends within a frame")
    if line:
        yield line
