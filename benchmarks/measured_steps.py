"""Whole training steps on the device that is here: memory by our arithmetic and by the compiler, and time.

    python benchmarks/measured_steps.py [--only PATTERN] [--implementation NAME] [--processes N] [--seconds N]
                                        [--json] [--save]

For one GPU, or a TPU's device, of 80 GB or more; on an H200 the first twelve took 2.5 minutes. Every step has a process
of its own, so that what the device says of memory in use is the step's: `--processes` of them compile side by side,
then run one by one on random tokens. `compiled` is what the compiler asks for: arguments, results that are not written
over them, and temporary values; `peak` is what the device had in use at most. Utilization is that of `plan`: FLOPs by
which a run is defined, and what rematerialisation adds, of the dense bfloat16 peak. `--save` writes
results/measured_steps-DEVICE.json, which tests hold the arithmetic of memory to.
"""

import argparse
import fnmatch
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
TURNS = 3
BATCH = 64
"""Sequences of a step, or two micro-batches; the study's 512 would add time alone."""
LAYERS = ("dense", "n=32 g=1/4")
STEPS = [
    # scale, layer, micro-batch, rematerialised
    *((scale, layer, 8, remat) for scale in ("110m", "300m", "10m") for layer in LAYERS for remat in (False, True)),
    *(("110m", "n=512 g=1/64", 8, remat) for remat in (False, True)),
    *(("10m", layer, 64, False) for layer in LAYERS),
    *(("50m", layer, 8, remat) for layer in LAYERS for remat in (False, True)),
    ("110m", "n=8 k=2 g=1/4 + n=16 k=4 g=1/8", 8, True),
    ("110m", "n=32 g=1/4", 32, False),
    ("300m", "n=32 g=1/4", 32, True),
    ("300m", "n=256 g=1/16", 8, True),
]
Step = tuple[str, str, int, bool]
KEYS = ("scale", "layer", "micro_batch", "remat")


def main() -> None:
    """Compiles, runs, compares, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", help="steps whose name matches")
    parser.add_argument("--implementation", default="", help="of the expert layers' kernels; by platform if not given")
    parser.add_argument("--processes", type=int, default=8, help="that compile at once")
    parser.add_argument("--seconds", type=float, default=3600, help="after which no further steps are begun")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--step", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step is not None:
        _measure(STEPS[options.step], options.implementation)
        return
    began = time.monotonic()
    chosen = [i for i, step in enumerate(STEPS) if fnmatch.fnmatch(_name(*step), options.only)]
    rows: list[dict[str, Any]] = []
    for first in range(0, len(chosen), options.processes):
        if time.monotonic() - began > options.seconds:
            print(f"no time left for {len(chosen) - first} steps", file=sys.stderr)
            break
        for row in _side_by_side(chosen[first : first + options.processes], options.implementation):
            rows.append(row)
            print(_line(row), flush=True, file=sys.stderr if options.json else sys.stdout)
            if options.save and "device" in row:
                _save(rows)
    if options.json:
        print(json.dumps({"steps": rows, "ratios": _ratios(rows)}))


def _ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Memory of every step; time of MoE steps over that of the dense one, all else alike."""
    ran = {_name(*(row[key] for key in KEYS)): row for row in rows if "seconds" in row}
    ratios = {name: round(sum(row["counted"].values()) / row["compiled"], 3) for name, row in ran.items()}
    ratios = {f"{name}: memory counted over compiled": ratio for name, ratio in ratios.items()}
    for name, row in ran.items():
        dense = ran.get(_name(row["scale"], "dense", row["micro_batch"], row["remat"]))
        if dense and row is not dense:
            ratios[f"{name}: time over dense"] = round(row["seconds"] / dense["seconds"], 3)
    return ratios


def _save(rows: list[dict[str, Any]]) -> None:
    shared = ("device", "packages", "implementation")
    measured = {"command": " ".join(["python", *sys.argv]), "date": time.strftime("%Y-%m-%d")}
    measured |= {key: rows[-1][key] for key in shared}
    steps = [{key: value for key, value in row.items() if key not in (*shared, "counted")} for row in rows]
    device = re.sub(r"[^A-Za-z0-9]+", "-", measured["device"]).strip("-")
    (RESULTS / f"measured_steps-{device}.json").write_text(json.dumps(measured | {"steps": steps}, indent=1) + "\n")


