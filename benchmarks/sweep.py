"""The default sweep's wall time and a worker's peak memory; then the time of the doors with nothing to train.

    python benchmarks/sweep.py [--store FOLDER] [--json]

Without a store the sweep is trained from nothing in a temporary one, in about the twelve minutes that takes. With
one, that has to hold the finished sweep, only the second part runs. Doors run three times; the median counts.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SWEEP = [sys.executable, "-m", "slicedice.sweep"]
GRID = ["--grid", "granularity_vs_count"]
WANTED = {"sweep_minutes": 10.0, "largest_process_gib": 4.0, "again_seconds": 5.0, "plan_300m_seconds": 5.0}
"""What each may be at most."""


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", help="of the finished default sweep")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = ["--store", options.store or str(Path(folder) / "runs")]
        result = {} if options.store else from_nothing(store)
        status = subprocess.run([*SWEEP, "status", *GRID, *store, "--json"], capture_output=True, check=True)
        states = {run["state"] for run in json.loads(status.stdout)["runs"]}
        if states - {"done", "diverged"}:
            sys.exit(f"{options.store} does not hold the finished default sweep: some runs are {', '.join(states)}")
        result["again_seconds"] = median_seconds([*SWEEP, *GRID, *store])
        result["plan_300m_seconds"] = median_seconds([*SWEEP, "plan", *GRID, *store, "--scale", "300m"])
    if options.json:
        ratios = {f"{name} over {WANTED[name]:g}": round(value / WANTED[name], 3) for name, value in result.items()}
        print(json.dumps(result | {"ratios": ratios}))
    else:
        print("\n".join(f"{name}: {value}" for name, value in result.items()))


def from_nothing(store: list[str]) -> dict[str, float]:
    """Trains the default sweep: its wall time, and the most memory that any one of its processes took."""
    wall = seconds([*SWEEP, *GRID, *store])
    # Of the descendants that were waited for, the largest: Linux counts in KiB, macOS in bytes.
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"sweep_minutes": round(wall / 60, 2), "largest_process_gib": round(largest / 2**30, 2)}


def median_seconds(command: list[str]) -> float:
    """Median wall time of three calls."""
    return round(statistics.median(seconds(command) for _ in range(3)), 2)


def seconds(command: list[str]) -> float:
    """Wall time of a command, which has to succeed."""
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
