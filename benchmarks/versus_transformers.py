"""One training step on CPU beside that of Hugging Face `transformers` with PyTorch: tokens a second of each side.

    pip install torch==2.13.0 && pip install --editable '.[benchmarks]'  # torch first, alone: its build for CPUs
    python benchmarks/versus_transformers.py [--only PATTERN] [--turns N] [--json]

Both train one model (a dense one is OLMo 2 there, the others are FlexOlmo) from the same weights on the same batch, in
float32: forward and backward pass of the cross-entropy, gradients clipped by their norm, AdamW. Their losses over the
first steps are compared, and the benchmark ends where they differ. Each side has a process of its own with all cores,
and the better of two environments, plain or with the allocator's settings of a sweep's worker. Our scan over layers is
unrolled (`execution.unroll`), as in runs at nano; PyTorch has its fused AdamW, and experts by `grouped_mm`, the fastest
that `transformers` has. The two take turns while the other sleeps; the ratio is the median over turns.
"""

import argparse
import contextlib
import fnmatch
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from turns import Process, serve

from slicedice.machine import CPU_ENVIRONMENT, cores

POSITIONS, BATCH, VOCABULARY = 256, 8, 1024
LAYERS = {  # by n, k and F
    "1, 1, 512": "dense",
    "8, 2, 256": "n=8 k=2 g=1/2",
    "32, 8, 64": "n=32 k=8 g=1/8",
    "128, 8, 64": "n=128 k=8 g=1/8",
    "256, 16, 32": "n=256 k=16 g=1/16",
}
ENVIRONMENTS = {"plain": {}, "worker's": CPU_ENVIRONMENT}
STEPS, TOLERANCE = 3, 2e-4
"""First steps whose losses are compared, and nats that they may be apart; later, close decisions of routers differ."""

Step = Callable[[], float]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", help="rows whose n, k, F match, as in '8, 2, 256'")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        step = SIDES[options.side](options.only)
        serve([step() for _ in range(STEPS)], step, BATCH * POSITIONS)
        return
    rows = []
    for name in LAYERS:
        if fnmatch.fnmatch(name, options.only):
            rows.append(measure(name, options.turns))
            if not options.json:
                print("{n_k_F}: {ours:,} tokens/s over {theirs:,}, {ratio} times".format_map(rows[-1]), flush=True)
    if options.json:
        print(json.dumps({"rows": rows, "ratios": {f"n, k, F = {row['n_k_F']}": row["ratio"] for row in rows}}))


def measure(name: str, turns: int) -> dict[str, Any]:
    """Tokens a second of both sides, and the median ratio."""
    with contextlib.ExitStack() as stack:

        def started(side: str, environment: str) -> Process:
            variables = {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"} | ENVIRONMENTS[environment]
            command = [__file__, "--side", side, "--only", name]
            return stack.enter_context(contextlib.closing(Process(command, variables)))

        best, environments = dict[str, Process](), dict[str, str]()
        for side in SIDES:
            both = {environment: started(side, environment) for environment in ENVIRONMENTS}
            rates = {one: statistics.median(process.turn() for _ in range(3)) for one, process in both.items()}
            environments[side] = max(rates, key=rates.__getitem__)
            best[side] = both[environments[side]]
        losses = [process.said for process in best.values()]
        apart = np.abs(np.subtract(*losses)).max()
        if apart > TOLERANCE:
            sys.exit(f"{name}: losses differ by {apart} nats: {losses}")
        rates = [{side: process.turn() for side, process in best.items()} for _ in range(turns)]
    return {
        "n_k_F": name,
        **{side: round(statistics.median(turn[side] for turn in rates)) for side in SIDES},
        "ratio": round(statistics.median(turn["ours"] / turn["theirs"] for turn in rates), 2),
        "environments": environments,
        "losses_apart": float(apart),
    }


def batch() -> np.ndarray:
    """Tokens [B, S + 1], the same for both sides."""
    return np.random.default_rng(0).integers(VOCABULARY, size=(BATCH, POSITIONS + 1), dtype=np.int32)


def program(name: str) -> tuple[Any, Any]:
    """Our run, with what `transformers` does not have turned off, and its compiled step."""
    from slicedice.spec import resolve, study_config
    from slicedice.spec.config import override
    from slicedice.training import Program

    fields = {
        "scale": "versus",
        "compute_dtype": "float32",
        "model.d_model": 128,
        "model.layers": 4,
        "model.heads": 4,
        "model.d_ff": 512,
        "model.vocab_size": VOCABULARY,
        "model.experts": LAYERS[name],
        "router.group": 0,
        "data.sequence_length": POSITIONS,
        "budget.batch_size": BATCH,
        "budget.tokens": 1000 * BATCH * POSITIONS,
        "optimizer.learning_rate": 1e-3,
        "optimizer.warmup_steps": 1,
        "optimizer.final_fraction": 1.0,
        "optimizer.output_z_loss": 0.0,
        "execution.micro_batch": 0,
        "execution.unroll": 4,
    }
    if LAYERS[name] != "dense":
        fields |= {"router.alpha": 0.0, "router.z_loss": 0.0}
    spec, execution = resolve(override(study_config(), fields, where="the benchmark"))
    return spec, Program(spec, execution)


def ours(name: str) -> Step:
    """A function that takes our step and returns its loss."""
    from slicedice.training import Hyper

    spec, compiled = program(name)
    state, hyper, tokens = compiled.init(np.uint32(0)), Hyper.of(spec), batch()

    def step() -> float:
        nonlocal state
        state, metrics = compiled.step(state, compiled.place(lambda rows: tokens[rows]), hyper)
        return float(metrics["loss"])

    return step


def theirs(name: str) -> Step:
    """The same of PyTorch."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]
    from safetensors.numpy import save_file

    from slicedice import hugging_face

    spec, compiled = program(name)
    with tempfile.TemporaryDirectory() as folder:
        named = hugging_face.named(hugging_face.leaves(compiled.init(np.uint32(0)).params))
        save_file({key: np.ascontiguousarray(array) for key, array in named}, Path(folder) / "model.safetensors")
        (Path(folder) / "config.json").write_text(json.dumps(hugging_face.config(spec, 0)))
        experts = {} if LAYERS[name] == "dense" else {"experts_implementation": "grouped_mm"}
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, **experts)
    torch.set_num_threads(len(cores()))
    model.train()
    o = spec.optimizer
    optimizer = torch.optim.AdamW(
        model.parameters(), o.learning_rate, (o.b1, o.b2), o.eps, weight_decay=o.weight_decay, fused=True
    )
    tokens = torch.from_numpy(batch().astype(np.int64))

    def step() -> float:
        logits = model(tokens[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), o.clip)
        optimizer.step()
        return loss.item()

    return step


SIDES: dict[str, Callable[[str], Step]] = {"ours": ours, "theirs": theirs}

if __name__ == "__main__":
    main()
