"""Time of the MoE step over the dense one's at equal active FLOPs, and how much of its growth is the optimizer's bytes.

    python benchmarks/active_flops.py [--turns N] [--json]

All layers have k*g = 1: their experts cost a token what the dense FFN does. On a CPU the model is that of
versus_transformers.py, on all cores; on an accelerator the study's 10m. Steps take turns in one process; a ratio is the
median of those of neighbours. AdamW reads a parameter, its gradient and both moments, and writes a parameter and both
moments: 28 bytes a parameter, at the rate of a large copy. That is what has to grow with n. `growth_explained` is the
share that these bytes have of the time that a step takes beyond that of the MoE layer with the fewest experts, where
they have grown at all.
`of_products` and `of_copying` are the milliseconds that a step's FLOPs would take at the rate of a large matrix
product, and the optimizer's bytes at that of the copy.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from slicedice.machine import CPU_ENVIRONMENT, has_accelerator

ADAMW_BYTES = 4 * (4 + 3)
"""That AdamW moves for a parameter: numbers of four bytes, four read and three written."""
ON_ACCELERATOR = ("dense", "n=8 k=2 g=1/2", "n=256 k=16 g=1/16")
SEQUENCES = 64
"""Of a step on an accelerator; the study's 512 would add time alone."""


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not has_accelerator() and not os.environ.items() >= CPU_ENVIRONMENT.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | CPU_ENVIRONMENT)
    import jax.numpy as jnp
    from grouped_matmul import measured_rates
    from versus_transformers import LAYERS

    scale = "10m" if has_accelerator() else "versus"
    names = LAYERS.values() if scale == "versus" else ON_ACCELERATOR
    steps, specs = {}, {}
    for name in names:
        steps[name], specs[name] = stepping(scale, name)
    turns = [{name: step() for name, step in steps.items()} for _ in range(options.turns)]
    rates, rows = measured_rates(jnp.float32 if scale == "versus" else jnp.bfloat16), list[dict[str, Any]]()
    for name in names:
        spec, milliseconds = specs[name], 1e3 * statistics.median(turn[name] for turn in turns)
        moved = ADAMW_BYTES * spec.model.parameters()
        length = spec.data.sequence_length
        flops = spec.budget.batch_size * length * spec.model.flops_per_token(length)
        row = {"layer": name, "milliseconds": milliseconds, "of_products": 1e3 * flops / rates.operations}
        row |= {"optimizer_bytes": moved, "of_copying": 1e3 * moved / rates.bytes}
        row["over_dense"] = round(statistics.median(turn[name] / turn["dense"] for turn in turns), 3)
        if len(rows) > 1 and moved > 1.5 * rows[1]["optimizer_bytes"]:  # rows[1]: the MoE layer with the fewest experts
            longer, copying = (row[key] - rows[1][key] for key in ("milliseconds", "of_copying"))
            row["growth_explained"] = copying / longer if longer > 0 else None
        rows.append(row)
    if options.json:
        ratios = {f"{scale} {row['layer']} over dense": row["over_dense"] for row in rows[1:]}
        explained = {row["layer"]: row.get("growth_explained") for row in rows}
        ratios |= {f"bytes of growth, {scale} {layer}": round(s, 3) for layer, s in explained.items() if s is not None}
        print(json.dumps({"rows": rows, "rates": rates._asdict(), "ratios": ratios}))
    else:
        for row in rows:
            print(", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))


def stepping(scale: str, experts: str) -> tuple[Callable[[], float], Any]:
    """A function that takes a step, waits for it and returns its seconds; and the run's spec."""
    import jax
    import numpy as np
    from versus_transformers import LAYERS, program

    from slicedice.grid import load_config
    from slicedice.spec import resolve
    from slicedice.spec.config import override
    from slicedice.training import Hyper, Program

    if scale == "versus":
        spec, compiled = program(next(name for name, layer in LAYERS.items() if layer == experts))
    else:
        fields = {"model.experts": experts, "budget.batch_size": SEQUENCES}
        spec, execution = resolve(override(load_config(scale), fields, where="the benchmark"))
        compiled = Program(spec, execution)
    shape = spec.budget.batch_size, spec.data.sequence_length + 1
    tokens = np.random.default_rng(0).integers(spec.model.vocab_size, size=shape, dtype=np.int32)
    state, hyper = compiled.init(np.uint32(0)), Hyper.of(spec)
    batch = compiled.place(lambda rows: tokens[rows])

    def step() -> float:
        nonlocal state
        begin = time.perf_counter()
        state, metrics = compiled.step(state, batch, hyper)
        jax.block_until_ready((state, metrics))
        return time.perf_counter() - begin

    for _ in range(3):  # compiles; routers differ from their even start
        step()
    return step, spec


if __name__ == "__main__":
    main()
