"""Finds the token store of a text, or builds it so that nobody ever sees half of one.

A store is written in a hidden folder and renamed when it is whole. What a killed process leaves there is gone on
with by the next; meanwhile others that want the same store wait. A small file for each request, `NAME.json`, says
which store answers it, so that workers open it without the text and on machines that do not have it.
"""

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slicedice.data.embedded import Embedded
from slicedice.data.errors import DataError
from slicedice.data.sources import Source
from slicedice.data.store import FORMAT, TokenStore
from slicedice.data.tokenizer import find_tokenizer
from slicedice.data.user_text import UserText
from slicedice.data.writer import Watch, Writer, has_begun

log = logging.getLogger(__name__)

SEQIO = "seqio:"
"""What sources that SeqIO reads begin with, as in `seqio:c4`."""


def prepare(
    source: str,
    tokenizer: str,
    root: Path,
    heldout_fraction: float = 0.05,
    tokens: int = 0,
    *,
    text: Source | None = None,
    skip_bad: bool = False,
    processes: int = 1,
    watch: Watch = lambda progress: None,
) -> TokenStore:
    """Opens the token store of a text, and builds it first if it is not there or the text has changed.

    Args:
      source: "embedded", the path of a file or folder of text, or "seqio:" and the name of a task or mixture. A store
        is opened again by the same spelling of a path.
      tokenizer: "bytes", or the path of a tokenizer's file.
      root: the folder that holds stores; it may be shared by many processes and machines.
      heldout_fraction: share of each domain's tokens to hold out, at least, in whole documents.
      tokens: about how many to take in all, in the shares that domains have of the source; 0 for all there are.
      text: the source itself, where one that SeqIO reads is to be built; otherwise such a store has to be there.
      skip_bad: pass over what cannot be used, and count it, instead of refusing the text.
      processes: that encode, where there is enough text for several to pay.
      watch: called with the progress of building.

    Returns:
      The opened store.

    Raises:
      DataError: text that cannot be used, an unknown tokenizer, a full disk or a damaged store.
    """
    if not 0 < heldout_fraction <= 0.5:
        raise DataError(f"heldout_fraction is {heldout_fraction!r}. Valid is a number above 0, up to 0.5.")
    if tokens < 0:
        raise DataError(f"tokens is {tokens!r}. Valid is a number from 1, or 0 for all there are.")
    request = request_file(Path(root), source, tokenizer, heldout_fraction, tokens)
    coder = find_tokenizer(tokenizer)
    if text is None:
        if source.startswith(SEQIO):
            return _open(request, source)
        text = find_source(source)
    facts = json.dumps([text.identity(), coder.identity, heldout_fraction, tokens, FORMAT])
    path = Path(root) / hashlib.sha256(facts.encode()).hexdigest()[:12]
    try:
        if not path.exists():
            build = {"heldout_fraction": heldout_fraction, "tokens": tokens, "skip_bad": skip_bad}
            with _building(path, request.stem) as folder:
                if folder:
                    Writer(folder, text, coder, **build, processes=processes, watch=watch).write()
        store = TokenStore(path)
        _note(request, path.name)
    except (OSError, sqlite3.Error) as error:
        raise DataError(_refusal(path.parent, source, error)) from error
    return store


def open_store(source: str, tokenizer: str, root: Path, heldout_fraction: float = 0.05, tokens: int = 0) -> TokenStore:
    """Opens the store that `prepare` last made of these, without looking at the text.

    Raises:
      DataError: there is none, or it is damaged.
    """
    return _open(request_file(Path(root), source, tokenizer, heldout_fraction, tokens), source)


def find_store(fingerprint: str, root: Path) -> TokenStore | None:
    """The store of a fingerprint, whatever text it is of; None if there is none that can be read."""
    for path in sorted(Path(root).glob("[!.]*/meta.json")):
        try:
            store = TokenStore(path.parent)
        except DataError:
            continue
        if store.fingerprint == fingerprint:
            return store
    return None


def find_source(source: str, data_dir: str = "", module: str = "") -> Source:
    """The source of a name or path; the other arguments are for `SeqioText`.

    Raises:
      DataError: there is none.
    """
    if source.startswith(SEQIO):
        # TensorFlow comes with it.
        from slicedice.data.seqio_text import SeqioText

        return SeqioText(source.removeprefix(SEQIO), data_dir, module)
    return Embedded() if source == "embedded" else UserText(source)


def request_file(root: Path, source: str, tokenizer: str, heldout_fraction: float, tokens: int) -> Path:
    """The file below `root` that says which store answers a request, as `{"store": NAME}`."""
    facts = json.dumps([source, tokenizer, heldout_fraction, tokens])
    return root / f"{hashlib.sha256(facts.encode()).hexdigest()[:12]}.json"


def _open(request: Path, source: str) -> TokenStore:
    try:
        return TokenStore(request.parent / json.loads(request.read_bytes())["store"])
    except FileNotFoundError:
        tell = f" with `python -m slicedice.data prepare --source {source} ...`"
        raise DataError(
            f"The tokens of {source} are not in {request.parent} with these settings. Prepare them first"
            f"{tell if source.startswith(SEQIO) else ''}."
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{request} is damaged ({error}). Remove it: it is made again from the text.") from error


def _note(request: Path, name: str) -> None:
    """Says which store answers a request, unless that is said already."""
    content = json.dumps({"store": name}).encode()
    try:
        if request.read_bytes() == content:
            return
    except OSError:
        pass
    temporary = request.with_name(f".{request.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(request)


@contextmanager
def _building(path: Path, request: str) -> Iterator[Path | None]:
    """Gives the folder to write the store `path` in, which is renamed afterwards; None if another process was first.

    What was begun for the same request of text that has changed since is removed, unless it is being written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.with_name(f".{path.name}.{request}.building")
    for other in set(path.parent.glob(f".*.{request}.building")) - {folder}:
        with _lock(other.with_name(f".{other.name.split('.')[1]}.lock"), wait=False) as ours:
            if ours:
                shutil.rmtree(other, ignore_errors=True)
    with _lock(path.with_name(f".{path.name}.lock"), wait=True):
        if path.exists():
            yield None
            return
        folder.mkdir(exist_ok=True)
        try:
            yield folder
        except DataError:
            if not has_begun(folder):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        folder.rename(path)


@contextmanager
def _lock(path: Path, *, wait: bool) -> Iterator[bool]:
    """Holds a lock file, which is removed afterwards; without waiting, yields False if another process holds it."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                yield False
                return
            log.warning("another process prepares this text; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)  # let go of by the system when its holder dies, however it dies
        yield True
        # One that waits on it, or makes it anew, finds the store that was made meanwhile.
        path.unlink(missing_ok=True)


def _refusal(root: Path, source: str, error: OSError | sqlite3.Error) -> str:
    if getattr(error, "sqlite_errorname", "") in ("SQLITE_NOTADB", "SQLITE_CORRUPT"):
        return (
            f"What an earlier preparation of {source} left in {root} is damaged ({error}). Remove the folders there "
            "whose names end in .building, and run the command again."
        )
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    if full or getattr(error, "sqlite_errorname", "") == "SQLITE_FULL":
        return (
            f"The disk is full: the token store of {source} could not be written to {root}. Free about three times the "
            "size of its tokens there, and the same command goes on where it was; or choose another data folder."
        )
    return (
        f"The token store of {source} could not be written to {root}: {getattr(error, 'strerror', None) or error}. "
        "Choose a folder for data in which you may create files."
    )
