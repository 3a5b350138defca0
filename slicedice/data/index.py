"""The index of the documents of a token store that is being built: what is repeated, held out, and in which order.

It lives in an SQLite file beside the tokens, so that memory does not grow with the corpus, and a build that was
killed goes on from its last commit. It must never hold text.
"""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from slicedice.data.errors import DataError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS documents (
    number INTEGER PRIMARY KEY, domain TEXT, start INTEGER, tokens INTEGER, bytes INTEGER,
    rank INTEGER, place INTEGER, content BLOB UNIQUE, held INTEGER DEFAULT 0
);
CREATE TABLE IF NOT EXISTS state (one INTEGER PRIMARY KEY CHECK (one = 1), content TEXT);
"""

# Of each domain the lowest ranks, until they have the wanted share of its tokens; its last document never.
_HOLD_OUT = """
CREATE TEMP TABLE ranks AS
    WITH totals AS (SELECT domain, SUM(tokens) AS tokens, COUNT(*) AS documents FROM documents GROUP BY domain),
    summed AS (
        SELECT domain, rank, SUM(tokens) OVER below - tokens AS before, ROW_NUMBER() OVER below AS ordinal
        FROM documents
        WINDOW below AS (PARTITION BY domain ORDER BY rank, number ROWS UNBOUNDED PRECEDING)
    )
    SELECT DISTINCT rank FROM summed JOIN totals USING (domain)
    WHERE before < :fraction * totals.tokens AND ordinal < totals.documents
"""

_COUNTS = """
SELECT domain, held, COUNT(*), SUM(tokens), SUM(bytes) FROM documents GROUP BY domain, held
"""


class Entry(NamedTuple):
    """A tokenised document.

    Attributes:
      domain: name of its domain.
      tokens: how many, end of document included.
      size: bytes of its text as UTF-8.
      rank: 64-bit hash; decides who is held out, and is the same for all documents of a group.
      place: 64-bit hash; sorting by it shuffles documents, and so mixes domains.
      content: digest of the text.
    """

    domain: str
    tokens: int
    size: int
    rank: int
    place: int
    content: bytes


class Counts(NamedTuple):
    """Documents, their tokens and their bytes of text."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0


class Index:
    """The index in `path`, which is made if it is not there.

    Raises:
      OSError: the disk refuses, for instance because it is full.
    """

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, isolation_level="DEFERRED")
        try:
            # Sorting goes to disk beside the index, never to memory.
            self._database.execute("PRAGMA temp_store = FILE")
            self._database.execute("PRAGMA cache_size = -65536")  # KiB
            self._database.executescript(_SCHEMA)
        except sqlite3.Error:
            self._database.close()
            raise

    def state(self) -> dict[str, Any]:
        """What was last committed; empty at the beginning."""
        row = self._database.execute("SELECT content FROM state").fetchone()
        return json.loads(row[0]) if row else {}

    def commit(self, state: dict[str, Any]) -> None:
        """Puts all documents added so far on disk, and with them `state`, which says how far the build is."""
        self._database.execute("INSERT OR REPLACE INTO state VALUES (1, ?)", (json.dumps(state),))
        self._database.commit()

    def add(self, entry: Entry, start: int) -> bool:
        """Adds a document whose tokens begin at `start`; False, and nothing is added, if its text is there already."""
        domain, tokens, size, rank, place, content = entry
        # SQLite's numbers are signed; the order stays.
        row = (domain, start, tokens, size, rank - 2**63, place - 2**63, content)
        columns = "(domain, start, tokens, bytes, rank, place, content)"
        made = self._database.execute(f"INSERT OR IGNORE INTO documents {columns} VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        return made.rowcount == 1

    def hold_out(self, fraction: float, source: str) -> None:
        """Marks the documents that are held out.

        Counting tokens, not documents, gives every domain enough to measure on where a few documents are most of it.
        A rank taken in one domain is taken in all.

        Args:
          fraction: share of each domain's tokens, at least.
          source: what the user called the text, for the message.

        Raises:
          DataError: a domain of one document.
        """
        lonely = self._database.execute("SELECT domain FROM documents GROUP BY domain HAVING COUNT(*) < 2").fetchone()
        if lonely:
            raise DataError(
                f"The domain {lonely[0]!r} of {source} is one document, and needs at least two different ones: "
                "whole documents are held out to measure on. Divide it into more files or records, or take more of it."
            )
        self._database.execute("DROP TABLE IF EXISTS ranks")
        self._database.execute(_HOLD_OUT, {"fraction": fraction})
        self._database.execute("UPDATE documents SET held = rank IN ranks")

    def counts(self, *, held: bool) -> dict[str, Counts]:
        """What is held out, or not, of each domain."""
        rows = self._database.execute(_COUNTS).fetchall()
        empty = {row[0]: Counts() for row in rows}
        return empty | {row[0]: Counts(*row[2:]) for row in rows if row[1] == held}

    def spans(self, domain: str | None) -> Iterator[tuple[int, int]]:
        """(start, tokens) of the held-out documents of a domain, or of all to train on, in their order."""
        chosen, values = ("held = 0", ()) if domain is None else ("held = 1 AND domain = ?", (domain,))
        query = f"SELECT start, tokens FROM documents WHERE {chosen} ORDER BY place, start"
        return self._database.execute(query, values)

    def close(self) -> None:
        """Closes the file; what was not committed is forgotten."""
        self._database.rollback()  # ends what a reader has left open, which would keep the file locked
        self._database.close()
