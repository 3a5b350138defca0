"""The store: runs by id, the token stores and task files they read, the compilation cache they share, their reports."""

import fnmatch
import os
import re
from collections.abc import Container
from pathlib import Path

from slicedice.spec import RunSpec, from_json, run_id, run_name
from slicedice.spec.identity import id_of_json
from slicedice.store.files import StoreError, read_json, write_json
from slicedice.store.run import RunFolder

LAYOUT = 1
"""Of folders and files below the store; a store of another layout is refused, not guessed at."""

ID = re.compile("[0-9a-f]{12}")
"""What runs' folders are called."""


class Store:
    """A folder made by slicedice. Looking into one that is not there yet makes nothing; `create` does.

    Raises:
      StoreError: the folder is not a store, or another version of slicedice wrote it.
    """

    def __init__(self, root: Path | str):
        self.root = Path(root)
        self.data = self.root / "data"
        self.tasks = self.root / "tasks"
        self.compilation_cache = self.root / "compilation_cache"
        self._marker = self.root / "store.json"
        taken = self.root.exists() and (not self.root.is_dir() or any(self.root.glob("[!.]*")))
        if not self.exists():  # asked after looking inside: another process may just have made it
            if taken:
                raise StoreError(
                    f"{self.root} is there already and is not a slicedice store (it has no store.json). "
                    "Name an empty folder, or one that does not exist yet, with --store."
                )
            return
        content = read_json(self._marker) or {}
        if content.get("layout") != LAYOUT:
            raise StoreError(
                f"{self.root} was written by another version of slicedice (layout "
                f"{content.get('layout', 'unreadable')}; this version reads {LAYOUT}). Nothing was changed. Use that "
                "version for it, or name another folder with --store."
            )

    def exists(self) -> bool:
        """Whether the store has been made."""
        return self._marker.exists()

    def create(self) -> "Store":
        """Makes the store if it is not there; returns it."""
        if not self.exists():
            write_json(self._marker, {"layout": LAYOUT})
        return self

    def run(self, spec: RunSpec | str) -> RunFolder:
        """The folder of a run, by spec or id; it may not exist yet."""
        return RunFolder(self.root / "runs" / (spec if isinstance(spec, str) else run_id(spec)))

    def ids(self) -> list[str]:
        """The ids of all runs there are folders of, sorted; folders with other names are none."""
        return sorted(path.name for path in (self.root / "runs").glob("*") if ID.fullmatch(path.name))

    def matching(self, pattern: str) -> list[str]:
        """The ids of runs by id, the beginning of one, name, or a pattern of names or ids; sorted.

        Runs whose spec cannot be read are found by id alone.
        """
        ids = self.ids()
        if found := [id_ for id_ in ids if pattern and id_.startswith(pattern)]:
            return found
        return [id_ for id_ in ids if fnmatch.fnmatch(id_, pattern) or fnmatch.fnmatch(self._name(id_), pattern)]

    def _name(self, run: str) -> str:
        try:
            return run_name(self.read_spec(run))
        except StoreError:
            return ""

    def read_spec(self, run: str) -> RunSpec:
        """Reads the spec of a run back from its folder.

        Raises:
          StoreError: there is no such run, or its spec is damaged, of another schema, or that of another run.
        """
        path = self.run(run).path / "spec.json"
        if not run or not path.parent.exists():  # no name at all would be the folder of all runs
            raise StoreError(
                f"There is no run {run!r} in {self.root}. Name one by its id, as `sweep plan` and `sweep status` list "
                "them."
            )
        try:
            text = path.read_text(encoding="utf-8")
            spec, id_ = from_json(text), id_of_json(text)
        except (OSError, ValueError) as error:
            raise StoreError(f"{path} cannot be read: {error}. Remove the run's folder to train it anew.") from error
        if id_ != run:
            raise StoreError(f"{path} is of the run {id_}: its folder was copied or renamed. Remove it, or name it so.")
        return spec

    def strays(self, known: Container[str]) -> dict[str, str]:
        """What lies among the runs and is none, by name, each with why; `known` and hidden files are passed over."""
        found = {}
        for path in sorted((self.root / "runs").glob("[!.]*")):
            if path.name not in known and (why := _not_a_run(path)):
                found[os.fsencode(path.name).decode(errors="backslashreplace")] = why  # so that it can be printed
        return found

    def report(self, name: str) -> Path:
        """The folder of a grid's report."""
        return self.root / "reports" / name


def _not_a_run(path: Path) -> str:
    """Why what lies there is no run; "" if it may be one."""
    if not ID.fullmatch(path.name):
        return "its name is no run's id, as of a copy made by hand"
    try:
        return RunFolder(path).foreign()
    except OSError:
        return "it cannot be read"
