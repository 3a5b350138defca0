"""Seconds that status and report take over a store of more than 3,000 entries, some damaged, and a dry submission.

    python benchmarks/report.py [--store FOLDER] [--json]

The entries are the runs of the grid `paper` at all its scales, with results that are made up, and copies of some of
them. Making them takes half a minute; with --store they are made in that folder, or found there, and kept. Each
command runs three times as a process of its own; the median counts.
"""

import argparse
import json
import math
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from slicedice.grid import enumerate_runs, load_config, load_grid
from slicedice.grid.study import SCALES
from slicedice.spec import SCHEMA, RunSpec, run_id
from slicedice.store import Kind, Store

SLURM = "--launcher", "slurm", "--launcher.gres=gpu:h100"

WANTED = {"status_seconds": 2.0, "status_json_seconds": 2.0, "missing_json_seconds": 10.0, "report_json_seconds": 10.0}
"""Seconds that each may take."""

COPIES = 700
PERIOD = 40
"""Of so many runs one each is missing, diverged, crashed, damaged in one of several ways; the others are done."""


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", help="where the runs are or shall be")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(options.store or Path(folder) / "runs")
        if not store.exists():
            fill(store.create())
        sweep = [sys.executable, "-m", "slicedice.sweep"]
        grid = ["--grid", "paper", "--store", str(store.root)]
        result: dict[str, float] = {"entries": sum(1 for _ in (store.root / "runs").iterdir())}
        for name, verb in {
            "status_seconds": ["status"],
            "status_json_seconds": ["status", "--json"],
            "missing_json_seconds": ["report", "--missing", "--json"],
            "report_json_seconds": ["report", "--json"],
        }.items():
            result[name] = round(statistics.median(seconds([*sweep, *verb, *grid]) for _ in range(3)), 2)
        # All of the paper's runs, of which an empty store has none.
        empty = ["--grid", "paper", "--store", str(Path(folder) / "empty"), "--dry_run", "--device", "h100"]
        result["submit_dry_seconds"] = round(statistics.median(seconds([*sweep, *empty, *SLURM]) for _ in range(3)), 2)
    if options.json:
        ratios = {f"{name} over {most:g}": round(result[name] / most, 3) for name, most in WANTED.items()}
        print(json.dumps(result | {"ratios": ratios}))
    else:
        print("\n".join(f"{name}: {value}" for name, value in result.items()))


def fill(store: Store) -> None:
    """Makes the entries."""
    plan = enumerate_runs([(load_grid("paper", scale), load_config(scale)) for scale in SCALES], overrides={})
    folders = {id_: store.run(id_) for id_ in plan.runs}
    for number, (id_, (spec, execution)) in enumerate(plan.runs.items()):
        case = number % PERIOD
        if case == 0:  # missing
            continue
        folder = folders[id_]
        folder.create(spec, execution)
        claim = folder.claim()
        assert claim
        if case == 1:
            claim.fail(Kind.CRASHED, "ValueError: made up")
            continue
        result = made_up(spec, fingerprint="other text" if case == 2 else "f" * 12)
        claim.finish(Kind.DIVERGED if case == 3 else Kind.DONE, result)
        if case in DAMAGE:
            DAMAGE[case](folder)
    whole = [folder for number, folder in enumerate(folders.values()) if number % PERIOD > max(DAMAGE)]
    for folder in whole[:COPIES]:
        shutil.copytree(folder.path, f"{folder.path} copy")
    # Folders of one run under the ids of others.
    for folder, other in zip(list(folders.values())[4::PERIOD], whole, strict=False):
        shutil.rmtree(folder.path)
        shutil.copytree(other.path, folder.path)


def of_other_schema(path: Path) -> None:
    """Rewrites a file of a run as another version would have written it."""
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": SCHEMA + 1}))


def truncate(path: Path) -> None:
    """Leaves half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE: dict[int, Any] = {
    5: lambda folder: truncate(folder.path / "result.json"),
    6: lambda folder: truncate(folder.path / "spec.json"),
    7: lambda folder: of_other_schema(folder.path / "result.json"),
    8: lambda folder: of_other_schema(folder.path / "spec.json"),
}
"""What is done to a finished run, by its number in the period."""


def made_up(spec: RunSpec, fingerprint: str) -> dict[str, Any]:
    """A result that depends on the run as the study's do, with noise."""
    draw = random.Random(run_id(spec))
    nats = 6 - 0.1 * math.log(spec.flops) / 4 - 0.04 * math.log2(spec.model.layer.sparsity) + draw.gauss(0, 0.01)
    names = ("code", "docstrings", "reference", "macro")
    scores = {name: {"nats": nats, "bits_per_byte": nats / 0.7, "targets": 65536} for name in names}
    return {
        "steps": spec.budget.steps,
        "train": {"cross_entropy": nats - 0.1, "load_balancing_loss": 1.01, "load_imbalance": 1.2, "dead_experts": 0.0},
        "evaluation": {"held_out": scores, "without_capacity": scores},
        "seconds_per_step": 0.1,
        "provenance": {"data_fingerprint": fingerprint, "device": "none", "git_revision": None, "finished": "never"},
    }


def seconds(command: list[str]) -> float:
    """Wall time of a command, which has to end in a report: with status 1, since some runs failed."""
    begin = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode not in (0, 1) or "Traceback" in done.stderr:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
