"""The embedded source: the standard library of the running interpreter, as three domains.

It needs no network and no download: `code` is each module's source without its docstrings,
`docstrings` each module's docstrings, `reference` the language reference that `help()` shows.

It must never read what is not the standard library proper, for two runs on one interpreter must see
one text: installed packages and site customisation are left out, and so are tests, whose fixtures
are broken or random by intent. So are tables written by a program, where a low loss says nothing
about a language model: the about hundred near-identical character maps of `encodings` (1.4 MB, a fifth
of all source; one of them held out would be known by heart from the others), the HTML entities, the
string preparation and case folding tables.
"""

import json
import os
import re
import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

from slicedice.data.account import Account
from slicedice.data.docstrings import split_docstrings
from slicedice.data.errors import DataError, reading
from slicedice.data.sources import Document, Part, listing

_EXTRACTION = 1  # Raise when the same files would give other documents.
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_GENERATED = ("encodings/", "html/entities.py", "re/_casefix.py", "stringprep.py")
_TOPICS = "pydoc_data/"  # Source text of the reference domain, so no part of the code domain.


class Embedded:
    """The standard library of the interpreter that runs this, as a source."""

    name = "embedded"

    def __init__(self) -> None:
        self._root = Path(sysconfig.get_path("stdlib"))
        self._files = sorted(_modules(self._root))
        if not self._files:
            raise DataError(
                f"The embedded text is the source of the standard library, but {self._root} holds no .py "
                "files (a zipped or compiled-only Python?). Use a full installation of Python, or give the "
                "path of your own text instead of 'embedded'."
            )
        self._listing = listing(self._root, self._files)

    def identity(self) -> str:
        """See `Source.identity`."""
        version = [sys.implementation.name, *sys.version_info[:3]]
        return json.dumps(["embedded", _EXTRACTION, version, self._listing])

    def parts(self) -> list[Part]:
        """See `Source.parts`."""
        return [Part("the standard library", "", sum(size for _, size, _ in self._listing), self._documents)]

    def shares(self) -> dict[str, float]:
        """See `Source.shares`: it is too small to be divided."""
        return {}

    def _documents(self, account: Account) -> Iterator[Document]:
        """Yields each module's code and docstrings, which are of one group, and then the reference.

        What this interpreter cannot parse is no part of the text, and so no problem.
        """
        for path in self._files:
            key = path.relative_to(self._root).as_posix()
            if key.startswith((*_GENERATED, _TOPICS)):
                continue
            try:
                with reading(path), tokenize.open(path) as file:
                    parts = split_docstrings(file.read())
            except (SyntaxError, UnicodeDecodeError):
                continue  # A wrong coding line: as unparsable as a syntax error.
            if parts is None:
                continue
            if parts.code.strip():
                yield Document("code", key, parts.code, group=key)
            if text := "\n\n".join(filter(None, parts.docstrings)):
                yield Document("docstrings", key, text, group=key)
        for topic, text in sorted(_distinct(_topics()).items()):
            yield Document("reference", topic, text, group=topic)


def _modules(root: Path) -> Iterator[Path]:
    """Finds the .py files whose top-level name the interpreter calls its own."""
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS]
        if here == root:
            # Beside the library lie things of this machine: build settings, sitecustomize.
            folders[:] = [name for name in folders if name in sys.stdlib_module_names]
            files = [name for name in files if name.removesuffix(".py") in sys.stdlib_module_names]
        yield from (here / name for name in files if name.endswith(".py"))


def _topics() -> dict[str, str]:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError(
            "The embedded text needs the module pydoc_data.topics, which this Python installation lacks. "
            "Install the full standard library, or give the path of your own text instead of 'embedded'."
        ) from error
    return topics


def _distinct(topics: dict[str, str]) -> dict[str, str]:
    """Drops each topic that a longer one repeats for half or more.

    A third of the topics are sections of another ('try' of 'compound', 'customization' of
    'specialnames') under another heading, so equality does not find them, and holding one out while
    training on the other would measure memory.
    """
    paragraphs = {topic: set(re.split(r"\n\s*\n", text.strip())) for topic, text in topics.items()}
    kept: dict[str, str] = {}
    for topic in sorted(topics, key=lambda topic: (-len(topics[topic]), topic)):
        mine = paragraphs[topic]
        if all(2 * _letters(mine & paragraphs[other]) < _letters(mine) for other in kept):
            kept[topic] = topics[topic]
    return kept


def _letters(paragraphs: set[str]) -> int:
    return sum(map(len, paragraphs))
