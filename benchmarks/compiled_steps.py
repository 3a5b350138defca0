"""Memory and traffic of whole training steps, by our arithmetic and by the TPU's compiler, for pods that are not there.

    python benchmarks/compiled_steps.py [--only PATTERN] [--json] [--save FILE] [--known FILE]

Needs the `libtpu` package and no TPU; a step takes about a minute. `--known` reads a file that `--save` wrote, and asks
the compiler about the steps alone that are not in it. The steps are of every scale of the study and every kind of
layer and router. Constants of the arithmetic were fitted to those in STEPS; those in HELD_OUT are to see what they are
worth elsewhere, and none was used to choose a constant. docs/parallel.md shows the first three, and tests hold the
arithmetic to `results/compiled_steps.json`.
"""

import argparse
import fnmatch
import json
import os
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from typing import Any, NamedTuple

from slicedice.cost import cost
from slicedice.cost.checking import Program, check
from slicedice.cost.topology import parse_topology
from slicedice.grid import load_config
from slicedice.spec import resolve
from slicedice.spec.config import override

SHARED = "data=2 expert=4"
SHOWN = 3
"""Steps whose largest transfers docs/parallel.md shows."""


class Step(NamedTuple):
    """A step to count and to compile; what its fields mean, `study_config` says."""

    scale: str
    layer: str
    topology: str
    mesh: str
    micro_batch: int
    remat: bool
    generalist: str = ""
    router: str = "dropless"

    @property
    def name(self) -> str:
        """As it is printed."""
        layer = self.layer + (f" + generalist {self.generalist}" if self.generalist else "")
        layer += "" if self.router == "dropless" else ", dropping"
        remat = ", remat" if self.remat else ""
        mesh = self.mesh or "one device"
        return f"{self.scale} {layer}, {self.topology} {mesh}, micro-batch {self.micro_batch}{remat}"


STEPS = [
    Step("300m", "n=32 g=1/4", "v5e:4x4", "data=4 expert=4", 8, True),
    Step("300m", "n=32 g=1/4", "v5p:4x4x4", "data=8 expert=8", 8, True),
    Step("300m", "n=32 g=1/4", "v5p:4x4x4", "data=64", 8, False),
    Step("300m", "dense", "v5e:4x4", "data=16", 8, True),
    *(
        Step(scale, layer, "v5p:2x2x2", "data=8" if layer == "dense" else SHARED, 8, remat)
        for scale in ("10m", "20m", "50m", "80m", "110m", "200m", "300m")
        for layer in ("dense", "n=32 g=1/4")
        for remat in (True, False)
    ),
    *(
        Step("300m", layer, "v5p:2x2x2", SHARED, 8, True)
        for layer in ("n=256 g=1/16", "n=512 g=1/4", "n=16 g=1", "n=8 k=2 g=1/4 + n=16 k=4 g=1/8")
    ),
    Step("300m", "n=256 g=1/16", "v5p:2x2x2", SHARED, 8, False),
    Step("300m", "n=32 g=1/4", "v5p:2x2x2", "expert=8", 8, True),
    Step("300m", "n=32 g=1/4", "v5p:2x2x2", "data=8", 8, True),
    Step("300m", "n=32 g=1/4", "v5p:2x2x2", SHARED, 32, True),
    Step("110m", "n=1024 g=1/64", "v5p:2x2x2", SHARED, 8, True),
    Step("200m", "n=64 g=1/8", "v5e:4x4", "data=4 expert=4", 16, True),
    Step("80m", "n=64 g=1/8", "v5e:4x4", "data=16", 8, True),
    Step("20m", "n=32 g=1/4", "v5e:2x2", "", 8, False),
    Step("10m", "n=32 g=1/4", "v5e:2x2", "", 32, False),
    Step("300m", "n=32 g=1/4", "tpu7x:2x2x1", SHARED, 8, True),
    Step("110m", "n=32 g=1/4", "v6e:2x4", SHARED, 8, True),
    Step("10m", "dense", "v5e:4x4", "data=16", 8, False),
    Step("10m", "n=32 g=1/4", "v5e:2x4", "data=8", 8, False),
    Step("20m", "dense", "v5e:4x4", "data=16", 8, False),
    Step("10m", "n=32 k=2 g=1/4", "v5e:2x4", "data=8", 8, False, generalist="1/2"),
    Step("20m", "n=32 g=1/4", "v5e:2x2", "data=4", 8, False),
    Step("10m", "n=32 g=1/4", "v5e:2x2", "data=2 expert=2", 8, False),
    Step("10m", "n=32 g=1/4", "v5e:2x2", "data=4", 8, False, router="default"),
    Step("50m", "n=32 g=1/4", "v5e:2x4", "data=8", 8, False),
    Step("300m", "n=32 k=3 g=1/4", "v5p:2x2x2", SHARED, 8, False, generalist="1/4"),
    Step("20m", "n=64 g=1/8", "v5e:2x4", SHARED, 8, False, router="default"),
    Step("10m", "n=8 k=2 g=1/4 + n=16 k=4 g=1/8", "v5e:2x4", "data=8", 8, False),
    Step("10m", "dense", "v5p:4x4x4", "data=64", 8, False),
    Step("10m", "n=32 g=1/4", "v5e:2x2", "data=4", 8, True),
    Step("110m", "n=64 k=6 g=1/8", "v5p:4x4x4", "data=64", 8, False, generalist="1/4"),
    Step("300m", "n=32 k=3 g=1/4", "v5e:4x4", "data=16", 8, True, generalist="1/4"),
    Step("10m", "dense", "v6e:2x4", "data=8", 8, False),
    Step("10m", "dense", "tpu7x:2x2x1", "data=8", 8, True),
    Step("10m", "dense", "v4:2x2x2", "data=8", 8, True),
    Step("50m", "dense", "v5e:4x4", "data=16", 8, False),
]
HELD_OUT = [
    Step("20m", "n=64 g=1/8", "v5e:4x4", "data=4 expert=4", 8, False),
    Step("20m", "n=32 k=3 g=1/4", "v5e:2x4", "data=8", 8, False, generalist="1/4"),
    Step("10m", "n=128 g=1/16", "v5e:4x4", "data=16", 8, False),
    Step("20m", "n=8 k=2 g=1/4 + n=16 k=4 g=1/8", "v5e:2x2", "data=2 expert=2", 8, False),
    Step("80m", "n=32 g=1/4", "v5e:2x4", "data=8", 8, False, router="default"),
    Step("10m", "n=32 g=1/4", "v5p:4x4x4", "data=64", 8, False),
    Step("20m", "dense", "v5e:2x4", "data=8", 8, True),
    Step("110m", "n=64 k=6 g=1/8", "v5p:2x2x2", SHARED, 8, True, generalist="1/4", router="default"),
    Step("50m", "n=32 k=3 g=1/4", "v5p:2x2x2", "data=8", 8, False, generalist="1/4"),
    Step("10m", "n=32 g=1/4", "v6e:2x4", SHARED, 8, False),
    Step("10m", "n=32 g=1/4", "v5e:2x4", "", 16, False),
]


