"""Tokens a second of a sweep's workers together over one process with all cores, for steps at nano.

    python benchmarks/whole_machine.py [--turns N] [--json]

The workers are those that the local launcher makes on a CPU: a process for each slot, with its cores and environment;
beside them, one process that has all cores and the same environment. All start and compile once; then the workers
together and the one process take turns, while the other side sleeps. The ratio is the median over turns.
"""

import argparse
import contextlib
import json
import os
import statistics

from turns import Process, serve

from slicedice.machine import cores, slots

os.environ["JAX_PLATFORMS"] = "cpu"

LAYERS = {"nano dense": "dense", "nano n=128 k=4 g=1/4": "n=128 k=4 g=1/4"}
SIDES = ("workers", "one")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", choices=LAYERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve({"cores": cores()}, *stepping(LAYERS[options.serve]))
        return
    rows = []
    for name in LAYERS:
        rows.append(measured(name, options.turns))
        if not options.json:
            print("{layer}: {workers:,} tokens/s over {one:,}, {ratio} times, {processes} workers".format_map(rows[-1]))
    if options.json:
        print(json.dumps({"rows": rows, "ratios": {row["layer"]: row["ratio"] for row in rows}}))


def measured(name: str, turns: int) -> dict[str, str | int | float]:
    """Tokens a second of both sides, and the median ratio."""
    with contextlib.ExitStack() as stack:
        sides: dict[str, list[Process]] = {}
        for side, places in zip(SIDES, (slots(), slots(max_concurrent=1)), strict=True):
            for slot in places:
                process = Process([__file__, "--serve", name], slot.environment, slot.cores)
                sides.setdefault(side, []).append(stack.enter_context(contextlib.closing(process)))
        for processes in sides.values():  # the first turn is slower
            together(processes)
        rates = [{side: together(processes) for side, processes in sides.items()} for _ in range(turns)]
    return {
        "layer": name,
        "processes": len(sides["workers"]),
        **{side: round(statistics.median(turn[side] for turn in rates)) for side in SIDES},
        "ratio": round(statistics.median(turn["workers"] / turn["one"] for turn in rates), 2),
    }


def together(processes: list[Process]) -> float:
    """Tokens a second of all of them, at once."""
    for process in processes:
        process.ask()
    return sum(process.answer() for process in processes)


def stepping(experts: str):
    """A function that takes a compiled step at nano and waits for it, and the step's tokens."""
    import jax
    import numpy as np

    from slicedice.grid import load_config
    from slicedice.spec import resolve
    from slicedice.spec.config import override
    from slicedice.training import Hyper, Program

    spec, execution = resolve(override(load_config("nano"), {"model.experts": experts}, where="the benchmark"))
    program, hyper = Program(spec, execution), Hyper.of(spec)
    shape = spec.budget.batch_size, spec.data.sequence_length + 1
    tokens = np.random.default_rng(0).integers(spec.model.vocab_size, size=shape, dtype=np.int32)
    state, batch = program.init(np.uint32(0)), program.place(lambda rows: tokens[rows])

    def step() -> None:
        nonlocal state
        state, metrics = program.step(state, batch, hyper)
        jax.block_until_ready((state, metrics))

    step()  # compiles
    return step, spec.budget.batch_size * spec.data.sequence_length


if __name__ == "__main__":
    main()
