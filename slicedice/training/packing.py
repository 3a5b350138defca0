"""How many runs of a program a device had best train at once: as many as fit its memory, if a measurement says it pays.

They are trained in rounds of one size, since each size is a program of its own. That size is measured, and what was
compiled for it trains. What was measured is kept in the user's cache folder, by program, kind and memory of the device,
and versions.
"""

import contextlib
import hashlib
import json
import logging
import math
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from slicedice import __version__, cache
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


def lanes_that_pay(program: Program, seeds: Sequence[int]) -> Lanes:
    """Lanes for runs of a program, with room for a round of them: for one run if more at once do not pay.

    Asks the cache, or else compiles the step of one run and of a round and takes some of each.

    Args:
      program: theirs.
      seeds: of the runs, in the order to train them in.
    """
    if known := known_lanes(program, seeds):
        return known
    found, lanes = measure(program, seeds)
    path = _path(program)
    _keep(path, found)
    told = "%d lanes are %.2f times as fast as one after the other: %d at once. Remove %s to have that measured again."
    log.info(told, found["lanes"], found["gain"], lanes.width, path)
    return lanes


def known_lanes(program: Program, seeds: Sequence[int]) -> Lanes | None:
    """As `lanes_that_pay`, by what was measured before; None if nothing was that tells."""
    if known := _read(_path(program)):
        width = round_of(len(seeds), known["fits"])
        if width <= known["lanes"]:  # fewer that paid pay again, and fewer than what did not pay do not
            return Lanes(program, width if known["gain"] > LEAST_GAIN else 1)
    return None


def narrowed(lanes: Lanes) -> Lanes:
    """Half as many, for rounds after one that ran out of memory: as many fit from now on, if anything was measured."""
    fits, path = max(1, lanes.width // 2), _path(lanes.program)
    if known := _read(path):
        _keep(path, known | {"fits": min(fits, known["fits"])})
    return Lanes(lanes.program, fits)


def round_of(runs: int, most: int) -> int:
    """How many runs to train at once, `most` or fewer, so that rounds are of one size."""
    return math.ceil(runs / math.ceil(runs / most))


def measure(program: Program, seeds: Sequence[int]) -> tuple[dict[str, Any], Lanes]:
    """Compares one run at a time with a round of as many as fit.

    Returns:
      What was found: of how many `lanes` at last, their `gain` in runs an hour over one at a time, and how many `fits`
      the memory; and the lanes to use, which are those that were measured if they pay.
    """
    state, batch, hyper = program.init(np.uint32(0)), random_batch(program), Hyper.of(program.spec)
    placed = program.place(batch.__getitem__)

    def one() -> Any:
        nonlocal state
        state, metrics = program.step(state, placed, hyper)
        return metrics

    seconds = _seconds(one)
    del state
    fits = _fitting(program)
    while (width := round_of(len(seeds), fits)) > 1:
        lanes = Lanes(program, width)
        shared = len({*seeds[:width]}) == 1  # runs of a seed read the same batches
        batches = [batch if shared else np.roll(batch, lane, 0) for lane in range(width)]
        try:
            gain = width * seconds / _seconds_of_lanes(lanes, batches, hyper)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            fits = width // 2
            continue
        finally:
            lanes.clear()
        return {"lanes": width, "gain": gain, "fits": fits}, lanes if gain > LEAST_GAIN else Lanes(program, 1)
    return {"lanes": 1, "gain": 1.0, "fits": fits}, Lanes(program, 1)


def _seconds_of_lanes(lanes: Lanes, batches: Sequence[np.ndarray], hyper: Hyper) -> float:
    for lane in range(lanes.width):
        lanes.put(lane, lanes.program.init(np.uint32(lane)))
    return _seconds(lambda: lanes.step(batches, [hyper] * lanes.width))


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
    device = jax.local_devices()[0]
    memory = (device.memory_stats() or {}).get("bytes_limit")  # less than the device's where workers share it
    versions = __version__, version("jax"), version("jaxlib")
    key = json.dumps([program_key(program.spec, program.execution), device.device_kind, memory, versions])
    return cache.folder() / "lanes" / f"{hashlib.sha256(key.encode()).hexdigest()[:12]}.json"


def _keep(path: Path, found: dict[str, Any]) -> None:
    with contextlib.suppress(OSError, RuntimeError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
        whole = found.keys() == {"lanes", "gain", "fits"} and all(0 < number < math.inf for number in found.values())
        return found if whole else None
    except (OSError, ValueError, TypeError, AttributeError):
        return None
