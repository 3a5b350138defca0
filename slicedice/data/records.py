"""Reads files of records, JSON lines (plain, gzip or Zstandard) and Parquet, by their field `text`.

It must never pass over a record in silence: what cannot be used is a problem, refused or counted.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from slicedice.data.account import Account
from slicedice.data.errors import reading
from slicedice.data.streams import opened
from slicedice.data.text_files import not_utf8

MAX_LINE = 64 * 1024 * 1024
"""Bytes of a line, at most. A longer one is a file that is not of lines, and would fill the memory."""

_WANTED = 'Each line must be a JSON object with a string field "text", like {"text": "Once upon a time"}.'


def read_jsonl(path: Path, account: Account) -> Iterator[tuple[int, str]]:
    """Yields (line number from 1, text) of a file of JSON lines; lines may be blank.

    Raises:
      DataError: the file cannot be read; and where problems are refused, the first, naming file and line.
    """
    for number, record in read_objects(path, account):
        if not isinstance(text := record.get("text"), str):
            account.add("no text", f'{path}:{number} has no string field "text". {_WANTED}')
        elif not _is_utf8(text):
            half = f"{path}:{number} holds half of a surrogate pair, which UTF-8 cannot express."
            account.add("not UTF-8", f"{half} Write the character whole.")
        else:
            yield number, text


def read_objects(path: Path, account: Account) -> Iterator[tuple[int, dict]]:
    """Yields (line number from 1, object) of a file of JSON lines; lines may be blank.

    Raises:
      DataError: as `read_jsonl` does.
    """
    with opened(path, account) as file:
        for number, raw in enumerate(_lines(file), start=1):
            if raw is None:
                account.add(
                    "line too long",
                    f"{path}:{number} is longer than {MAX_LINE:,} bytes. Put each document into a line of its own, or "
                    "name the file .txt.",
                )
                continue
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                account.add("not UTF-8", not_utf8(error, path, number))
                continue
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                account.add("not JSON", f"{path}:{number} is not JSON ({reason}). Each line must be a JSON object.")
                continue
            if isinstance(record, dict):
                yield number, record
            else:
                account.add("no text", f"{path}:{number} is no JSON object. Each line must be one.")


def read_parquet(path: Path, account: Account) -> Iterator[tuple[int, str]]:
    """Yields (row number from 1, text) of a Parquet file, row group by row group.

    Raises:
      DataError: the file cannot be read; and where problems are refused, the first.
    """
    # Slow to import, and most text is not Parquet.
    import pyarrow
    import pyarrow.parquet

    with reading(path), path.open("rb") as file:
        try:
            table = pyarrow.parquet.ParquetFile(file)
            names = table.schema_arrow.names
            if "text" not in names:
                wrong = f"{path} has the columns {', '.join(names)}, but needs a string column named text."
                account.add("no text", wrong)
                return
            number = 0
            for rows in table.iter_batches(batch_size=1024, columns=["text"]):
                for text in _texts(rows.column(0)):
                    number += 1
                    if isinstance(text, str):
                        yield number, text
                    elif isinstance(text, UnicodeDecodeError):
                        wrong = f"{path}:{number} (row) is not UTF-8: {text.reason}. Write it again."
                        account.add("not UTF-8", wrong)
                    else:
                        wrong = f"{path}:{number} (row): text is {text!r:.40}, and must be a string."
                        account.add("no text", wrong)
        except pyarrow.ArrowException as error:
            account.add("damaged file", f"{path} is not a readable Parquet file: {error}. Write it again.")


def _is_utf8(text: str) -> bool:
    """Whether a text can be written; JSON's escapes can say what cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _texts(column: Any) -> list[Any]:
    """The values of a column; instead of what is not UTF-8, the error that says so."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        values = []
        for value in column:
            try:
                values.append(value.as_py())
            except UnicodeDecodeError as error:
                values.append(error)
        return values


def _lines(file: BinaryIO) -> Iterator[bytes | None]:
    """Yields the lines of a stream; None for one longer than `MAX_LINE`, which is read past and not kept."""
    while line := file.readline(MAX_LINE + 1):
        if len(line) <= MAX_LINE:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE)
        yield None
