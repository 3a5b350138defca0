"""How fast steps of a program are in a process like this one: `python -m slicedice.training.speed`, a child of a sweep.

Reads a run as a line of JSON on standard input, compiles its step and says so. Told to go on by another line, it takes
steps for two seconds, beside others that do the same, and says how many in how long. It writes nothing, but for what
the compiler keeps in the user's cache folder, where workers find it.
"""

import json
import sys
import time

import jax
import numpy as np

from slicedice import cache
from slicedice.spec import Execution, from_json
from slicedice.training.gradients import Hyper
from slicedice.training.packing import random_batch
from slicedice.training.program import Program

WARM_STEPS = 2
LEAST_STEPS, LEAST_SECONDS = 3, 2.0
"""That are taken of the time that counts, whichever ends later."""


def main() -> int:
    """Answers one request, or ends when nobody is left to ask; returns its exit status."""
    cache.use_compilation_cache()
    request = json.loads(sys.stdin.readline())
    program = Program(from_json(request["spec"]), Execution(**request["execution"]))
    state, hyper = program.init(np.uint32(0)), Hyper.of(program.spec)
    batch = program.place(random_batch(program).__getitem__)
    for _ in range(WARM_STEPS):
        state, metrics = program.step(state, batch, hyper)
        jax.block_until_ready(metrics)
    print("ready", flush=True)
    if not sys.stdin.readline():
        return 0
    steps, began = 0, time.monotonic()
    while steps < LEAST_STEPS or time.monotonic() - began < LEAST_SECONDS:
        state, metrics = program.step(state, batch, hyper)
        jax.block_until_ready(metrics)
        steps += 1
    print(json.dumps({"steps": steps, "seconds": time.monotonic() - began}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
