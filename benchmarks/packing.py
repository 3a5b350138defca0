"""Runs an hour when a device trains several at once, over one at a time.

    python benchmarks/packing.py [--scale SCALE] [--experts EXPERTS] [--runs N] [--json]

Programs of a scale, by default 10m on an accelerator and nano on a CPU, each compiled for one run and for as many of N
as fit the device's memory; figures are medians over steps on the device alone, as `execution.lanes = 0` takes them.
"""

import argparse
import json

EXPERTS = ("dense", "n=8 k=2 g=1/2", "n=32 k=8 g=1/4")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale")
    parser.add_argument("--experts", action="append", help=f"instead of {', '.join(EXPERTS)}")
    parser.add_argument("--runs", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    from slicedice.machine import has_accelerator, settle_platform

    settle_platform()
    scale = options.scale or ("10m" if has_accelerator() else "nano")
    rows = [measured(scale, experts, options.runs) for experts in options.experts or EXPERTS]
    print(json.dumps({"rows": rows}) if options.json else "\n".join(map(str, rows)))


def measured(scale: str, experts: str, runs: int) -> dict[str, str | int | float]:
    """How many runs at once pay, and how many times as many an hour that are."""
    from slicedice import files
    from slicedice.spec import resolve
    from slicedice.spec.config import override
    from slicedice.training import Program
    from slicedice.training.packing import measure

    config = files.load("experiments", scale).get_config()
    program = Program(*resolve(override(config, {"model.experts": experts}, where="the benchmark")))
    found = measure(program, runs)
    return {"scale": scale, "experts": experts, "lanes": found["lanes"], "gain": round(found["gain"], 2)}


if __name__ == "__main__":
    main()
