"""Tokens a second of the nano MoE step (n=128, k=4) over those of the dense step, both timed in one process.

    python benchmarks/nano_step.py [--json]

The two programs take turns, so that a machine whose speed drifts slows both; the figure is the median of
the ratios of neighbouring steps. One core, as a sweep's worker has.
"""

import argparse
import json
import os
import statistics
import sys
import time

TURNS = 25


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    as_worker()
    dense, moe = step("dense"), step("n=128 k=4 g=1/4")
    pairs = [(dense(), moe()) for _ in range(TURNS)]
    result = {
        "dense_ms": round(1e3 * statistics.median(d for d, _ in pairs), 2),
        "moe_ms": round(1e3 * statistics.median(m for _, m in pairs), 2),
        "tokens_per_second_ratio": round(statistics.median(d / m for d, m in pairs), 3),
        "turns": TURNS,
    }
    print(json.dumps(result) if options.json else "\n".join(f"{name}: {value}" for name, value in result.items()))


def as_worker() -> None:
    """Starts this process anew as the local launcher starts a worker: on its core, with its allocator."""
    from slicedice.machine import slots

    slot = slots()[-1]
    if all(os.environ.get(name) == value for name, value in slot.environment.items()):
        return
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, slot.cores)
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | slot.environment)


def step(experts: str):
    """Compiles the nano step with these experts; returns a function that takes one and its seconds."""
    import jax
    import jax.numpy as jnp

    from slicedice import files
    from slicedice.spec import resolve
    from slicedice.spec.config import override
    from slicedice.training import Hyper, Program

    config = files.load("experiments", "nano").get_config()
    spec, execution = resolve(override(config, {"model.experts": experts}, where="the benchmark"))
    program, hyper = Program(spec, execution), Hyper.of(spec)
    shape = (spec.budget.batch_size, spec.data.sequence_length + 1)
    batch = jax.random.randint(jax.random.key(0), shape, 0, 256)
    state = program.init(jnp.uint32(0))
    # Past the first steps, routers differ from their even start.
    for _ in range(5):
        state, _ = program.step(state, batch, hyper)

    def timed() -> float:
        nonlocal state
        begin = time.perf_counter()
        state, metrics = program.step(state, batch, hyper)
        jax.block_until_ready((state, metrics))
        return time.perf_counter() - begin

    return timed


if __name__ == "__main__":
    main()
