"""Utilization of a training step over what a large matrix product reaches on the device that is here.

    python benchmarks/peak.py [--turns N] [--json]

The study's 10m on an accelerator, in bfloat16; on a CPU nano, in float32, to see that it runs. FLOPs are those a run is
defined by, forward and backward pass, without what rematerialisation adds; over the time of a step, over the rate of a
product of large square matrices of the same type, measured before and after. Kernels of expert layers, attention and
cross-entropy, and all that is no product, is in the step's time. Where cross-entropy has kernels, which hold no logits
in memory, it is also timed alone, with its gradients: in chunks of logits over with kernels.
"""

import argparse
import json
import statistics
import time

SEQUENCES = 64
"""Of a step on an accelerator; the study's 512 would add time alone."""
STEPS = (("dense", SEQUENCES), ("n=32 g=1/4", SEQUENCES), ("dense", 8))
"""Layers, and sequences at once, of which 8 is what a run takes unless `plan --fit` finds room for more."""
ON_CPU = (("dense", 0), ("n=32 g=1/4", 0))


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    from slicedice.machine import has_accelerator, settle_platform

    settle_platform()
    import jax.numpy as jnp
    from grouped_matmul import measured_rates

    scale, dtype = ("10m", jnp.bfloat16) if has_accelerator() else ("nano", jnp.float32)
    before = measured_rates(dtype).operations
    steps = STEPS if has_accelerator() else ON_CPU
    rows = [measured(scale, *step, options.turns) for step in steps]
    rate = max(before, measured_rates(dtype).operations)
    for row in rows:
        row["share"] = float(f"{row['flops'] / row['seconds'] / rate:.3g}")
        if not options.json:
            print("{step}: {seconds:.4f} s, {tokens_per_second:,.0f} tokens/s, {share:.1%}".format_map(row), flush=True)
    ratios = {f"{row['step']} of the matmul rate": row["share"] for row in rows}
    if ratio := chunks_over_kernels(options.turns):
        ratios["10m cross-entropy, chunks over kernels"] = ratio
        if not options.json:
            print(f"10m cross-entropy, chunks over kernels: {ratio:.2f}", flush=True)
    if options.json:
        print(json.dumps({"rows": rows, "matmul_flops_a_second": rate, "ratios": ratios}))
    else:
        print(f"of {rate:.3g} FLOP/s in a large product")


def measured(scale: str, experts: str, at_once: int, turns: int) -> dict:
    """Median time of a step, and its FLOPs; `at_once` is its micro-batch, 0 on CPU."""
    import numpy as np

    from slicedice.grid import load_config
    from slicedice.spec import resolve
    from slicedice.spec.config import override
    from slicedice.training import Hyper, Program

    changes: dict = {"model.experts": experts}
    if at_once:
        changes |= {"budget.batch_size": SEQUENCES, "execution.micro_batch": at_once}
    spec, execution = resolve(override(load_config(scale), changes, where="a benchmark"))
    program, hyper = Program(spec, execution), Hyper.of(spec)
    shape = spec.budget.batch_size, spec.data.sequence_length + 1
    tokens = np.random.default_rng(0).integers(spec.model.vocab_size, size=shape, dtype=np.int32)
    state, batch, seconds = program.init(np.uint32(0)), program.place(lambda rows: tokens[rows]), []
    for _ in range(2 + turns):  # the first compiles
        begin = time.perf_counter()
        state, metrics = program.step(state, batch, hyper)
        float(metrics["loss"])
        seconds.append(time.perf_counter() - begin)
    middle, count = statistics.median(seconds[2:]), spec.budget.batch_size * spec.data.sequence_length
    flops = count * spec.model.flops_per_token(spec.data.sequence_length)
    step = f"{scale} {experts}" + (f", {at_once} at once" if at_once else "")
    return {"step": step, "seconds": middle, "tokens_per_second": count / middle, "flops": flops}


def chunks_over_kernels(turns: int) -> float | None:
    """Median time of the 10m's cross-entropy and gradients in chunks, over that of its kernels; None if it has none."""
    import jax
    import jax.numpy as jnp

    from slicedice.model import cross_entropy

    keys = jax.random.split(jax.random.key(0), 3)
    rows = jax.random.normal(keys[0], (16384, 48), jnp.bfloat16)
    head = jax.random.normal(keys[1], (48, 100_352), jnp.bfloat16) / 48**0.5
    targets = jax.random.randint(keys[2], (16384,), 0, 100_352)
    if not cross_entropy._kernels(rows, head):
        return None

    def compiled():
        def loss(rows, head):
            return cross_entropy.mean_loss(rows, head, targets, 1e-5)[0]

        return jax.jit(jax.value_and_grad(loss, (0, 1))).lower(rows, head).compile()

    ways, chosen = [compiled()], cross_entropy._kernels
    cross_entropy._kernels = lambda *_: None
    try:
        ways.append(compiled())
    finally:
        cross_entropy._kernels = chosen
    seconds = [[], []]
    for _ in range(2 + turns):
        for way, times in zip(ways, seconds, strict=True):
            begin = time.perf_counter()
            jax.block_until_ready(way(rows, head))
            times.append(time.perf_counter() - begin)
    kernels, chunks = (statistics.median(times[2:]) for times in seconds)
    return float(f"{chunks / kernels:.3g}")


if __name__ == "__main__":
    main()
