"""The user's own text as a source: a file, or a folder whose sub-folders are domains.

It must never guess: a file that looks like text but cannot be used is an error that names it, and
what is left out (other suffixes, names that begin with a dot) is left out by name alone.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from slicedice.data.errors import DataError, reading
from slicedice.data.records import read_jsonl, read_parquet
from slicedice.data.sources import Document, listing
from slicedice.data.text_files import read_text_file

MEAN = "macro"
"""What results call the mean over domains, and so no domain."""

_EXTRACTION = 1  # Raise when the same files would give other documents.
_READERS = {
    ".txt": read_text_file,
    ".jsonl": read_jsonl,
    ".jsonl.gz": read_jsonl,
    ".jsonl.zst": read_jsonl,
    ".parquet": read_parquet,
}


class UserText:
    """A file or folder of text.

    A file is one domain, named by its stem. In a folder each sub-folder is a domain, however deep its
    files lie, and the files directly inside form one named after the folder.

    Args:
      path: the file or folder; `~` is the home folder.

    Raises:
      DataError: nothing there, or nothing that can be read by its suffix.
    """

    def __init__(self, path: str) -> None:
        self.name = path
        given = Path(path).expanduser()
        with reading(given):
            # Absolute for its name ('.' has none) and to be one identity from everywhere. Links keep their
            # names: caches of downloads link readable names to files that are called by a hash.
            self._path = Path(os.path.abspath(given))
            self._path.stat()
            found = [self._path] if self._path.is_file() else list(_walk(self._path))
        self._root = self._path.parent if self._path.is_file() else self._path
        self._files = sorted(file for file in found if _suffix(file))
        if not self._files:
            raise DataError(f"{given} holds no text. Files that are read end in {', '.join(_READERS)}.")
        self._domains = _domains(self._path, self._files)
        if MEAN in self._domains.values():
            raise DataError(f"{given} has a domain called {MEAN!r}, the name of the mean over domains. Rename it.")

    def identity(self) -> str:
        """See `Source.identity`."""
        return json.dumps(["path", _EXTRACTION, str(self._path), listing(self._root, self._files)])

    def documents(self) -> Iterator[Document]:
        """See `Source.documents`. Keys are file:number, with the line, row or piece of the document.

        Raises:
          DataError: a file that cannot be read, or in which every document is blank.
        """
        for file in self._files:
            name, blank = file.relative_to(self._root).as_posix(), True
            for number, text in _READERS[_suffix(file)](file):
                if text.strip():
                    blank = False
                    yield Document(self._domains[file], f"{name}:{number}", text)
            if blank:
                raise DataError(f"{file}:1 holds no text: it is empty or blank throughout. Fill it or take it away.")


def _domains(path: Path, files: list[Path]) -> dict[Path, str]:
    """Returns the domain of each file that was found at `path`."""
    if path.is_file():
        return {file: file.name[: -len(_suffix(file))] for file in files}
    below = {file: file.relative_to(path).parts for file in files}
    direct = any(len(parts) == 1 for parts in below.values())
    if direct and any(parts[0] == path.name for parts in below.values() if len(parts) > 1):
        raise DataError(
            f"The files directly in {path} and those in its sub-folder {path.name} would both be the domain "
            f"{path.name!r}. Rename the sub-folder, or move the files into one."
        )
    return {file: parts[0] if len(parts) > 1 else path.name for file, parts in below.items()}


def _suffix(file: Path) -> str:
    """Returns the suffix that a file is read by, or "" if it is not read."""
    name = file.name
    return next((suffix for suffix in _READERS if name.lower().endswith(suffix)), "")


def _walk(root: Path) -> Iterator[Path]:
    """Finds every file below a folder, through links as well, but no folder twice."""
    seen = {os.path.realpath(root)}
    for folder, folders, files in os.walk(root, followlinks=True, onerror=_refuse):
        fresh = []
        for name in sorted(folders):
            real = os.path.realpath(os.path.join(folder, name))
            if not name.startswith(".") and real not in seen:
                seen.add(real)
                fresh.append(name)
        folders[:] = fresh
        yield from (Path(folder, name) for name in files if not name.startswith("."))


def _refuse(error: OSError) -> NoReturn:
    raise error  # os.walk would pass over a folder that cannot be listed, and its text would be missing.
