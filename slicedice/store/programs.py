"""Which programs work, and which failed at their first run, so that their others wait until somebody has looked.

`programs/KEY.json` is written once: by the first run of the program that has a result, or that fails for good.
"""

from dataclasses import dataclass
from pathlib import Path

from slicedice.store.files import create, each, read_json


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
        """Notes that a run has a result: no later failure pauses the others."""
        self._note(key, {"works": run})

    def pause(self, key: str, run: str, name: str, reason: str) -> bool:
        """Pauses the program of a run that failed, unless it worked or is paused already; returns whether it is new.

        Args:
          key: of the program. run: the id of the run. name: that of the run, for people.
          reason: for which it failed.
        """
        told = f"{name} failed, the first run of the same program ({reason}): mend it, then `sweep retry`"
        return self._note(key, {"paused": run, "reason": told})

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
        if "paused" in (read_json(self._folder / f"{key}.json") or {}):
            (self._folder / f"{key}.json").unlink(missing_ok=True)

    def _note(self, key: str, content: dict[str, str]) -> bool:
        path = self._folder / f"{key}.json"
        return not path.exists() and create(path, content)
