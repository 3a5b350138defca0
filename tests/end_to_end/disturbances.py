"""What can happen to a sweep: each disturbance happens to a storm at the moment it has come to, and says what it did.

`found` is the attempt of the moment and who makes it, if there is one.
"""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from slicedice.store import Attempt, metrics
from slicedice.store.attempt import attempts
from tests.end_to_end.machines import SILENCE_SECONDS, Process
from tests.end_to_end.watching import trains
from tests.training.damage import DAMAGES, damage

if TYPE_CHECKING:
    from tests.end_to_end.torture import Storm

Found = tuple[Attempt, Process] | None


def kill_worker(storm: "Storm", found: Found) -> str:
    """A worker is gone at once."""
    process = storm.victim(found)
    return f"SIGKILL to worker {process.pid}" if process and process.send(signal.SIGKILL) else ""


def stop_worker(storm: "Storm", found: Found) -> str:
    """A worker is asked to leave."""
    process, number = storm.victim(found), storm.rng.choice([signal.SIGTERM, signal.SIGUSR1])
    return f"{number.name} to worker {process.pid}" if process and process.send(number) else ""


def freeze_worker(storm: "Storm", found: Found) -> str:
    """A worker stands still, in half of the cases for so long that others may take its run."""
    process = storm.victim(found)
    seconds = storm.rng.uniform(0.2, 3 * SILENCE_SECONDS)
    if not process or not storm.crew.freeze(process, seconds):
        return ""
    if seconds > SILENCE_SECONDS and len(storm.crew.sweeps) < 2:
        storm.crew.start(storm.rng.choice(storm.crew.machines))
    return f"SIGSTOP to worker {process.pid} for {seconds:.1f} s"


def kill_parent(storm: "Storm", found: Found) -> str:
    """A sweep is gone at once; its workers notice."""
    return _to_parent(storm, signal.SIGKILL)


def stop_parent(storm: "Storm", found: Found) -> str:
    """A sweep is told to end, as by the system that shuts down."""
    return _to_parent(storm, signal.SIGTERM)


def interrupt_parent(storm: "Storm", found: Found) -> str:
    """Ctrl-C."""
    return _to_parent(storm, signal.SIGINT)


def power_cut(storm: "Storm", found: Found) -> str:
    """All are gone at once."""
    for sweep in storm.crew.sweeps:
        sweep.send(signal.SIGKILL)
    count = sum(process.send(signal.SIGKILL) for process in storm.crew.workers())
    return f"SIGKILL to {len(storm.crew.sweeps)} sweeps and {count} workers"


def second_parent(storm: "Storm", found: Found) -> str:
    """Another sweep of the same runs begins, on this machine or on one that sees no more than signs of life."""
    if len(storm.crew.sweeps) > 1:
        return _to_parent(storm, signal.SIGKILL) + ", of two"
    used = {sweep.machine.name for sweep in storm.crew.sweeps}
    others = [machine for machine in storm.crew.machines if machine.name not in used]
    machine = storm.rng.choice([*storm.crew.machines, *others])
    storm.crew.start(machine)
    return f"a second sweep, on {machine.name}"


def two_parents(storm: "Storm", found: Found) -> str:
    """All are gone at once, and two sweeps begin on a machine that sees so, whose workers want the same runs."""
    machine, gone = storm.crew.sweeps[0].machine, power_cut(storm, found)
    for _ in range(2):
        storm.crew.start(machine)
    return f"{gone}; two sweeps begin at once"


def worker_of_an_engine(storm: "Storm", found: Found) -> str:
    """A cluster's worker begins with some runs as well; or is there, and is gone at once."""
    if storm.crew.units:
        unit = storm.crew.units[0]
        unit.send(signal.SIGKILL)
        return f"SIGKILL to {unit.process.pid}"
    unit = storm.crew.start_unit(storm.rng.choice(storm.crew.machines))
    return f"{unit.words[-1]} begins on {unit.machine.name}: {unit.process.pid}" if unit else ""


def full_disk(storm: "Storm", found: Found) -> str:
    """Nothing can be written for some seconds, or next to nothing."""
    assert storm.disk
    left, seconds = storm.rng.choice([0, storm.rng.randrange(300_000)]), storm.rng.uniform(0.5, 5)
    storm.disk.fill(left)
    try:
        storm.pass_time(seconds, keep=False)
    finally:
        storm.disk.make_room()
    return f"the disk has {left} bytes for {seconds:.1f} s"


def torn_line(storm: "Storm", found: Found) -> str:
    """A worker is gone, and with it the end of its last line."""

    def tear(attempt: Attempt) -> str:
        kept = []
        saved = max((int(path.name) for path in _whole(storm, attempt.run)), default=0)
        for path in (attempt.metrics, attempt.evaluation_lines):
            content = path.read_bytes() if path.exists() else b""
            # What was evaluated before a checkpoint was on disk before it.
            if content and (path == attempt.metrics or (metrics.last_step(path) or 0) > saved):
                last = content.rstrip(b"\n").rfind(b"\n") + 1
                os.truncate(path, storm.rng.randrange(last, len(content)))
                kept.append(f"{path.name} of {len(content)} bytes torn at {path.stat().st_size}")
        return ", ".join(kept)

    return _killed_with(storm, tear, lambda attempt: attempt.steps > 0)


