"""What of a store in a bucket has to lie on this machine to be read: token stores, and files of tasks.

A store in a folder is read where it is. From a bucket, a machine gets each token store once, whole or not at all, into
the user's cache folder, by its fingerprint; what arrived is held against it.
"""

import contextlib
import hashlib
import os
import re
import shutil
from pathlib import Path, PurePosixPath
from typing import Any, cast

from slicedice import cache, data
from slicedice.data import DataError, TokenStore
from slicedice.data.build import SEQIO, request_file
from slicedice.data.inspecting import fingerprint as fingerprint_of
from slicedice.store import Store
from slicedice.store.files import each, is_object, read_json, write_json

META = "meta.json"
"""Of the files of a token store the one that is uploaded last: without it there is none."""

HEX = re.compile("[0-9a-f]{12}")


def prepare_tokens(
    store: Store, source: str, tokenizer: str, heldout_fraction: float, tokens: int, **options: Any
) -> TokenStore:
    """As `data.prepare`; for a bucket on this machine, from which it is uploaded.

    Raises:
      DataError: as `data.prepare` does.
    """
    asked = source, tokenizer, heldout_fraction, tokens
    if not is_object(store.data):
        return data.prepare(source, tokenizer, store.data, heldout_fraction, tokens, **options)
    if source.startswith(SEQIO) and options.get("text") is None:
        return open_tokens(store, *asked)
    made = data.prepare(source, tokenizer, _folder("prepared"), heldout_fraction, tokens, **options)
    target = store.data / made.path.name
    if (read_json(target / META) or {}).get("fingerprint") != made.fingerprint:
        files = [path for path in made.path.iterdir() if path.name != META]
        each(lambda path: cast(Any, target / path.name).upload(path), files, target)
        cast(Any, target / META).upload(made.path / META)
    request, answer = _request(store, *asked), {"store": made.path.name}
    if read_json(request) != answer:
        write_json(request, answer)
    with _whole(made.fingerprint) as (path, partial):  # so that this machine's workers need no download
        if partial:
            shutil.copytree(made.path, partial, copy_function=os.link)
    return TokenStore(path)


def open_tokens(store: Store, source: str, tokenizer: str, heldout_fraction: float, tokens: int) -> TokenStore:
    """As `data.open_store`.

    Raises:
      DataError: as `data.open_store` does, or what arrived from the bucket is damaged.
    """
    if not is_object(store.data):
        return data.open_store(source, tokenizer, store.data, heldout_fraction, tokens)
    request = _request(store, source, tokenizer, heldout_fraction, tokens)
    name = (read_json(request) or {}).get("store")
    if not isinstance(name, str) or not HEX.fullmatch(name):
        tell = f" with `python -m slicedice.data prepare --source {source} ...`" if source.startswith(SEQIO) else ""
        raise DataError(
            f"The tokens of {source} are not in {store.data} with these settings. Prepare them first{tell}."
        )
    return _fetched(store.data / name)


def find_tokens(store: Store, fingerprint: str) -> TokenStore | None:
    """As `data.find_store`."""
    if not is_object(store.data):
        return data.find_store(fingerprint, store.data)
    folders = [path for path in store.data.iterdir() if HEX.fullmatch(path.name)]
    metas = each(lambda folder: read_json(folder / META) or {}, folders, store.data)
    found = (folder for folder, meta in zip(folders, metas, strict=True) if meta.get("fingerprint") == fingerprint)
    return next(map(_fetched, found), None)


def tasks(store: Store) -> Path:
    """The folder on this machine of the store's files of tasks, with all that there are."""
    if not is_object(store.tasks):
        return store.tasks
    here = _folder("tasks") / hashlib.sha256(store.address.encode()).hexdigest()[:12]
    for path in store.tasks.rglob("*"):
        place = here / _below(path, store.tasks)
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            partial = place.with_name(f".{place.name}.{os.getpid()}")
            cast(Any, path).download(partial)
            partial.replace(place)
    return here


def publish_tasks(store: Store, here: Path) -> None:
    """Uploads what `tasks` gave, and what has come to it since."""
    if not is_object(store.tasks):
        return
    there = {_below(path, store.tasks) for path in store.tasks.rglob("*")}
    for path in here.rglob("[!.]*"):
        name = PurePosixPath(path.relative_to(here))
        if path.is_file() and name not in there:
            cast(Any, store.tasks / name).upload(path)


def _below(path: Path, folder: Path) -> PurePosixPath:
    """Where an object is below a folder: a name that was read, which must not lead out of another."""
    parts = path.parts[len(folder.parts) :]
    if not parts or {".", ".."} & set(parts):
        raise DataError(f"{path} is no name for a file. Remove it from the bucket.")
    return PurePosixPath(*parts)


def _fetched(folder: Path) -> TokenStore:
    """The token store of a folder in a bucket, from this machine, to which it is copied first if it is not there."""
    fingerprint = (read_json(folder / META) or {}).get("fingerprint")
    if not isinstance(fingerprint, str) or not HEX.fullmatch(fingerprint):
        raise DataError(f"{folder} is no token store: its {META} is missing or damaged. Remove it, and prepare again.")
    with _whole(fingerprint) as (path, partial):
        if partial:
            partial.mkdir()
            files = [file for file in folder.iterdir() if not file.name.startswith(".")]
            each(lambda file: cast(Any, file).download(partial / file.name), files, folder)
            if fingerprint_of(TokenStore(partial)) != fingerprint:
                raise DataError(
                    f"The tokens in {folder} are not those its fingerprint is of. Remove it, prepare again."
                )
    return TokenStore(path)


@contextlib.contextmanager
def _whole(fingerprint: str):
    """Gives the folder of a token store on this machine, and one to make it in, if it is not there: put in place then.

    Others of this machine that want the same one wait.
    """
    path = _folder("tokens") / fingerprint
    with cache.alone(path):
        if path.exists():
            yield path, None
            return
        for left in path.parent.glob(f".{path.name}.*"):
            shutil.rmtree(left, ignore_errors=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            yield path, partial
            partial.replace(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _folder(name: str) -> Path:
    path = cache.folder() / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def _request(store: Store, source: str, tokenizer: str, heldout_fraction: float, tokens: int) -> Path:
    return store.data / request_file(Path(), source, tokenizer, heldout_fraction, tokens).name
