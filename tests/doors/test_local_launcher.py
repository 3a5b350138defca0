"""The launcher of this machine, with workers that train nothing, and die when told to."""

import gc
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slicedice import files
from slicedice.faults import DISK_FULL
from slicedice.launching import Job, LaunchError, Phase, WorkUnit
from slicedice.machine import Slot
from slicedice.spec import SCHEMA, Execution, RunSpec, run_id
from slicedice.store import Kind, Launch, RunState, Store
from slicedice.store.holder import Holder
from slicedice.store.kinds import MOST_FRUITLESS

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


class Bench:
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


@pytest.fixture
def bench(tmp_path: Path, tiny, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Two slots and five runs."""
    worker = tmp_path / "worker"
    worker.write_text(WORKER.replace("{python}", sys.executable))
    worker.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(worker))
    store = Store(tmp_path / "store").create()
    ids = [add(store, tiny({"seed": seed})) for seed in range(5)]
    local = files.load("launch", "local")
    monkeypatch.setattr(local, "slots", lambda *_: [Slot(frozenset(), {"SLOT": str(i)}) for i in range(2)])
    return Bench(tmp_path, store, ids, local)


def test_every_run_is_trained_once_by_as_many_workers_as_there_are_slots(bench: Bench):
    bench.launch(*["done"] * 5)
    assert bench.kinds == [Kind.DONE] * 5
    assert sorted(note["run"] for note in bench.notes("given")) == sorted(bench.ids)
    assert len(bench.notes("started")) == 2
    assert len(bench.notes("ended")) == 2
    assert bench.watched > 0
    assert bench.all_gone()


def test_workers_in_which_libraries_talk_are_understood(bench: Bench):
    bench.launch("talkative", "halting", "halting", "talkative", "talkative")
    assert bench.kinds == [Kind.DONE] * 5
    assert len(bench.notes("started")) == 2


def test_no_more_workers_are_started_than_there_are_runs(bench: Bench):
    bench.launch("done")
    assert bench.kinds == [Kind.DONE] + [Kind.MISSING] * 4
    assert len(bench.notes("started")) == 1


def test_nothing_to_train_is_no_worker(bench: Bench):
    bench.launch()
    assert bench.notes("started") == []


def test_workers_are_started_as_the_protocol_says(bench: Bench):
    bench.launch("done", "done", "done")
    for note in bench.notes("started"):
        expected = ["-m", "slicedice.work", "--store", bench.store.address, "--parent", str(os.getpid())]
        assert note["argv"] == expected
    assert {note["test"] for note in bench.notes("started")} == {"0", "1"}


def test_each_worker_keeps_to_a_program_while_there_are_others(bench: Bench):
    """So that each is compiled by one of them; whoever has none left helps out."""
    queue = bench.local.Queue([bench.local.Part(program, [str(i)]) for i, program in enumerate("aabbcc")])
    asked = [("", "0"), ("", "2"), ("a", "1"), ("a", "4"), ("b", "3"), ("b", "5")]
    assert [queue.next(program).runs for program, _ in asked] == [[run] for _, run in asked]
    assert not queue


def test_on_accelerators_a_worker_is_told_what_may_come_of_another_program(bench: Bench, tiny, monkeypatch):
    """So that it compiles that while it trains; on CPU that would take its cores."""
    monkeypatch.setattr(bench.local, "slots", lambda *_: [Slot(frozenset(), {})])
    other = [add(bench.store, tiny({"seed": seed, "model.layers": 3})) for seed in range(2)]
    bench.ids[:] = [bench.ids[0], other[0], bench.ids[1], other[1]]
    bench.launch(*["done"] * 4)
    assert [note["runs"] for note in bench.notes("line")] == [[bench.ids[i]] for i in (0, 2, 1, 3)]
    bench.ids[:] = [add(bench.store, tiny({"seed": seed, "model.layers": n})) for n in (4, 5) for seed in range(2)]
    monkeypatch.setattr(bench.local, "has_accelerator", lambda: True)
    bench.launch(*["done"] * 4)
    a, b, c, d = bench.ids
    assert [note["runs"] for note in bench.notes("line")][4:] == [[a, b, "/", c, d], [c, d]]
    assert bench.kinds == [Kind.DONE] * 4


def test_what_may_come_next_is_first_what_nobody_has_compiled(bench: Bench):
    part = bench.local.Part
    queue = bench.local.Queue([part(program, [str(i)]) for i, program in enumerate("aabbcc")])
    first, second = queue.next(""), queue.next("")
    assert (first.program, second.program) == ("a", "b")
    assert queue.after(first).runs == queue.after(second).runs == ["4"]  # of c
    queue.next("c")
    assert queue.after(first).runs == ["3"]  # someone has begun with c too, and b comes first
    while queue:
        last = queue.next("c")
    assert queue.after(last) is None


def test_runs_that_are_trained_at_once_are_given_together(bench: Bench, tiny):
    bench.ids[:] = [add(bench.store, tiny({"seed": seed, "execution.lanes": 2})) for seed in range(10, 15)]
    bench.launch(*["done"] * 5)  # a unit each, as a sweep has it
    assert bench.kinds == [Kind.DONE] * 5
    lines = sorted(tuple(bench.ids.index(run) for run in note["runs"]) for note in bench.notes("line"))
    assert lines == [(0, 1), (2, 3), (4,)]


def test_on_accelerators_each_worker_is_given_its_share_of_a_program(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench.local, "has_accelerator", lambda: True)
    bench.launch(*["done"] * 5)
    lines = sorted(tuple(bench.ids.index(run) for run in note["runs"]) for note in bench.notes("line"))
    assert lines == [(0, 1, 2), (3, 4)]


@pytest.mark.parametrize(("workers", "sizes"), [(2, [2, 2, 3]), (3, [2, 2, 3]), (6, [1, 1, 1, 1, 1, 2]), (20, [1] * 7)])
def test_a_program_is_split_where_workers_would_have_none(
    workers: int, sizes: list[int], bench: Bench, tiny, monkeypatch
):
    """Otherwise its runs stay together, since those of several programs fill no lanes."""
    monkeypatch.setattr(bench.local, "has_accelerator", lambda: True)
    monkeypatch.setattr(bench.local, "slots", lambda *_: [Slot(frozenset(), {})] * workers)
    runs = [(layers, seed) for seed in range(3) for layers in (3, 4, 5)][:7]
    bench.ids[:] = [add(bench.store, tiny({"seed": seed, "model.layers": layers})) for layers, seed in runs]
    bench.launch(*["done"] * 7)
    lines = [" ".join(note["runs"]).partition("/")[0].split() for note in bench.notes("line")]
    assert sorted(map(len, lines)) == sizes
    for line in lines:
        assert len({bench.store.read_spec(run).model.layers for run in line}) == 1


@pytest.mark.parametrize("end", ["killed_once", "die early"])
def test_what_a_dead_worker_was_given_is_taken_up_one_by_one(end: str, bench: Bench, tiny):
    """One of them may have killed it, and the others need not suffer for that again."""
    bench.ids[:] = [add(bench.store, tiny({"seed": seed, "execution.lanes": 3})) for seed in range(10, 13)]
    bench.launch("done", end, "done", units=[[0, 1, 2]])
    lines = [tuple(bench.ids.index(run) for run in note["runs"]) for note in bench.notes("line")]
    tries = 2 if end == "killed_once" else MOST_FRUITLESS
    assert sorted(lines) == sorted([(0, 1, 2), (2,), *[(1,)] * (tries - 1)])
    assert bench.kinds == [Kind.DONE, Kind.DONE if end == "killed_once" else Kind.MISSING, Kind.DONE]


@pytest.fixture
def together(bench: Bench, tiny, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[tuple[int, ...]]]:
    """Has all runs given at once to the one worker that there is; which it was given, time after time."""
    monkeypatch.setattr(bench.local, "slots", lambda *_: [Slot(frozenset(), {})])
    bench.ids[:] = [add(bench.store, tiny({"seed": seed, "execution.lanes": 5})) for seed in range(10, 15)]
    return lambda: [tuple(bench.ids.index(run) for run in note["runs"]) for note in bench.notes("line")]


def test_what_a_dead_worker_had_not_begun_stays_together(bench: Bench, together):
    bench.launch("done", "killed_once", "done", "done", "done")
    assert together() == [(0, 1, 2, 3, 4), (2, 3, 4), (1,)]
    assert bench.kinds == [Kind.DONE] * 5


def test_deaths_before_its_turn_are_not_counted_against_a_run(bench: Bench, together, tiny):
    count = MOST_FRUITLESS + 2
    bench.ids[:] = [add(bench.store, tiny({"seed": 20 + i, "execution.lanes": count})) for i in range(count)]
    bench.launch(*["killed_once"] * (count - 1), "done")
    assert together()[0] == tuple(range(count))
    assert bench.kinds == [Kind.DONE] * count


def test_only_a_run_that_takes_its_worker_down_alone_has_crashed(bench: Bench, together, monkeypatch):
    """Of several that were trained at once, any may be at fault."""
    bench.launch("done", "beside", "aborts", "done", "done")
    assert together() == [(0, 1, 2, 3, 4), (3, 4), (1,), (2,)]
    first, last = (bench.store.run(bench.ids[2]).attempts()[i].ending() or pytest.fail("it ended") for i in (1, 0))
    assert (first.kind, last.kind) == (Kind.PREEMPTED, Kind.CRASHED)
    assert "2 runs" in first.reason
    assert bench.store.run(bench.ids[1]).failures() == {Kind.PREEMPTED: 1}


def test_what_was_told_to_stop_stays_together(bench: Bench, together):
    """As by a worker that someone ends with `kill`, one line after the other."""
    bench.launch("done", "told", "told", "done", "told")
    assert together() == [(0, 1, 2, 3, 4), (1, 2, 4)]
    assert bench.kinds == [Kind.DONE] * 5


def test_a_worker_with_more_runs_has_more_time_to_save_them(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    waited = {}

    class Deaf:
        """A worker that ends when it is killed."""

        def __init__(self, runs: int):
            self.runs, self.process = [""] * runs, self
            self.send_signal = self.close = self.end = self.kill = lambda *_: None

        def wait(self, seconds: float) -> None:
            waited[len(self.runs)] = seconds

    monkeypatch.setattr(bench.local.time, "monotonic", lambda: 7.0)
    bench.local._stop({Deaf(runs) for runs in (0, 1, 9)})
    assert waited == {0: 60.0, 1: 60.0, 9: 100.0}


def test_the_order_is_that_of_the_job(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench.local, "slots", lambda *_: [Slot(frozenset(), {})])
    bench.launch(*["done"] * 5)
    assert [note["run"] for note in bench.notes("given")] == bench.ids


def test_the_launcher_asks_for_the_slots_that_the_job_allows(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(bench.local, "slots", lambda *wanted: asked.append(wanted) or [Slot(frozenset(), {})])
    behaviour = {"schema": SCHEMA, "machine": Holder.here().machine}
    (bench.folder / "behaviour.json").write_text(json.dumps(behaviour))
    bench.launcher.attend(Job("mine-1", bench.store, (WorkUnit(tuple(bench.ids[:1])),), 3, 7, 2))
    assert asked == [(3, 7, 2)]


def test_a_run_whose_worker_is_killed_is_trained_on_behind_the_others(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench.local, "slots", lambda *_: [Slot(frozenset(), {})])
    bench.launch("done", "killed_once", "done", "killed_once", "done")
    assert bench.kinds == [Kind.DONE] * 5
    order = [bench.ids.index(note["run"]) for note in bench.notes("given")]
    assert order == [0, 1, 2, 3, 4, 1, 3]
    assert bench.store.run(bench.ids[1]).failures() == {Kind.PREEMPTED: 1}
    assert bench.all_gone()


def test_a_run_that_kills_every_worker_is_given_up_and_takes_down_no_other(bench: Bench):
    bench.launch("done", "killed", "done", "killed", "done")
    assert bench.kinds == [Kind.DONE, Kind.CRASHED, Kind.DONE, Kind.CRASHED, Kind.DONE]
    assert "SIGKILL" in bench.states[1].reason
    assert f"{MOST_FRUITLESS} times" in bench.states[1].reason
    assert bench.all_gone()


def test_a_worker_that_exits_takes_down_its_run_and_no_other(bench: Bench):
    bench.launch(3, "done", 3, "done", "done")
    assert bench.kinds == [Kind.CRASHED, Kind.DONE, Kind.CRASHED, Kind.DONE, Kind.DONE]
    assert "3" in bench.states[0].reason
    assert "workers.log" in bench.states[0].reason
    assert (bench.store.root / "workers.log").read_text().count("I end with 3") == 2


def test_a_run_that_crashed_in_order_keeps_its_reason(bench: Bench):
    bench.launch("crashed", "done", "crashed", "done", "done")
    assert bench.kinds == [Kind.CRASHED, Kind.DONE, Kind.CRASHED, Kind.DONE, Kind.DONE]
    assert bench.states[0].reason == "its own"
    assert len(bench.notes("started")) == 2


def test_a_worker_killed_before_its_first_step_takes_down_its_run_alone(bench: Bench):
    bench.launch("die early", "done", "die early", "done", "done")
    assert [kind is Kind.DONE for kind in bench.kinds] == [False, True, False, True, True]
    tries = [note["run"] for note in bench.notes("given")]
    assert tries.count(bench.ids[0]) == tries.count(bench.ids[2]) == MOST_FRUITLESS


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted as Linux lists them")
def test_workers_that_are_gone_leave_no_file_open(bench: Bench):
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    gc.disable()
    try:
        bench.launch("done", "killed", "done", "killed", "done")
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        gc.enable()


def test_a_worker_that_leaves_in_order_takes_down_no_run_it_never_began(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    # Someone ends a worker with `kill`: it saves, says so and goes. The next run is not its fault.
    monkeypatch.setattr(bench.local, "slots", lambda *_: [Slot(frozenset(), {})])
    bench.launch("leave", "done", "done")
    assert bench.kinds[:3] == [Kind.DONE] * 3
    assert bench.store.run(bench.ids[0]).failures() == {Kind.PREEMPTED: 1}
    assert not bench.store.run(bench.ids[1]).failures()


def test_workers_that_cannot_begin_end_the_launch(bench: Bench):
    with pytest.raises(LaunchError, match="status 3") as caught:
        bench.launch(*["exit early"] * 5)
    assert "workers.log" in str(caught.value)
    # Nobody is blamed for what every run would have met.
    assert bench.kinds == [Kind.MISSING] * 5
    assert len(bench.notes("started")) <= 2
    assert bench.all_gone()


def test_a_full_disk_ends_the_launch_and_stops_the_others(bench: Bench):
    with pytest.raises(LaunchError, match="full") as caught:
        bench.launch("stuck", DISK_FULL, "done", "done", "done")
    assert str(bench.store.root) in str(caught.value)
    assert bench.kinds[2:] == [Kind.MISSING] * 3
    assert Kind.CRASHED not in bench.kinds
    assert bench.all_gone()


def test_ctrl_c_stops_workers_in_order(bench: Bench):
    def watch() -> None:
        if len(bench.notes("stuck")) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.launch("stuck", "stuck", "done", watch=watch)
    assert sorted(note["run"] for note in bench.notes("stopped")) == sorted(bench.ids[:2])
    assert bench.kinds[2] is Kind.MISSING
    assert bench.all_gone()


def test_workers_that_do_not_stop_are_killed(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench.local, "GRACE_SECONDS", 0.1)

    def watch() -> None:
        if bench.notes("stuck"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.launch("deaf", watch=watch)
    assert len(bench.notes("stopped")) == 1
    assert bench.all_gone()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not bind processes to cores")
def test_workers_run_on_the_cores_of_their_slot_and_the_launcher_keeps_its_own(bench: Bench, monkeypatch):
    before = os.sched_getaffinity(0)
    slots = [Slot(frozenset([core]), {}) for core in sorted(before)[:2]]
    monkeypatch.setattr(bench.local, "slots", lambda *_: slots)
    bench.launch(*["done"] * 4)
    assert sorted(note["cores"] for note in bench.notes("started")) == [list(slot.cores) for slot in slots]
    assert os.sched_getaffinity(0) == before


def test_a_worker_is_out_of_reach_of_the_terminals_signals(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    # Ctrl-C reaches the whole group of the terminal: the launcher stops its workers in order instead.
    groups = []

    def watch() -> None:
        if bench.notes("stuck"):
            groups.append(os.getpgid(bench.notes("stuck")[0]["pid"]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.launch("stuck", watch=watch)
    assert groups
    assert groups[0] != os.getpgid(0)


def test_the_signal_of_a_death_is_named(bench: Bench):
    bench.launch("killed_once")
    first = bench.store.run(bench.ids[0]).attempts()[-1]
    assert first.ending() == RunState(Kind.PREEMPTED, 0, f"its worker was killed by {signal.SIGKILL.name}")


def test_a_crash_that_no_worker_lives_to_tell_pauses_its_program(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench.local, "slots", lambda *_: [Slot(frozenset(), {})])
    bench.launch(3)
    second = bench.ids[1]
    state = bench.store.state(second, bench.store.read_spec(second), bench.store.run(second).execution())
    assert state.kind is Kind.PAUSED


def test_what_would_be_started_is_said(bench: Bench):
    job = Job("mine-1", bench.store, (WorkUnit(tuple(bench.ids[:2])),))
    ((name, text),) = bench.launcher.render(job).items()
    assert name == "workers.sh"
    for slot in range(2):
        assert f"SLOT={slot} " in text
    assert text.count(f"-m slicedice.work --store {bench.store.address} --parent $$") == 2
    assert bench.ids[1] in text


def test_its_queue_lives_as_long_as_the_sweep(bench: Bench):
    job = Job("mine-1", bench.store, (WorkUnit(tuple(bench.ids[:2])),))
    handles = tuple(bench.launcher.submit(job, {}))
    launch = Launch("mine-1", bench.folder, "local", {}, (tuple(bench.ids[:2]),), handles)
    assert list(bench.launcher.poll(launch)) == [Phase.QUEUED]
    machine, pid, started = handles[0].split(":")
    for gone in (f"{machine}:{pid}:{int(started) + 1}", f"elsewhere:{pid}:{started}", "odd"):
        assert list(bench.launcher.poll(replace(launch, handles=(gone,)))) == [Phase.ENDED]
