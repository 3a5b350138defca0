"""What of a sweep's time is not spent in compiled steps, and how long a step waits for its batch.

    python benchmarks/overhead.py [--all] [--store FOLDER] [--json]

Without a store, six runs at nano are trained in a temporary one, in three to five minutes on two cores, by the local
launcher; with --all the whole grid, which has 26 and takes ten to twenty. Steps are compiled anew, while the C++
kernels, and how many workers pay, may be in the user's cache. With a store, which holds finished runs of one sweep of
this machine, only what its files say is added up; there a sweep begins with its first run, and ends with its last.

The workers' time is their number times the time from the command's start to its end. Compiled steps are those of
training, and those that score held-out text after it. Each counts at the median time, so that a step which something
else delays counts as overhead. Those of evaluation are timed afterwards, for each program, on one worker's core with
nothing beside it: less than they took, unless the machine has become slower. Parts, as shares of the workers' time:

- start: until a worker's first run begins, plan and preparation of text included
- before and between steps: opening the text, initial state, checkpoints, and compilation
- after the last step: checkpoint, the evaluation but for its steps, its compilation included, the finished model
- between runs: from a worker's result to its next run
- waiting: from a worker's last result to the sweep's last
- report: from the sweep's last result to the end
- compilation, which is in other parts already

How often a step was compiled, over the sweep's programs, is 1 where each was once, by one worker.

The input's stall is the time until a worker's process has read a batch and handed it on, over that of a step. On an
accelerator it is less, since the loop reads while the device computes.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from slicedice.data import TokenStore
from slicedice.evaluation.rows import Score
from slicedice.launching.here import on_cores
from slicedice.machine import slots
from slicedice.spec import RunSpec, program_key
from slicedice.store import Store

SWEEP = ["--grid", "granularity_vs_count", "--scale", "nano", "--launcher", "local"]
SIX = ["--only", "*-s8-*-seed[01]"]
STALL_STEPS = 200


class Run(NamedTuple):
    """A finished run, by its worker's process.

    name: its id. began, stepped, ended: when it began, took its last step and had its result. steps: seconds in steps
    of training. compiling: seconds. compiled: steps that were. scored: whether its model was, which that of a run that
    diverged is not.
    """

    name: str
    program: str
    worker: int
    began: float
    stepped: float
    ended: float
    steps: float
    compiling: float
    compiled: int
    scored: bool


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="all runs of the grid, not six")
    parser.add_argument("--store", help="of a finished sweep")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        store = Store(options.alone)
        names = {run.program: run.name for run in finished(store)}
        waiting = stall(store, next(iter(names.values())))  # before anything else is in this process
        evaluating = {program: scoring(store, name) for program, name in names.items()}
        print(json.dumps({"stall": waiting, "evaluating": evaluating}))
        return
    os.environ["JAX_PLATFORMS"] = "cpu"
    with tempfile.TemporaryDirectory() as folder:
        store = options.store or str(Path(folder) / "runs")
        begin = time.time()
        if not options.store:
            compiled = {"JAX_COMPILATION_CACHE_DIR": str(Path(folder) / "compiled")}
            command = [sys.executable, "-m", "slicedice.sweep", *SWEEP, *([] if options.all else SIX), "--store", store]
            subprocess.run(command, env=os.environ | compiled, stdout=subprocess.DEVNULL, check=True)
        end = time.time()
        runs = finished(Store(store))
        if not runs:
            sys.exit(f"{store} holds no finished run")
        if options.store:
            begin, end = min(run.began for run in runs), max(run.ended for run in runs)
        slot = slots(len({run.worker for run in runs}))[-1]
        with on_cores(slot):
            child = [sys.executable, __file__, "--alone", store]
            done = subprocess.run(child, env=os.environ | slot.environment, stdout=subprocess.PIPE, check=True)
        alone = json.loads(done.stdout)
    found = parts(runs, alone["evaluating"], begin, end)
    ratios = outside(found) | {
        "input stall over a step's time": alone["stall"],
        "steps compiled over programs": round(sum(run.compiled for run in runs) / len(alone["evaluating"]), 3),
    }
    if options.json:
        print(json.dumps({"runs": len(runs), "seconds": end - begin, "parts": found, "ratios": ratios}))
    else:
        print(f"{len(runs)} runs in {end - begin:.0f} s")
        print("\n".join(f"{name}: {value:.5f}" for name, value in (ratios | found).items()))


def finished(store: Store) -> list[Run]:
    """The runs that have a result, with what their files tell."""
    runs = []
    for path in sorted((store.root / "runs").iterdir()):
        folder = store.run(path.name)
        result, attempt = folder.result(), folder.attempt()
        if not result or not attempt.holder or not result["seconds_per_step"]:
            continue
        runs.append(
            Run(
                path.name,
                program_key(store.read_spec(path.name), folder.execution()),
                attempt.holder.pid,
                json.loads((attempt.path / "claim.json").read_text())["at"],
                attempt.metrics.stat().st_mtime,
                (path / "result.json").stat().st_mtime,
                result["steps"] * result["seconds_per_step"],
                result["compilation"]["seconds"],
                result["compilation"]["steps"],
                bool(result["evaluation"]),
            )
        )
    return runs


def parts(runs: list[Run], evaluating: dict[str, float], begin: float, end: float) -> dict[str, float]:
    """Shares of the workers' time: of steps, and of everything else; `evaluating` has a run's seconds by program."""
    by_worker: dict[int, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.began):
        by_worker[run.worker].append(run)
    last, workers = max(run.ended for run in runs), by_worker.values()
    pairs = [pair for own in workers for pair in itertools.pairwise(own)]
    scored = sum(evaluating[run.program] for run in runs if run.scored)
    seconds = {
        "steps of training": sum(run.steps for run in runs),
        "steps of evaluation": scored,
        "start": sum(own[0].began - begin for own in workers),
        "before and between steps": sum(run.stepped - run.began - run.steps for run in runs),
        "after the last step": sum(run.ended - run.stepped for run in runs) - scored,
        "between runs": sum(after.began - before.ended for before, after in pairs),
        "waiting": sum(last - own[-1].ended for own in workers),
        "report": len(workers) * (end - last),
        "compilation, in other parts already": sum(run.compiling for run in runs),
    }
    return {name: round(value / (len(workers) * (end - begin)), 5) for name, value in seconds.items()}


def outside(found: dict[str, float]) -> dict[str, float]:
    """Of the parts of the workers' time, what is no compiled step, and what is no step of training."""
    rest = 1 - found["steps of training"]
    return {
        "outside of compiled steps over workers' time": round(rest - found["steps of evaluation"], 4),
        "outside of training steps over workers' time": round(rest, 4),
    }