def damaged_checkpoint(storm: "Storm", found: Found) -> str:
    """A worker is gone, and the newest checkpoint of its run cannot be read; the one before it can."""
    return _damaged(storm, storm.rng.choice([how for how in DAMAGES if how != "flipped"]))


def flipped_bit(storm: "Storm", found: Found) -> str:
    """A worker is gone, and of the newest checkpoint of its run one bit is not as it was saved."""
    return _damaged(storm, "flipped")


def clock(storm: "Storm", found: Found) -> str:
    """The clock of a machine is set, mostly back; or what a holder says of the time is far off."""
    seconds = storm.rng.choice([-1, -1, 1]) * storm.rng.choice([SILENCE_SECONDS, 100.0, 1e5, 1e9]) * storm.rng.random()
    if found and storm.rng.random() < 0.5:
        attempt, _ = found
        for path in (attempt.path / "beat.json", attempt.path / "claim.json"):
            if path.exists():
                _rewrite(path, {"at": json.loads(path.read_text())["at"] + seconds})
        return f"signs of life of {attempt.path} {seconds:+.0f} s"
    machine = storm.rng.choice(storm.crew.machines)
    machine.set_clock(seconds)
    return f"the clock of {machine.name} {seconds:+.0f} s"


DISTURBANCES: dict[str, Callable[["Storm", Found], str]] = {
    function.__name__: function
    for function in (
        kill_worker,
        stop_worker,
        freeze_worker,
        kill_parent,
        stop_parent,
        interrupt_parent,
        power_cut,
        second_parent,
        two_parents,
        worker_of_an_engine,
        full_disk,
        torn_line,
        damaged_checkpoint,
        flipped_bit,
        clock,
    )
}


def _to_parent(storm: "Storm", number: signal.Signals) -> str:
    sweep = storm.rng.choice(storm.crew.sweeps)
    sweep.send(number)
    return f"{number.name} to sweep {sweep.process.pid}, one of {len(storm.crew.sweeps)}"


def _killed_with(storm: "Storm", what: Callable[[Attempt], str], is_ready: Callable[[Attempt], bool]) -> str:
    """Kills a worker and does something to its attempt before anybody else comes to it."""
    for _ in range(5):
        found = storm.await_attempt(lambda attempt: is_ready(attempt) and not _is_done(attempt), seconds=40)
        if not found:
            return ""
        attempt, process = found
        everybody = [process, *storm.crew.workers(), *storm.crew.parents()]
        still = [one for one in everybody if one.pid not in storm.crew.frozen and one.send(signal.SIGSTOP)]
        try:
            # Between looking and stopping it may have gone on.
            if trains(attempt) == process and is_ready(attempt) and not _is_done(attempt):
                process.send(signal.SIGKILL)
                return f"SIGKILL to worker {process.pid}; {what(attempt)}"
        finally:
            for one in still:
                one.send(signal.SIGCONT)
    return ""


def _damaged(storm: "Storm", how: str) -> str:
    def hurt(attempt: Attempt) -> str:
        newest, before, *_ = _whole(storm, attempt.run)
        damage(newest, how)
        storm.damaged.add(newest)
        storm.watch.expect_fallback(newest, before)
        return f"{newest} {how}, and {before} is whole"

    def last(attempt: Attempt) -> bool:
        # Damage the one that would be gone on from; and what is damaged already leaves others. Whoever has lost the
        # run and not noticed yet may save another one before it.
        there = _whole(storm, attempt.run)
        alone = not any(trains(older) for older in attempts(attempt.run) if older.number < attempt.number)
        return alone and len(there) >= 2 and there[0].parents[2] == attempt.path

    return _killed_with(storm, hurt, last)


def _is_done(attempt: Attempt) -> bool:
    return (attempt.run / "result.json").exists()


def _whole(storm: "Storm", run: Path) -> list[Path]:
    """Checkpoints that a run can be gone on from, the newest first."""
    return [
        path
        for attempt in attempts(run)
        for step in sorted(_steps(attempt), reverse=True)
        if step <= attempt.steps  # else a torn line has taken the metrics of its last step
        and (path := attempt.checkpoints / "training" / str(step)) not in storm.damaged
    ]


def _steps(attempt: Attempt) -> list[int]:
    return [int(path.name) for path in attempt.checkpoints.glob("training/*") if path.name.isdecimal()]


def _rewrite(path: Path, fields: dict) -> None:
    """Replaces fields of a JSON file, whole, and as if it had been so for as long as it is there."""
    content, when = json.loads(path.read_text()), path.stat()
    new = path.with_name(f".{path.name}.torture")
    new.write_text(json.dumps(content | fields))
    os.utime(new, ns=(when.st_atime_ns, when.st_mtime_ns))
    new.replace(path)
