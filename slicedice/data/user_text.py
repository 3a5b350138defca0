"""The user's own text as a source: a file, or a folder whose sub-folders are domains.

It must never guess: a file that looks like text but cannot be used is a problem that names it, and
what is left out (other suffixes, names that begin with a dot) is left out by name alone.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from slicedice.data.account import Account
from slicedice.data.errors import DataError, reading
from slicedice.data.records import read_jsonl, read_parquet
from slicedice.data.sources import Document, Part, listing
from slicedice.data.streams import Damaged
from slicedice.data.text_files import read_text_file

MEAN = "macro"
"""What results call the mean over domains, and so no domain."""

_EXTRACTION = 2  # Raise when the same files would give other documents.
READERS = {
    ".txt": read_text_file,
    ".txt.gz": read_text_file,
    ".txt.zst": read_text_file,
    ".jsonl": read_jsonl,
    ".jsonl.gz": read_jsonl,
    ".jsonl.zst": read_jsonl,
    ".json.gz": read_jsonl,
    ".json.zst": read_jsonl,
    ".parquet": read_parquet,
}
"""How files are read, by how their names end."""


class UserText:
    """A file or folder of text.

    A file is one domain, named by its stem. In a folder each sub-folder is a domain, however deep its
    files lie, and the files directly inside form one named after the folder.

    Args:
      path: the file or folder; `~` is the home folder. One with a scheme, as in `gs://bucket/texts`, is read through
        `etils.epath`.

    Raises:
      DataError: nothing there, or nothing that can be read by its suffix.
    """

    def __init__(self, path: str) -> None:
        self.name = path
        given = _remote(path) if "://" in path else Path(path).expanduser()
        with reading(given):
            # Absolute for its name ('.' has none) and to be one identity from everywhere. Links keep their
            # names: caches of downloads link readable names to files that are called by a hash.
            self._path = Path(os.path.abspath(given)) if isinstance(given, Path) else given
            self._path.stat()
            alone = not self._path.is_dir()
            found = [self._path] if alone else list(_walk(self._path))
        self._root = self._path.parent if alone else self._path
        self._files = sorted(file for file in found if suffix(file))
        self.left_out = Counter(file.suffix or file.name for file in found if not suffix(file))
        if not self._files:
            raise DataError(f"{given} holds no text. Files that are read end in {', '.join(READERS)}.")
        self._domains = _domains(self._path, alone, self._files)
        for domain in self._domains.values():
            if not domain.isprintable() or domain.encode(errors="replace").decode() != domain:
                raise DataError(f"{given} has a domain called {domain!r}, which cannot be printed. Rename it.")
        if MEAN in self._domains.values():
            raise DataError(f"{given} has a domain called {MEAN!r}, the name of the mean over domains. Rename it.")
        self._listing = listing(self._root, self._files)

    def identity(self) -> str:
        """See `Source.identity`."""
        return json.dumps(["path", _EXTRACTION, str(self._path), self._listing])

    def parts(self) -> list[Part]:
        """See `Source.parts`: a part is a file."""
        return [
            Part(name, self._domains[file], size, partial(self._documents, file, name))
            for file, (name, size, _) in zip(self._files, self._listing, strict=True)
        ]

    def shares(self) -> dict[str, float]:
        """See `Source.shares`: by the bytes of each domain's files."""
        sizes: Counter[str] = Counter()
        for file, (_, size, _) in zip(self._files, self._listing, strict=True):
            sizes[self._domains[file]] += size
        return dict(sizes)

    def _documents(self, file: Path, name: str, account: Account) -> Iterator[Document]:
        domain, blank = self._domains[file], True
        try:
            for number, text in READERS[suffix(file)](file, account):
                if text.strip():
                    blank = False
                    yield Document(domain, f"{name}:{number}", text)
                else:
                    account.note("blank", f"{file}:{number} is blank.")
        except Damaged as error:
            account.add("damaged file", str(error))
            return
        if blank and not account.skip:
            raise DataError(f"{file}:1 holds no text: it is empty or blank throughout. Fill it or take it away.")


def _remote(path: str) -> Any:
    from etils import epath

    try:
        remote = epath.Path(path)
        remote.exists()
    except (ImportError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read: {error}. Install what reads it, as `pip install gcsfs` for gs://."
        ) from error
    return remote


def _domains(path: Path, alone: bool, files: list[Path]) -> dict[Path, str]:
    """Returns the domain of each file that was found at `path`, which may be the only one."""
    if alone:
        return {file: file.name[: -len(suffix(file))] for file in files}
    below = {file: file.relative_to(path).parts for file in files}
    direct = any(len(parts) == 1 for parts in below.values())
    if direct and any(parts[0] == path.name for parts in below.values() if len(parts) > 1):
        raise DataError(
            f"The files directly in {path} and those in its sub-folder {path.name} would both be the domain "
            f"{path.name!r}. Rename the sub-folder, or move the files into one."
        )
    return {file: parts[0] if len(parts) > 1 else path.name for file, parts in below.items()}


def suffix(file: Path) -> str:
    """Returns the suffix that a file is read by, or "" if it is not read."""
    name = file.name
    return next((suffix for suffix in READERS if name.lower().endswith(suffix)), "")


def _walk(root: Path) -> Iterator[Path]:
    """Finds every file below a folder, through links as well, but no folder twice."""
    if not isinstance(root, Path):
        yield from _walk_remote(root)
        return
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


def _walk_remote(root: Any) -> Iterator[Any]:
    for path in sorted(root.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _walk_remote(path)
        else:
            yield path


def _refuse(error: OSError) -> NoReturn:
    raise error  # os.walk would pass over a folder that cannot be listed, and its text would be missing.
