"""The verb `gc` of the sweep door: removes what no run needs any more."""

import argparse
import itertools
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from slicedice.store import RunFolder, Store, StoreError
from slicedice.store.attempt import attempts, still_made
from slicedice.store.files import each, is_object, remove_all, size_of

TEMPORARY = re.compile(r"\..+\.[0-9]+(-[0-9a-f]{8})?")
"""What a file is called before it is put in place, by whom writes it."""

HOUR = 3600.0
"""Seconds."""


def collect_garbage(store: Store, options: argparse.Namespace, console: Console) -> int:
    """Removes what no run needs any more, after asking; never a result, a finished model, or what a run goes on from.

    Returns:
      0, or 1 if it was not to be removed.
    """
    if not store.exists():
        raise StoreError(f"There is no store at {store.root}. Name it with --store.")
    found = [(path, why, size_of(path)) for path, why in _garbage(store, console) if _is_inside(store, path, console)]
    for path, why, size in found:
        console.print(f"{size / 2**20:10,.1f} MiB  {path}: {why}", highlight=False, soft_wrap=True)
    console.print(f"{sum(size for *_, size in found) / 2**20:10,.1f} MiB in {len(found)} places.", highlight=False)
    if not found:
        return 0
    if not options.yes:
        if not sys.stdin.isatty():
            console.print("Nothing was removed: --yes does without asking.")
            return 1
        if input("Remove them? [y/N] ").strip().lower() not in ("y", "yes"):
            return 1
    for path, _, _ in found:
        remove_all(path) if path.is_dir() else path.unlink(missing_ok=True)
    return 0


def _garbage(store: Store, console: Console) -> list[tuple[Path, str]]:
    """What is to be removed, each with why; waits a minute where it cannot be told at once whether a run is trained."""
    folders = [store.run(id_) for id_ in store.ids()]
    found = zip(folders, each(lambda folder: list(_garbage_of(folder)), folders, store.root), strict=True)
    some = {folder.path: garbage for folder, garbage in found if garbage}
    made = [one for path in some for one in attempts(path)]
    if any(one.is_claimed and not one.is_certainly_over for one in made):
        console.print("Looking for signs of life, a minute at most.", highlight=False)
    trained = {one.run for one in still_made(made)}
    return [*_half_written(store), *(part for path, garbage in some.items() if path not in trained for part in garbage)]


def _is_inside(store: Store, path: Path, console: Console) -> bool:
    """Whether a path leads to what is in the store; links that someone made may lead out of it, which is told."""
    if is_object(store.root) or path.resolve().is_relative_to(store.root.resolve()):
        return True
    console.print(f"{path} leads out of the store, and is left.", highlight=False, soft_wrap=True)
    return False


def _half_written(store: Store) -> Iterator[tuple[Path, str]]:
    """Files that have waited for an hour to be put in place, which takes seconds; in a bucket there are none."""
    if is_object(store.root):
        return
    with tempfile.TemporaryFile(dir=store.root) as file:  # by the clock that has dated the others
        file.write(b"now")
        file.flush()
        os.fsync(file.fileno())
        now = os.fstat(file.fileno()).st_mtime
    everywhere = ((store.root / room).rglob(".*") for room in ("runs", "data", "tasks", "programs", "launches"))
    for path in sorted(itertools.chain(store.root.glob(".*"), *everywhere)):
        if TEMPORARY.fullmatch(path.name) and path.is_file() and now - path.stat().st_mtime > HOUR:
            yield path, "half-written, by a process that ended"


def _garbage_of(folder: RunFolder) -> Iterator[tuple[Path, str]]:
    """Of a run, if nobody trains it."""
    if folder.foreign():
        return
    if folder.result():
        kept = folder.attempt()
        if kept.has_checkpoint:
            yield kept.checkpoints / "training", "checkpoints of training, and the run has a result"
        for one in folder.attempts():
            if one.number != kept.number:
                yield one.path, "an attempt that another one's result made needless"
        return
    with_checkpoint = [one for one in folder.attempts() if one.has_checkpoint]
    for one in with_checkpoint[2:]:  # should the newest be damaged, the one before it is gone on from
        yield one.checkpoints, "checkpoints that a later attempt has gone on from"