def main() -> None:
    """Compiles, compares, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", help="steps whose name matches")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", help="file to write")
    parser.add_argument("--known", help="file that --save wrote, to read what answers it has")
    options = parser.parse_args()
    known = {row["step"]: row for row in _read(options.known)["steps"]} if options.known else {}
    rows, measured = [], {}
    for step in STEPS + HELD_OUT:
        if fnmatch.fnmatch(step.name, options.only):
            rows.append(_row(step, known.get(step.name)))
            print(_line(rows[-1]), flush=True, file=sys.stderr if options.json else sys.stdout)
    for kind in ("fitted", "held out"):
        ratios = [row["memory"] for row in rows if row["held_out"] == (kind == "held out") and row["memory"]]
        for end, ratio in (("least", min(ratios)), ("most", max(ratios))) if ratios else ():
            measured[f"memory counted over compiled, {end} of {len(ratios)} {kind}"] = round(ratio, 3)
    if options.json:
        print(json.dumps({"ratios": measured}))
    else:
        print("\n".join(f"{name}: {ratio:.2f}" for name, ratio in measured.items()))
    if options.save:
        versions = {name: version(name) for name in ("jax", "libtpu", "slicedice")}
        with open(options.save, "w") as file:
            json.dump({"versions": versions, "date": time.strftime("%Y-%m-%d"), "steps": rows}, file, indent=1)


def _row(step: Step, known: dict[str, Any] | None) -> dict[str, Any]:
    layer = {"model.experts": step.layer, "model.generalist": step.generalist, "router.kind": step.router}
    execution = {name: getattr(step, name) for name in ("mesh", "micro_batch", "remat")}
    settings = layer | {f"execution.{name}": value for name, value in execution.items()}
    spec, run = resolve(override(load_config(step.scale), settings, where="a benchmark"))
    topology = parse_topology("topology", step.topology)
    counted = cost(spec, run, topology.rate)
    answer = known["answer"] if known else next(iter(check([Program(spec, run, topology)], 1, None, _quiet).values()))
    row = {
        "step": step.name,
        "held_out": step in HELD_OUT,
        **{name: getattr(step, name) for name in ("scale", "layer", "generalist", "router", "topology")},
        "counted": {"memory": counted.memory, "traffic": counted.traffic},
        "answer": {key: value for key, value in answer.items() if key != "collectives"},
        "memory": counted.bytes / answer["bytes"] if answer.get("bytes") else None,
        "traffic": sum(counted.traffic.values()) / answer["traffic"] if answer.get("traffic") else None,
        "execution": asdict(run),
    }
    if step in STEPS[:SHOWN]:
        row["collectives"] = known["collectives"] if known else answer.get("collectives", [])[:12]
    return row


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
