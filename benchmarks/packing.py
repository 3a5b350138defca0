"""Runs an hour when a device trains several at once, over one at a time.

    python benchmarks/packing.py [--scale SCALE] [--experts EXPERTS] [--runs N] [--sequences N] [--json]

Programs of a scale, by default 10m on an accelerator and nano on a CPU, each compiled for one run and for as many of N
as fit the device's memory; figures are medians over steps on the device alone, as `execution.lanes = 0` takes them.
Steps of an accelerator have fewer sequences than the study's 512, which would add time alone.
"""

import argparse
import json

EXPERTS = ("dense", "n=32 k=4 g=1/4")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale")
    parser.add_argument("--experts", action="append", help=f"instead of {', '.join(EXPERTS)}")
    parser.add_argument("--runs", type=int, default=32)
    parser.add_argument("--sequences", type=int, help="of a step; 64 on an accelerator and the scale's on a CPU")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    from slicedice.machine import has_accelerator, settle_platform

    settle_platform()
    scale = options.scale or ("10m" if has_accelerator() else "nano")
    sequences = options.sequences or (64 if has_accelerator() else 0)
    rows = [measured(scale, experts, options.runs, sequences) for experts in options.experts or EXPERTS]
    ratios = {f"{row['scale']} {row['experts']}, {options.runs} runs": row["gain"] for row in rows}
    print(json.dumps({"rows": rows, "ratios": ratios}) if options.json else "\n".join(map(str, rows)))


def measured(scale: str, experts: str, runs: int, sequences: int) -> dict[str, str | int | float]:
    """How many runs at once pay, and how many times as many an hour that are."""
    from slicedice import files
    from slicedice.spec import resolve
    from slicedice.spec.config import override
    from slicedice.training import Program
    from slicedice.training.packing import measure

    config = files.load("experiments", scale).get_config()
    changes = {"model.experts": experts} | ({"budget.batch_size": sequences} if sequences else {})
    program = Program(*resolve(override(config, changes, where="the benchmark")))
    found, lanes = measure(program, range(runs))
    return {"scale": scale, "experts": experts, "lanes": lanes.width, "gain": round(found["gain"], 2)}


if __name__ == "__main__":
    main()
