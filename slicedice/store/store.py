"""The store: runs by id, the token stores and task files they read, launches, programs that failed, reports.

Whatever lies in a store is data: reading it executes nothing. (Compiled programs, which would, are kept elsewhere.)
"""

import dataclasses
import fnmatch
import hashlib
import itertools
import logging
import os
import re
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from slicedice import cache
from slicedice.spec import Execution, RunSpec, from_json, program_key, run_id, run_name
from slicedice.spec.identity import id_of_json
from slicedice.store.files import BucketError, StoreError, as_path, each, is_object, read_json, write_json, write_whole
from slicedice.store.kinds import Kind, RunState
from slicedice.store.launches import Launch, read_launch
from slicedice.store.programs import Programs
from slicedice.store.run import ID, RunFolder
from slicedice.store.seen import Seen

log = logging.getLogger(__name__)

LAYOUT = 2
"""Of folders and files below the store; a store of another layout is refused, not guessed at."""


class Store:
    """A folder made by slicedice. Looking into one that is not there yet makes nothing; `create` does.

    Raises:
      StoreError: the folder is not a store, or another version of slicedice wrote it.
    """

    def __init__(self, root: Path | str):
        self.root = as_path(root)
        self.data = self.root / "data"
        self.tasks = self.root / "tasks"
        self.programs = Programs(self.root / "programs")
        self._marker = self.root / "store.json"
        taken = (self.root.exists() and not self.root.is_dir()) or any(self.root.glob("[!.]*"))
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

    @property
    def address(self) -> str:
        """The store's folder, for a process that works elsewhere."""
        return str(self.root.absolute())

    @property
    def tag(self) -> str:
        """Four digits that tell its launches from another store's, by name; the same by any path to the folder."""
        return hashlib.sha256(str(self.root.resolve()).encode(errors="surrogateescape")).hexdigest()[:4]

    @property
    def here(self) -> Path:
        """For files that others write, and only into folders of this machine: the store's, or for a bucket a cache."""
        if not is_object(self.root):
            return self.root
        return cache.folder() / "stores" / hashlib.sha256(self.address.encode()).hexdigest()[:12]

    @property
    def workers_log(self) -> Path:
        """What workers of this machine write that is no run's."""
        return self.here / "workers.log"

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
        names = dict(zip(ids, each(self._name, ids, self.root), strict=True))
        return [id_ for id_ in ids if fnmatch.fnmatch(id_, pattern) or fnmatch.fnmatch(names[id_], pattern)]

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
        if not run or not path.parent.is_dir():  # no name at all would be the folder of all runs
            raise StoreError(
                f"There is no run {run!r} in {self.root}. Name one by its id, as `sweep plan` and `sweep status` list "
                "them."
            )
        try:
            text = path.read_text(encoding="utf-8")
            spec, id_ = from_json(text), id_of_json(text)
        except BucketError:
            raise
        except (OSError, ValueError) as error:
            mend = "A sweep of it puts the run's folder aside, and trains it anew."
            raise StoreError(f"{path} cannot be read: {error}. {mend}") from error
        if id_ != run:
            raise StoreError(f"{path} is of the run {id_}: its folder was copied or renamed. Remove it, or name it so.")
        return spec

    def look(self, runs: Mapping[str, tuple[RunSpec, Execution]]) -> dict[str, tuple[RunState, dict[str, Any] | None]]:
        """States of runs, by id, each with its result if it has one; what engines have in their queues is not asked."""
        found, paused = {}, self.programs.paused()
        there, look = list(runs), RunFolder.look
        if len(there) > 1 and is_object(self.root):  # a few requests tell of all that are missing, or were read before
            there = [id_ for id_ in self.ids() if id_ in runs]
            look = Seen(self.root / "runs", self.here / "finished").look
        looks = dict(zip(there, each(lambda id_: look(self.run(id_)), there, self.root), strict=True))
        for id_, (spec, execution) in runs.items():
            state, result = looks.get(id_, (RunState(Kind.MISSING), None))
            if state.kind.is_to_train and paused and (pause := paused.get(program_key(spec, execution))):
                state = dataclasses.replace(state, kind=Kind.PAUSED, reason=pause.reason)
            found[id_] = state, result
        return found

    def evaluations(self, runs: Sequence[str]) -> dict[str, dict[str, dict[str, Any] | None]]:
        """What evaluations of finished runs found, by id; see `RunFolder.evaluations`."""
        found, some = {id_: {} for id_ in runs}, list(runs)
        if len(some) > 1 and is_object(self.root):  # one request tells of all that have none
            names = cast(Any, self.root / "runs").versions("*/evaluations/*.json")
            have = {name.partition("/")[0] for name in names}
            some = [id_ for id_ in some if id_ in have]
        return found | dict(zip(some, each(lambda id_: self.run(id_).evaluations(), some, self.root), strict=True))

    def state(self, run: str, spec: RunSpec, execution: Execution) -> RunState:
        """The state of one run; see `look`."""
        return self.look({run: (spec, execution)})[run][0]

    def note_ending(self, run: str) -> None:
        """Notes of a run that has just ended whether its program works; if that failed, the program's others wait.

        Attempts that were interrupted say nothing of the program, though they were so many that the run has crashed.
        """
        spec, folder = self.read_spec(run), self.run(run)
        key, state = program_key(spec, folder.execution()), folder.state()
        if state.kind.has_result:
            self.programs.note_works(key, run)
            return
        made = folder.attempts()
        failed = state.kind.needs_retry and made and (ending := made[0].ending()) and ending.kind.needs_retry
        if failed and self.programs.pause(key, run, f"{run_name(spec)} · {run}", state.reason):
            log.warning("the other runs of the program of %s wait until `sweep retry`", run)

    def forgive(self, run: str, spec: RunSpec, execution: Execution) -> None:
        """Lets a run that failed, or whose program did, be tried again."""
        self.run(run).forgive()
        self.programs.lift(program_key(spec, execution))

    def marks(self, run: str, spec: RunSpec, execution: Execution) -> dict[Path, str]:
        """Files that say why a run is not to be trained, which `create` and `forgive` change, with what is in them."""
        paths = (*self.run(run).marks, self.programs.note(program_key(spec, execution)))
        return {path: path.read_text(encoding="utf-8") if path.exists() else "" for path in paths}

    def put_back(self, marks: Mapping[Path, str]) -> None:
        """Has files be as `marks` found them."""
        for path, content in marks.items():
            write_whole(path, content) if content else path.unlink(missing_ok=True)

    def launch_folder(self, name: str) -> Path:
        """Where what was handed to an engine is."""
        return self.root / "launches" / name

    def next_launch(self, label: str) -> str:
        """A name for a launch that none has yet; those of another store are called otherwise too. `GIVEN` reads it.

        Always the same until it is taken, so that what would be submitted is what is.
        """
        words = re.sub("[^a-z0-9]+", "-", label.lower()).strip("-")
        words = (words if words[:1].isalpha() else f"l-{words}")[:24].strip("-")
        taken = {path.name for path in (self.root / "launches").glob("*")}
        numbers = [int(found[1]) for name in taken if (found := re.search("-([0-9]{1,6})$", name))]
        names = (f"{words}-{self.tag}-{number}" for number in itertools.count(max(numbers, default=0) + 1))
        return next(name for name in names if name not in taken)

    def launches(self) -> list[Launch]:
        """All launches on record, the oldest first; those that cannot be read are none."""
        found = each(_launch, (self.root / "launches").glob("[a-z]*"), self.root)
        return sorted(filter(None, found), key=lambda launch: (launch.number, launch.name))

    def strays(self, known: Container[str]) -> dict[str, str]:
        """What lies among the runs and is none, by name, each with why; `known` and hidden files are passed over."""
        found = {}
        others = [path for path in sorted((self.root / "runs").glob("[!.]*")) if path.name not in known]
        for path, why in zip(others, each(_not_a_run, others, self.root), strict=True):
            if why:
                found[os.fsencode(path.name).decode(errors="backslashreplace")] = why  # so that it can be printed
        return found

    def report(self, name: str) -> Path:
        """The folder of a grid's report."""
        return self.root / "reports" / name


def _launch(folder: Path) -> Launch | None:
    """The launch of a folder; None if it cannot be read."""
    try:
        return read_launch(folder)
    except StoreError:
        return None


def _not_a_run(path: Path) -> str:
    """Why what lies there is no run; "" if it may be one."""
    if not ID.fullmatch(path.name):
        return "its name is no run's id, as of a copy made by hand, or of what was put aside"
    try:
        return RunFolder(path).foreign()
    except BucketError:
        raise
    except OSError:
        return "it cannot be read"
