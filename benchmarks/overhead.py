"""What of a sweep's time is not spent in compiled steps, and how long a step waits for its batch.

    python benchmarks/overhead.py [--store FOLDER] [--json]

Without a store, six runs at nano are trained in a temporary one, in about three minutes on two cores, by the local
launcher; steps are compiled anew, while the C++ kernels may be in the user's cache. With one, which holds finished runs
of one sweep of this machine, only what its files say is added up; there a sweep begins with its first run.

The workers' time is their number times the time from the command's start to its end. Steps take their median time each,
so that a step which something else delays counts as overhead. Parts, as shares of the workers' time:

- start: until a worker's first run begins, plan and preparation of text included
- before and between steps: opening the text, initial state, checkpoints, and compilation
- after the last step: checkpoint, evaluation and its compilation, the finished model
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
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from slicedice.launching.here import on_cores
from slicedice.machine import slots
from slicedice.spec import program_key
from slicedice.store import Store

SWEEP = ["--grid", "granularity_vs_count", "--scale", "nano", "--only", "*-s8-*-seed[01]", "--launcher", "local"]
STALL_STEPS = 200


class Run(NamedTuple):
    """A finished run, by its worker's process.

    began, stepped, ended: when it began, took its last step and had its result. steps: seconds in steps. compiling:
    seconds. compiled: steps that were.
    """

    program: str
    worker: int
    began: float
    stepped: float
    ended: float
    steps: float
    compiling: float
    compiled: int


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", help="of a finished sweep")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--stall", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stall:
        print(json.dumps(stall(Store(options.stall))))
        return
    os.environ["JAX_PLATFORMS"] = "cpu"
    with tempfile.TemporaryDirectory() as folder:
        store = options.store or str(Path(folder) / "runs")
        begin = time.time()
        if not options.store:
            compiled = {"JAX_COMPILATION_CACHE_DIR": str(Path(folder) / "compiled")}
            command = [sys.executable, "-m", "slicedice.sweep", *SWEEP, "--store", store]
            subprocess.run(command, env=os.environ | compiled, stdout=subprocess.DEVNULL, check=True)
        end = time.time()
        runs = finished(Store(store))
        if not runs:
            sys.exit(f"{store} holds no finished run")
        if options.store:
            begin, end = min(run.began for run in runs), max(run.ended for run in runs)
        found = parts(runs, begin, end)
        slot = slots()[-1]
        with on_cores(slot):
            child = [sys.executable, __file__, "--stall", store]
            done = subprocess.run(child, env=os.environ | slot.environment, stdout=subprocess.PIPE, check=True)
        waiting = json.loads(done.stdout)
    steps = found.pop("steps")
    compiled = sum(run.compiled for run in runs) / len({run.program for run in runs})
    ratios = {"outside of steps over workers' time": round(1 - steps, 4), "input stall over a step's time": waiting}
    ratios["steps compiled over programs"] = round(compiled, 3)
    if options.json:
        print(json.dumps({"runs": len(runs), "seconds": end - begin, "parts": found, "ratios": ratios}))
    else:
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
                program_key(store.read_spec(path.name), folder.execution()),
                attempt.holder.pid,
                json.loads((attempt.path / "claim.json").read_text())["at"],
                attempt.metrics.stat().st_mtime,
                (path / "result.json").stat().st_mtime,
                result["steps"] * result["seconds_per_step"],
                result["compilation"]["seconds"],
                result["compilation"]["steps"],
            )
        )
    return runs


def parts(runs: list[Run], begin: float, end: float) -> dict[str, float]:
    """Shares of the workers' time: of steps, and of everything else."""
    by_worker: dict[int, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.began):
        by_worker[run.worker].append(run)
    last, workers = max(run.ended for run in runs), by_worker.values()
    pairs = [pair for own in workers for pair in itertools.pairwise(own)]
    seconds = {
        "steps": sum(run.steps for run in runs),
        "start": sum(own[0].began - begin for own in workers),
        "before and between steps": sum(run.stepped - run.began - run.steps for run in runs),
        "after the last step": sum(run.ended - run.stepped for run in runs),
        "between runs": sum(after.began - before.ended for before, after in pairs),
        "waiting": sum(last - own[-1].ended for own in workers),
        "report": len(workers) * (end - last),
        "compilation, in other parts already": sum(run.compiling for run in runs),
    }
    return {name: round(value / (len(workers) * (end - begin)), 5) for name, value in seconds.items()}


def stall(store: Store) -> float:
    """Of a run of the store, time to have a batch over time of a step."""
    import jax
    import numpy as np

    from slicedice import copies
    from slicedice.data import train_batch
    from slicedice.training import Hyper, Program

    name = next(path.name for path in sorted((store.root / "runs").iterdir()) if store.run(path.name).result())
    spec, execution = store.read_spec(name), store.run(name).execution()
    d, size = spec.data, spec.budget.batch_size
    tokens = copies.open_tokens(store, d.source, d.tokenizer, d.heldout_fraction, d.tokens or 0)
    program, hyper = Program(spec, execution), Hyper.of(spec)
    state, reading, stepping = program.init(np.uint32(spec.seed)), 0.0, 0.0
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
