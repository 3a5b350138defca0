"""The verb `gc` of the sweep door: removes what no run needs any more."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from slicedice.store import RunFolder, Store, StoreError
from slicedice.store.files import each, remove_all, size_of


def collect_garbage(store: Store, options: argparse.Namespace, console: Console) -> int:
    """Removes what no run needs any more, after asking; never a result, a finished model, or what a run goes on from.

    Returns:
      0, or 1 if it was not to be removed.
    """
    if not store.exists():
        raise StoreError(f"There is no store at {store.root}. Name it with --store.")
    found = [(path, why, size_of(path)) for path, why in _garbage(store)]
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


def _garbage(store: Store) -> Iterator[tuple[Path, str]]:
    for path in sorted(store.root.glob(".*.[0-9]*")):
        yield path, "half-written, by a process that ended"
    folders = [store.run(id_) for id_ in store.ids()]
    for found in each(lambda folder: list(_garbage_of(folder)), folders, store.root):
        yield from found


def _garbage_of(folder: RunFolder) -> Iterator[tuple[Path, str]]:
    """Of a run, unless somebody trains it now."""
    if folder.foreign() or any(one.seems_alive() for one in folder.attempts()):
        return
    for path in sorted(folder.path.rglob(".*.[0-9]*")):
        yield path, "half-written, by a process that ended"
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
