"""Which programs work, and which failed at their first run, so that their others wait until somebody has looked.

`programs/KEY.json` says that it is paused, and why: by the first run of the program that failed for good, until that is
lifted. `programs/KEY.CODE.works` has the first run that had a result, by what code it was: with other code, the program
may fail at its first run once more.
"""

from dataclasses import dataclass
from pathlib import Path

from slicedice.provenance import code
from slicedice.store.files import create, each, read_json, safe_name


@dataclass(frozen=True)
class Pause:
    """Why runs of a program wait: the first one failed. run: its id. reason: for people."""

    run: str
    reason: str


class Programs:
    """What is known of the programs of a store, by `program_key`."""

    def __init__(self, folder: Path):
        self._folder = folder

    def note_works(self, key: str, run: str) -> None:
        """Notes that a run has a result: no later failure with the same code pauses the others."""
        path = self._works(key)
        if not path.exists():
            create(path, {"works": run})

    def pause(self, key: str, run: str, name: str, reason: str) -> bool:
        """Pauses the program of a run that failed, unless it worked with this code or is paused; returns if it is new.

        Args:
          key: of the program. run: the id of the run. name: that of the run, for people.
          reason: for which it failed.
        """
        told = f"{name} failed, the first run of the same program ({reason}): mend it, then `sweep retry`"
        path = self.note(key)
        if self._works(key).exists() or path.exists():
            return False
        return create(path, {"paused": run, "reason": told})

    def paused(self) -> dict[str, Pause]:
        """The programs that are paused."""
        paths = list(self._folder.glob("*.json"))
        known = zip(paths, each(read_json, paths, self._folder), strict=True)
        return {
            path.stem: Pause(str(what["paused"]), str(what.get("reason")))
            for path, what in known
            if what and "paused" in what
        }

    def lift(self, key: str) -> None:
        """Lets the runs of a program be tried again."""
        if "paused" in (read_json(self.note(key)) or {}):
            self.note(key).unlink(missing_ok=True)

    def note(self, key: str) -> Path:
        """The file that says that a program is paused."""
        return self._folder / f"{key}.json"

    def _works(self, key: str) -> Path:
        return self._folder / f"{key}.{safe_name(code())}.works"
