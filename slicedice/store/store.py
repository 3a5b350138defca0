"""The store: runs by id, the token stores they read, the compilation cache they share, their reports."""

from pathlib import Path

from slicedice.spec import RunSpec, from_json, run_id
from slicedice.store.files import read_json, write_json
from slicedice.store.run import RunFolder

LAYOUT = 1
"""Of folders and files below the store; a store of another layout is refused, not guessed at."""


class StoreError(RuntimeError):
    """A store that cannot be used, and why."""


class Store:
    """A folder made by slicedice. Looking into one that is not there yet makes nothing; `create` does.

    Raises:
      StoreError: the folder is not a store, or another version of slicedice wrote it.
    """

    def __init__(self, root: Path | str):
        self.root = Path(root)
        self.data = self.root / "data"
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

    def read_spec(self, run: str) -> RunSpec:
        """Reads the spec of a run back from its folder.

        Raises:
          StoreError: there is no such run, or its spec is damaged or of another schema.
        """
        path = self.run(run).path / "spec.json"
        try:
            return from_json(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError) as error:
            raise StoreError(f"{path} cannot be read: {error}. Remove the run's folder to train it anew.") from error

    def report(self, name: str) -> Path:
        """The folder of a grid's report."""
        return self.root / "reports" / name
