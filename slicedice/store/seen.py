"""What this machine has read of finished runs in a bucket.

A result is written once, and a listing says whether it still is the one that was read: then nothing is asked for it.
"""

import contextlib
from pathlib import Path
from typing import Any, cast

from slicedice.spec import SCHEMA
from slicedice.store.claim import fault
from slicedice.store.files import read_json, write_json
from slicedice.store.kinds import Kind, RunState
from slicedice.store.run import RunFolder

FILES = "spec.json", "result.json"
"""By which a run is known to be finished, and how."""


class Seen:
    """Looks at runs, all in one bucket, as they are when it is made.

    Args:
      runs: the folder of all runs.
      place: a folder of this machine, for what was read.
    """

    def __init__(self, runs: Path, place: Path):
        self._versions = [cast(Any, runs).versions(f"*/{name}") for name in FILES]
        self._place = place

    def look(self, folder: RunFolder) -> tuple[RunState, dict[str, Any] | None]:
        """What `RunFolder.look` says."""
        id_, place = folder.path.name, self._place / f"{folder.path.name}.json"
        versions = [found.get(f"{id_}/{name}") for found, name in zip(self._versions, FILES, strict=True)]
        if None in versions:
            return folder.look()
        known, of = read_json(place) or {}, [SCHEMA, *versions]
        result = known.get("result")
        if known.get("of") == of and isinstance(result, dict) and not fault(result):
            return RunState(Kind(result["kind"]), result["steps"]), result
        state, result = folder.look()
        if result:
            with contextlib.suppress(OSError):  # it saves time, and no more
                write_json(place, {"of": of, "result": result}, durable=False)
        return state, result