def _side_by_side(steps: list[int], implementation: str):
    """A row of each: all compile, then each has the device to itself."""
    command = [sys.executable, __file__, "--implementation", implementation, "--step"]
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    pipes: dict[str, Any] = {**dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE), "text": True}
    children = [subprocess.Popen([*command, str(step)], env=environment, **pipes) for step in steps]
    compiled = [child.stdout.readline() for child in children]  # pyright: ignore[reportOptionalMemberAccess]
    for step, child, line in zip(steps, children, compiled, strict=True):
        out, error = child.communicate("go\n")
        last = (out or line).splitlines()[-1:]
        said = json.loads(last[0]) if last else {}
        failure = {"error": (error.strip().splitlines() or ["nothing said"])[-1][:300]} if child.returncode else {}
        yield dict(zip(KEYS, STEPS[step], strict=True)) | said | failure


def _measure(step: Step, implementation: str) -> None:
    """Prints what a step's compiler says, then, when told to go on, that and what came of running it."""
    import jax
    import numpy as np

    from slicedice.cost import RATES, cost
    from slicedice.cost.estimate import utilization
    from slicedice.grid import load_config
    from slicedice.machine import accelerator
    from slicedice.provenance import provenance
    from slicedice.spec import resolve
    from slicedice.spec.config import override
    from slicedice.training import Program
    from slicedice.training.gradients import Hyper

    scale, layer, micro_batch, remat = step
    changes = {"model.experts": layer, "budget.batch_size": max(BATCH, 2 * micro_batch)}
    execution = {"micro_batch": micro_batch, "remat": remat, "implementation": implementation}
    changes |= {f"execution.{field}": value for field, value in execution.items()}
    spec, execution = resolve(override(load_config(scale), changes, where="a benchmark"))
    rate = RATES[accelerator() or "cpu"]
    program = Program(spec, execution)
    compiled = program.lower().compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    asked = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    row = {"counted": cost(spec, execution, rate).memory, "compiled": asked + memory.temp_size_in_bytes}
    state = jax.block_until_ready(program.init(np.uint32(0)))
    shape = spec.budget.batch_size, spec.data.sequence_length + 1
    tokens = np.random.default_rng(0).integers(spec.model.vocab_size, size=shape, dtype=np.int32)
    batch, hyper = program.place(lambda rows: tokens[rows]), Hyper.of(spec)
    where = provenance("")
    row |= {"device": where["device"], "packages": where["packages"], "implementation": implementation}
    print(json.dumps(row), flush=True)
    sys.stdin.readline()
    seconds = []
    for _ in range(1 + TURNS):  # the first is slower
        begin = time.perf_counter()
        state, metrics = compiled(state, batch, hyper)
        loss = float(metrics["loss"])
        seconds.append(time.perf_counter() - begin)
    middle = statistics.median(seconds[1:])
    row |= {
        "peak": (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
        "loss": loss,
        "seconds": middle,
        "tokens_per_second": spec.budget.batch_size * spec.data.sequence_length / middle,
        "utilization": utilization(spec, execution, rate, middle),
    }
    print(json.dumps(row), flush=True)


def _name(scale: str, layer: str, micro_batch: int, remat: bool) -> str:
    return f"{scale} {layer}, micro-batch {micro_batch}{', remat' if remat else ''}"


def _line(row: dict[str, Any]) -> str:
    text = _name(row["scale"], row["layer"], row["micro_batch"], row["remat"])
    if "compiled" in row:
        counted = sum(row["counted"].values())
        text += f": {counted / 1e9:.2f} GB counted, {row['compiled'] / 1e9:.2f} compiled"
        text += f" ({counted / row['compiled']:.2f})"
    if "error" in row:
        return f"{text}; {row['error']}"
    peak = f", {row['peak'] / 1e9:.2f} in use at most" if row["peak"] else ""
    return (
        f"{text}{peak}; {1e3 * row['seconds']:.1f} ms, {row['tokens_per_second']:,.0f} tokens/s, "
        f"utilization {row['utilization']:.1%}"
    )


if __name__ == "__main__":
    main()
