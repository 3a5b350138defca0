"""Workers of the launcher of this machine that train nothing, and die when told to."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from slicedice.launching import Job, WorkUnit
from slicedice.spec import SCHEMA, Execution, RunSpec, run_id
from slicedice.store import Kind, RunState, Store
from slicedice.store.holder import Holder

# Does with each run as behaviour.json beside it says, mostly after two steps.
WORKER = """#!{python} -IS
import json, os, signal, sys, time
here = os.path.dirname(sys.argv[0])
arguments = dict(zip(sys.argv[3::2], sys.argv[4::2]))
store = arguments["--store"]

def note(word, **more):
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    more = dict(word=word, pid=os.getpid(), argv=sys.argv[1:], cores=cores, test=os.environ.get("SLOT"), **more)
    with open(os.path.join(here, "notes.jsonl"), "a") as file:
        file.write(json.dumps(more) + chr(10))

def write(folder, name, *lines):
    with open(os.path.join(folder, name), "w") as file:
        file.writelines(json.dumps(line) + chr(10) for line in lines)

def started():
    with open("/proc/self/stat") as file:
        return int(file.read().rpartition(")")[2].split()[19])

note("started")
with open(os.path.join(here, "behaviour.json")) as file:
    behaviour = json.load(file)

def given():
    for line in iter(sys.stdin.readline, ""):
        note("line", runs=line.split())
        yield from line.partition("/")[0].split()

for run in given():
    what = behaviour.get(run, "done")
    note("given", run=run)
    if what in ("die early", "exit early"):
        os.kill(os.getpid(), signal.SIGKILL) if what == "die early" else sys.exit(3)
    number = len(os.listdir(os.path.join(store, "runs", run, "attempts"))) + 1
    folder = os.path.join(store, "runs", run, "attempts", str(number))
    os.mkdir(folder)
    holder = dict(host="h", machine=behaviour["machine"], pid=os.getpid(), started=started())
    write(folder, "claim.json", dict(holder=holder, count=0, at=time.time()))
    write(folder, "metrics.jsonl", dict(step=0), dict(step=1))
    if what == "beside" and number == 1:  # it trains together with the next one
        continue
    if what == "killed" or what == "killed_once" and number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "aborts":
        signal.signal(signal.SIGABRT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGABRT)
    if what == "told" and number == 1:
        write(folder, "end.json", dict(kind="preempted", reason="told", told=True))
        print(run, "preempted", flush=True)
        time.sleep(0.1)
        continue
    if isinstance(what, int):
        print("I end with", what, file=sys.stderr, flush=True)
        sys.exit(what)
    if what in ("stuck", "deaf"):
        end = sys.exit if what == "stuck" else id
        signal.signal(signal.SIGTERM, lambda *_: (note("stopped", run=run), end(0)))
        note("stuck", run=run)
        while True:
            time.sleep(0.01)
    if what == "leave" and number == 1:
        write(folder, "end.json", dict(kind="preempted", reason="asked to"))
        print(run, "preempted", flush=True)
        sys.exit(0)
    if what == "crashed":
        write(folder, "end.json", dict(kind="crashed", reason="its own"))
    else:
        write(os.path.join(store, "runs", run), "result.json", dict(schema=behaviour["schema"], kind="done", steps=6))
        write(folder, "end.json", dict(kind="done", reason=""))
    if what == "talkative":
        print("a library says hello\\nand", end="")  # which leaves with the next line, in one write
    if what == "halting":
        print(run[:5], end="", flush=True)  # a line in two pieces
        time.sleep(0.2)
        run = run[5:]
    print(run, what, flush=True)
note("ended")
"""


class Pool:
    """A store of runs, and workers that do with each as they are told."""

    def __init__(self, folder: Path, store: Store, ids: list[str], local: Any):
        self.folder, self.store, self.ids, self.local = folder, store, ids, local
        self.launcher = local.get_launcher()
        self.watched = 0

    def launch(
        self, *ends: str | int, watch: Callable[[], None] | None = None, units: Sequence[Sequence[int]] = ()
    ) -> None:
        """Launches a run for each of `ends`, which says how it ends, in a unit of its own or in `units`, by number."""
        behaviour = {"schema": SCHEMA, "machine": Holder.here().machine, **dict(zip(self.ids, ends, strict=False))}
        (self.folder / "behaviour.json").write_text(json.dumps(behaviour))

        def count() -> None:
            self.watched += 1

        units = units or [[i] for i in range(len(ends))]
        made = tuple(WorkUnit(tuple(self.ids[i] for i in unit)) for unit in units)
        self.launcher.attend(Job("mine-1", self.store, made, 0, 7, 1, watch=watch or count))

    @property
    def states(self) -> list[RunState]:
        return [self.store.run(id_).state() for id_ in self.ids]

    @property
    def kinds(self) -> list[Kind]:
        return [state.kind for state in self.states]

    def notes(self, word: str) -> list[dict[str, Any]]:
        path = self.folder / "notes.jsonl"
        notes = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [note for note in notes if note["word"] == word]

    def all_gone(self) -> bool:
        """Whether no worker is left, not even as a zombie."""
        for note in self.notes("started"):
            try:
                os.kill(note["pid"], 0)
            except ProcessLookupError:
                continue
            return False
        return True


def add(store: Store, run: tuple[RunSpec, Execution]) -> str:
    """Adds a run to a store; returns its id."""
    store.run(run[0]).create(*run)
    (store.run(run[0]).path / "attempts").mkdir()
    return run_id(run[0])
