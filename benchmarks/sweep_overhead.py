"""Seconds that the doors take when there is nothing to train: the default sweep again, and `plan` at 300m.

    python benchmarks/sweep_overhead.py [--store runs]

The store has to hold the finished default sweep. Each command runs three times; the median counts.
"""

import argparse
import statistics
import subprocess
import sys
import time


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", default="runs")
    options = parser.parse_args()
    sweep = [sys.executable, "-m", "slicedice.sweep"]
    grid = ["--grid", "granularity_vs_count", "--store", options.store]
    status = subprocess.run([*sweep, "status", *grid, "--json"], capture_output=True, text=True, check=True)
    if '"state": "missing"' in status.stdout:
        sys.exit(f"{options.store} does not hold the finished default sweep; run it first")
    for name, command in (
        ("again", [*sweep, *grid]),
        ("plan at 300m", [*sweep, "plan", *grid, "--scale", "300m"]),
    ):
        print(f"{name}: {statistics.median(seconds(command) for _ in range(3)):.2f} s")


def seconds(command: list[str]) -> float:
    """Wall time of a command, which has to succeed."""
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