def program_of(store: Store, name: str) -> tuple[RunSpec, TokenStore, Any, Any]:
    """A run, its text, its program and its initial state."""
    import numpy as np

    from slicedice import copies
    from slicedice.training import Program

    spec = store.read_spec(name)
    d, program = spec.data, Program(spec, store.run(name).execution())
    tokens = copies.open_tokens(store, d.source, d.tokenizer, d.heldout_fraction, d.tokens or 0)
    return spec, tokens, program, program.init(np.uint32(spec.seed))


def scoring(store: Store, name: str) -> float:
    """Of a run of the store, seconds in compiled steps that score its held-out text, at their median time."""
    import numpy as np

    from slicedice.evaluation import evaluate
    from slicedice.evaluation.scoring import scorers
    from slicedice.training import routing_of

    spec, tokens, program, state = program_of(store, name)
    length = spec.data.sequence_length
    batch_size = program.execution.micro_batch * program.execution.mesh_shape.devices
    seconds = 0.0
    for score in scorers(program.model(state), spec, routing_of(spec, program.execution), length).values():
        times: list[float] = []

        def timed(*rows: np.ndarray, score: Score = score, times: list[float] = times) -> np.ndarray:
            begin = time.perf_counter()
            nats = np.asarray(score(*rows))
            times.append(time.perf_counter() - begin)
            return nats

        evaluate(timed, tokens, batch_size=batch_size, sequence_length=length, max_tokens=spec.evaluation.tokens)
        seconds += len(times) * statistics.median(times)
    return seconds


def stall(store: Store, name: str) -> float:
    """Of a run of the store, time to have a batch over time of a step."""
    import jax

    from slicedice.data import train_batch
    from slicedice.training import Hyper

    spec, tokens, program, state = program_of(store, name)
    d, size, hyper = spec.data, spec.budget.batch_size, Hyper.of(spec)
    reading, stepping = 0.0, 0.0
    for step in range(STALL_STEPS + 1):
        begin = time.perf_counter()
        batch: Any = program.place(partial(train_batch, tokens, spec.seed, step, size, d.sequence_length))
        read = time.perf_counter()
        state, metrics = program.step(state, batch, hyper)
        jax.block_until_ready((state, metrics))
        if step:  # the first compiles, and orders the text
            reading, stepping = reading + read - begin, stepping + time.perf_counter() - read
    return float(f"{reading / stepping:.3g}")


if __name__ == "__main__":
    main()
