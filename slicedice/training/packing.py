"""How many runs of a program a device had best train at once: as many as fit its memory, if a measurement says it pays.

What was measured is kept in the user's cache folder, by program, kind of device and versions.
"""

import contextlib
import hashlib
import json
import logging
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from slicedice import cache
from slicedice.spec import program_key
from slicedice.training.gradients import Hyper
from slicedice.training.lanes import Lanes
from slicedice.training.program import Program

log = logging.getLogger(__name__)

MEMORY_SHARE = 0.8
"""Of a device's memory, what lanes may take: a step needs more than its arrays, and evaluation comes on top."""

LEAST_GAIN = 1.1
"""How much more than one at a time is worth the compilation."""

MEASURED_STEPS = 8


def lanes_that_pay(program: Program, most: int) -> int:
    """How many of `most` runs to train at once.

    Asks the cache, or else compiles the step of one run and of many and takes some of each.
    """
    if most == 1:
        return 1
    if known := known_lanes(program, most):
        return known
    found, path = measure(program, most), _path(program)
    with contextlib.suppress(OSError, RuntimeError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))
    log.info("%d lanes at once, %.2f times as fast as one after the other", found["lanes"], found["gain"])
    return found["lanes"]


def known_lanes(program: Program, most: int) -> int:
    """How many of `most` runs to train at once, by what was measured before; 0 if nothing was that tells."""
    known = _read(_path(program))
    # Fewer that paid pay again; more may be tried where all that were tried did.
    if known and (most <= known["lanes"] or known["lanes"] < known["tried"]):
        return min(most, known["lanes"])
    return 0


def measure(program: Program, most: int) -> dict[str, Any]:
    """Compares one run at a time with as many of `most` as fit.

    Returns:
      `lanes` that pay, and their `gain` in runs an hour over one at a time; `tried`, how many `most` was.
    """
    state, batch, hyper = program.init(np.uint32(0)), random_batch(program), Hyper.of(program.spec)
    placed = program.place(batch.__getitem__)

    def one() -> Any:
        nonlocal state
        state, metrics = program.step(state, placed, hyper)
        return metrics

    seconds = _seconds(one)
    del state
    count = min(most, _fitting(program))
    while count > 1:
        try:
            gain = count * seconds / _seconds_of_lanes(program, count, batch, hyper)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            count //= 2
            continue
        if gain > LEAST_GAIN:
            return {"lanes": count, "gain": gain, "tried": most}
        break
    return {"lanes": 1, "gain": 1.0, "tried": most}


def _seconds_of_lanes(program: Program, count: int, batch: np.ndarray, hyper: Hyper) -> float:
    lanes = Lanes(program, count)
    for lane in range(count):
        lanes.put(lane, program.init(np.uint32(lane)))
    return _seconds(lambda: lanes.step([batch] * count, [hyper] * count))


def _seconds(step: Callable[[], Any]) -> float:
    """Of a step, the median, once it is compiled."""
    jax.block_until_ready(step())
    taken = []
    for _ in range(MEASURED_STEPS):
        begin = time.monotonic()
        jax.block_until_ready(step())
        taken.append(time.monotonic() - begin)
    return statistics.median(taken)


def _fitting(program: Program) -> int:
    """How many lanes there is memory for, by what the compiler takes for one."""
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is None:  # a CPU, whose workers' number goes by memory already
        from slicedice import machine

        limit = machine.memory() // len(machine.cores())
    memory = program.compile().memory_analysis()
    assert memory is not None
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return max(1, int(MEMORY_SHARE * limit / (kept + memory.temp_size_in_bytes)))


def random_batch(program: Program) -> np.ndarray:
    """Tokens at random, [B, S + 1], which routers spread as they do at the beginning."""
    budget, data = program.spec.budget, program.spec.data
    shape = budget.batch_size, data.sequence_length + 1
    return np.random.default_rng(0).integers(program.spec.model.vocab_size, size=shape, dtype=np.int32)


def _path(program: Program) -> Path:
    key = program_key(program.spec, program.execution), jax.local_devices()[0].device_kind, version("jaxlib")
    return cache.folder() / "lanes" / f"{hashlib.sha256(' '.join(key).encode()).hexdigest()[:12]}.json"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
        return found if {"lanes", "tried"} <= found.keys() else None
    except (OSError, ValueError):
        return None
