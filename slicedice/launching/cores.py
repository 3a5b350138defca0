"""How many workers a sweep on this machine's cores had best have, by measurement: the fewer, the more cores each has.

A small model's step does not fill many cores, a large one's fills memory. What pays is found out by the plan's largest
program, once for a machine, and kept in the user's cache folder: a run that the same command takes up again has to meet
the same threads, without which its results are not bitwise the same. So the choice never depends on which runs are
left, and one that cannot be kept is not made.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import IO

from slicedice import __version__, cache, machine
from slicedice.cost import RATES, memory
from slicedice.grid import Plan
from slicedice.launching.here import on_cores
from slicedice.machine import Slot, slots
from slicedice.provenance import processor
from slicedice.spec import Execution, RunSpec, canonical_json, program_key

log = logging.getLogger(__name__)

COMMAND = [sys.executable, "-m", "slicedice.training.speed"]
"""What takes steps as a worker does. See there for what it reads and says."""

TIE = 1.05
"""How much faster fewer workers have to be: with more, one that waits for text or disk leaves fewer cores idle."""

START_SECONDS = 13.0
"""What a candidate takes to be measured, by estimate, beside steps: processes start, and compile."""

STEPS = 6
"""How many steps are taken of each, at the least and by the slowest."""

WORTH = 10
"""How many times as long as measuring the plan's training has to take, by estimate, for it to be worth it. Most of what
measuring takes is compiling what is trained after it."""

MOST_SECONDS = 120.0
"""That measuring may take, by estimate: of a large model one step takes longer, and nobody trains it here."""

Run = tuple[RunSpec, Execution]

Measure = Callable[[Run, Sequence[Slot]], float | None]
"""Tokens a second of a run's program in all places at once; None if one of them fails."""


def largest(plan: Plan) -> tuple[int, int]:
    """Bytes of a device and number of devices of the runs that take most of each: of all, done or not."""
    runs = plan.runs.values()
    return max(memory(*run) for run in runs), max(execution.mesh_shape.devices for _, execution in runs)


def workers_that_pay(
    plan: Plan, tell: Callable[[str], None] = lambda line: None, measure: Measure | None = None
) -> int:
    """How many workers train a plan's tokens fastest on this machine's cores; 0 to leave it to `machine.slots`.

    It is left there where an accelerator trains, there is one arrangement alone, or the plan is too small to be worth a
    measurement.

    Args:
      plan: all runs, done or not.
      tell: what was measured, in a line.
      measure: how, where it is not known yet; None to do without then.
    """
    size, devices = largest(plan)
    if machine.has_accelerator():
        return 0
    candidates, most = [], len(slots(0, size, devices))
    while (count := 2 ** len(candidates)) < most:
        candidates.append(count)
    candidates.append(most)
    if len(candidates) == 1 or not is_worth_it(plan, len(candidates)):
        return 0
    run = max(plan.runs.values(), key=lambda run: (_step_flops(run), program_key(*run)))
    with contextlib.suppress(OSError, RuntimeError):  # of a cache folder that cannot be
        path = _path(run, candidates)
        if not (speeds := _read(path, candidates)) and measure:
            with cache.alone(path):  # a sweep that begins meanwhile would disturb it, and find something else
                speeds = _read(path, candidates)
                if not speeds:
                    path.touch()  # nothing is measured that could not be kept
                    tell("How many workers pay on these cores is measured once for a program and a machine.")
                    found = {count: measure(run, slots(count, size, devices)) for count in candidates}
                    speeds = {count: speed for count, speed in found.items() if speed}
                    path.write_text(json.dumps(speeds))
        if speeds:
            chosen = choose(speeds)
            told = ", ".join(f"{count} {speed:,.0f}" for count, speed in speeds.items())
            tell(
                f"Tokens a second by number of workers on {len(machine.cores())} cores: {told}. {chosen} are used. "
                f"Remove {path} to have that measured again."
            )
            return chosen
    return 0


def choose(speeds: Mapping[int, float]) -> int:
    """The fastest number of workers; of those that hardly differ, the greatest."""
    return max(count for count, speed in speeds.items() if speed * TIE >= max(speeds.values()))


def is_worth_it(plan: Plan, candidates: int) -> bool:
    """Whether the plan's training, from nothing, takes `WORTH` times as long as measuring, and that is not too long."""
    rate = RATES["cpu"].sustained
    training = sum(spec.flops for spec, _ in plan.runs.values()) / rate / len(machine.cores())
    step = max(map(_step_flops, plan.runs.values())) / rate
    measuring = candidates * (START_SECONDS + STEPS * step)
    return WORTH * measuring <= training and measuring <= MOST_SECONDS


def measured_speed(run: Run, places: Sequence[Slot]) -> float | None:
    """Has processes in all places take steps at once, each as a worker there would; see `Measure`."""
    request = json.dumps({"spec": canonical_json(run[0]), "execution": asdict(run[1])})
    with contextlib.ExitStack() as stack:
        complaints = stack.enter_context(tempfile.TemporaryFile())
        children = [stack.enter_context(_started(place, complaints)) for place in places]
        for child in children:
            _write(child, request)
        if all(_ready(child) for child in children):
            for child in children:
                _write(child, "go")
            answers = [json.loads(_line(child) or "{}") for child in children]
            if all(answers):
                tokens = run[0].budget.batch_size * run[0].data.sequence_length
                return tokens * sum(answer["steps"] / answer["seconds"] for answer in answers)
        complaints.seek(0)
        log.warning("%d workers are not considered: %s", len(places), complaints.read()[-500:].decode(errors="replace"))
    return None


@contextlib.contextmanager
def _started(place: Slot, complaints: IO[bytes]) -> Iterator[subprocess.Popen[str]]:
    """A process on a place, which ends with the context, however that ends."""
    with on_cores(place):
        child = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            env=os.environ | place.environment,
            start_new_session=True,  # Ctrl-C reaches the sweep, which ends it
        )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def _write(child: subprocess.Popen[str], line: str) -> None:
    assert child.stdin
    with contextlib.suppress(BrokenPipeError):  # it has died, which its output tells
        child.stdin.write(f"{line}\n")
        child.stdin.flush()


def _line(child: subprocess.Popen[str]) -> str:
    assert child.stdout
    return child.stdout.readline()


def _ready(child: subprocess.Popen[str]) -> bool:
    return any(line == "ready\n" for line in iter(lambda: _line(child), ""))


def _step_flops(run: Run) -> float:
    return run[0].flops / run[0].budget.steps


def _path(run: Run, candidates: Sequence[int]) -> Path:
    versions = __version__, version("jax"), version("jaxlib")
    key = json.dumps([program_key(*run), candidates, len(machine.cores()), processor(), versions])
    return cache.folder() / "cores" / f"{hashlib.sha256(key.encode()).hexdigest()[:12]}.json"


def _read(path: Path, candidates: Sequence[int]) -> dict[int, float] | None:
    """Speeds that were kept, by number of workers; None if there are none, or they are damaged."""
    try:
        speeds = {int(count): float(speed) for count, speed in json.loads(path.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    is_whole = speeds.keys() <= {*candidates} and all(0 < speed < math.inf for speed in speeds.values())
    return speeds if speeds and is_whole else None
