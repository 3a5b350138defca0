"""Tokens a second of the nano MoE step (n=128, k=4) over those of the dense step, all timed in one process.

    python benchmarks/nano_step.py [--system_allocator] [--json]

The programs take turns, so that a machine whose speed drifts slows all; a figure is the median of the ratios of
neighbouring steps. One core and the allocator's settings are those of a sweep's worker. Where the C++ kernel is
available, the step with plain XLA's (`blocks`) is timed as well.
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
    parser.add_argument("--system_allocator", action="store_true", help="without the settings that workers have")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    as_worker(options.system_allocator)
    from slicedice.kernels.grouped_matmul import choose

    steps = {"dense": step("dense", ""), choose(): step("n=128 k=4 g=1/4", "")}
    if choose() == "native":
        steps["blocks"] = step("n=128 k=4 g=1/4", "blocks")
    turns = [{name: take() for name, take in steps.items()} for _ in range(TURNS)]
    rows = {
        name: {
            "milliseconds": round(1e3 * statistics.median(turn[name] for turn in turns), 2),
            "tokens_a_second_over_dense": round(statistics.median(turn["dense"] / turn[name] for turn in turns), 3),
        }
        for name in steps
    }
    if options.json:
        ratios = {f"{name} over dense": rows[name]["tokens_a_second_over_dense"] for name in rows if name != "dense"}
        print(json.dumps({"steps": rows, "ratios": ratios}))
    else:
        print("\n".join(f"{name}: {values}" for name, values in rows.items()))


def as_worker(system_allocator: bool) -> None:
    """Starts this process anew as the local launcher starts a worker: on its core, with its allocator."""
    from slicedice.machine import slots

    slot = slots()[-1]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, slot.cores)
    if system_allocator or all(os.environ.get(name) == value for name, value in slot.environment.items()):
        return
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | slot.environment)


def step(experts: str, implementation: str):
    """Compiles the nano step with these experts; returns a function that takes one and its seconds."""
    import jax
    import jax.numpy as jnp

    from slicedice import files
    from slicedice.spec import resolve
    from slicedice.spec.config import override
    from slicedice.training import Hyper, Program

    config = files.load("experiments", "nano").get_config()
    fields = {"model.experts": experts, "execution.implementation": implementation}
    spec, execution = resolve(override(config, fields, where="the benchmark"))
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
