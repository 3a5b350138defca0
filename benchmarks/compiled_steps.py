"""Memory and traffic of whole training steps, by our arithmetic and by the TPU's compiler, for pods that are not there.

    python benchmarks/compiled_steps.py [--only PATTERN] [--json FILE] [--known FILE]

Needs the `libtpu` package and no TPU; a step takes about a minute. `--known` reads answers from a file instead of
asking the compiler, to see what a change of the arithmetic does. The steps are of every scale of the study and every
kind of layer. docs/parallel.md shows the first two, and tests hold the arithmetic to `results/compiled_steps.json`.
"""

import argparse
import fnmatch
import json
import os
import time
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from slicedice.cost import cost
from slicedice.cost.checking import Program, check
from slicedice.cost.topology import parse_topology
from slicedice.grid import load_config
from slicedice.spec import resolve
from slicedice.spec.config import override

SHARED = "data=2 expert=4"
STEPS = [
    # scale, layer, topology, mesh, micro-batch, rematerialised
    ("300m", "n=32 g=1/4", "v5e:4x4", "data=4 expert=4", 8, True),
    ("300m", "n=32 g=1/4", "v5p:4x4x4", "data=8 expert=8", 8, True),
    ("300m", "n=32 g=1/4", "v5p:4x4x4", "data=64", 8, False),
    ("300m", "dense", "v5e:4x4", "data=16", 8, True),
    *(
        (scale, layer, "v5p:2x2x2", "data=8" if layer == "dense" else SHARED, 8, remat)
        for scale in ("10m", "20m", "50m", "80m", "110m", "200m", "300m")
        for layer in ("dense", "n=32 g=1/4")
        for remat in (True, False)
    ),
    *(
        ("300m", layer, "v5p:2x2x2", SHARED, 8, True)
        for layer in ("n=256 g=1/16", "n=512 g=1/4", "n=16 g=1", "n=8 k=2 g=1/4 + n=16 k=4 g=1/8")
    ),
    ("300m", "n=256 g=1/16", "v5p:2x2x2", SHARED, 8, False),
    ("300m", "n=32 g=1/4", "v5p:2x2x2", "expert=8", 8, True),
    ("300m", "n=32 g=1/4", "v5p:2x2x2", "data=8", 8, True),
    ("300m", "n=32 g=1/4", "v5p:2x2x2", SHARED, 32, True),
    ("110m", "n=1024 g=1/64", "v5p:2x2x2", SHARED, 8, True),
    ("200m", "n=64 g=1/8", "v5e:4x4", "data=4 expert=4", 16, True),
    ("80m", "n=64 g=1/8", "v5e:4x4", "data=16", 8, True),
    ("20m", "n=32 g=1/4", "v5e:2x2", "", 8, False),
    ("10m", "n=32 g=1/4", "v5e:2x2", "", 32, False),
    ("300m", "n=32 g=1/4", "tpu7x:2x2x1", SHARED, 8, True),
    ("110m", "n=32 g=1/4", "v6e:2x4", SHARED, 8, True),
]


def main() -> None:
    """Compiles, compares, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", help="steps whose name matches")
    parser.add_argument("--json", help="file to write")
    parser.add_argument("--known", help="file that --json wrote, to read answers from")
    options = parser.parse_args()
    known = {row["step"]: row for row in _read(options.known)["steps"]} if options.known else {}
    rows = []
    for step in STEPS:
        name = _name(*step)
        if fnmatch.fnmatch(name, options.only) and (not known or name in known):
            rows.append(_row(name, step, known.get(name)))
            print(_line(rows[-1]), flush=True)
    worst = {part: max((abs(row[part] - 1) for row in rows if row[part]), default=0) for part in ("memory", "traffic")}
    print(", ".join(f"{part} off by {share:.0%} at most" for part, share in worst.items()))
    if options.json:
        versions = {name: version(name) for name in ("jax", "libtpu", "slicedice")}
        with open(options.json, "w") as file:
            json.dump({"versions": versions, "date": time.strftime("%Y-%m-%d"), "steps": rows}, file, indent=1)


def _row(name: str, step: tuple, known: dict[str, Any] | None) -> dict[str, Any]:
    scale, layer, pod, mesh, micro_batch, remat = step
    execution = {"execution.mesh": mesh, "execution.micro_batch": micro_batch, "execution.remat": remat}
    spec, run = resolve(override(load_config(scale), {"model.experts": layer, **execution}, where="a benchmark"))
    topology = parse_topology("topology", pod)
    counted = cost(spec, run, topology.rate)
    answer = known["answer"] if known else next(iter(check([Program(spec, run, topology)], 1, None, _quiet).values()))
    return {
        "step": name,
        "scale": scale,
        "layer": layer,
        "topology": pod,
        "counted": {"memory": counted.memory, "traffic": counted.traffic},
        "answer": {key: value for key, value in answer.items() if key != "collectives"},
        "collectives": known["collectives"] if known else answer.get("collectives", [])[:12],
        "memory": counted.bytes / answer["bytes"] if answer.get("bytes") else None,
        "traffic": sum(counted.traffic.values()) / answer["traffic"] if answer.get("traffic") else None,
        "execution": asdict(run),
    }


def _name(scale: str, layer: str, pod: str, mesh: str, micro_batch: int, remat: bool) -> str:
    return f"{scale} {layer}, {pod} {mesh or 'one device'}, micro-batch {micro_batch}{', remat' if remat else ''}"


def _line(row: dict[str, Any]) -> str:
    answer = row["answer"]
    if "error" in answer:
        return f"{row['step']}: {answer['error']}"
    counted = {part: sum(own.values()) / 1e9 for part, own in row["counted"].items()}
    memory = f"memory {counted['memory']:.2f} GB counted, {answer['bytes'] / 1e9:.2f} compiled ({row['memory']:.2f})"
    moved = f"traffic {counted['traffic']:.2f} GB counted, {answer['traffic'] / 1e9:.2f} compiled"
    ratio = f" ({row['traffic']:.2f})" if row["traffic"] else ""
    return f"{row['step']}: {memory}; {moved}{ratio}; {answer['seconds']:.0f} s"


def _read(path: str) -> dict[str, Any]:
    with open(os.fspath(path)) as file:
        return json.load(file)


def _quiet(*_: object) -> None:
    """Says nothing."""


if __name__ == "__main__":
    main()
