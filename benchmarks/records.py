"""Ratios that were measured: run, stored by device, and compared."""

import difflib
import functools
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.catalogue import Benchmark

RESULTS = Path(__file__).parent / "results"
ASK = "import json; from slicedice.provenance import provenance; print(json.dumps(provenance('')))"

Record = dict[str, Any]
"""What is stored of one run of a benchmark: its ratios, details, and what they were measured on and with."""


class RunError(Exception):
    """A benchmark did not end well; says how."""


class Comparison(NamedTuple):
    """A ratio beside the stored one. worse: the factor by which it is; None if one of the two is missing."""

    name: str
    now: float | None
    stored: float | None
    worse: float | None
    verdict: str

    @property
    def is_regression(self) -> bool:
        """Whether it is worse beyond noise, or gone."""
        return self.verdict in ("WORSE", "MISSING")


def run(benchmark: Benchmark, limit: float | None = None) -> Record:
    """Runs a benchmark in processes of its own.

    Raises:
      RunError: it failed, ran past its limit of seconds, or printed no ratios.
    """
    command = ["python", f"benchmarks/{benchmark.name}.py", *benchmark.arguments, "--json"]
    environment = os.environ | ({"JAX_PLATFORMS": "cpu"} if benchmark.only_cpu else {})
    with subprocess.Popen(
        [sys.executable, str(benchmark.path), *command[2:]],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that a limit ends the processes that it started as well
    ) as process:
        try:
            printed, _ = process.communicate(timeout=limit)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise RunError(f"ran past its limit of {limit:.0f} s") from None
            raise
    if process.returncode:
        raise RunError(f"ended with status {process.returncode}")
    return _record(benchmark, command, printed)


def _record(benchmark: Benchmark, command: list[str], printed: str) -> Record:
    lines = printed.strip().splitlines()
    try:
        details = json.loads(lines[-1])
        ratios = details.pop("ratios")
    except (IndexError, KeyError, ValueError, AttributeError):
        raise RunError("printed no JSON object with `ratios` as its last line") from None
    where = provenance(benchmark.only_cpu)
    return {
        "benchmark": benchmark.name,
        "command": shlex.join(command),
        "date": time.strftime("%Y-%m-%d"),
        "device": where["device"],
        "platform": where["platform"],
        "cores": where["cores"],
        "python": where["python"],
        "git_revision": where["git_revision"],
        "packages": where["packages"] | _versions(benchmark),
        "ratios": ratios,
        "details": details,
    }


@functools.cache
def provenance(only_cpu: bool) -> dict[str, Any]:
    """What slicedice knows of this machine, asked in a process that ends: one that holds a GPU keeps its memory."""
    from slicedice import machine

    cpu = only_cpu or not machine.has_accelerator()
    environment = os.environ | ({"JAX_PLATFORMS": "cpu"} if cpu else {})
    done = subprocess.run([sys.executable, "-c", ASK], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1]) | {"cores": len(machine.cores())}


def _versions(benchmark: Benchmark) -> dict[str, str]:
    """Of packages that it needs beside our own."""
    found = {}
    for package in {"transformers": ("transformers", "torch"), "libtpu": ("libtpu",)}.get("".join(benchmark.needs), ()):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def save(record: Record) -> Path:
    """Stores a record in place of the one before of the same benchmark and device."""
    path = _path(record["benchmark"], record["device"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def stored(name: str, device: str) -> Record | None:
    """What was stored of a benchmark on a device."""
    path = _path(name, device)
    return json.loads(path.read_text()) if path.exists() else None


def nearest(name: str, device: str) -> str | None:
    """Of the devices that something is stored of, the one with the most similar name."""
    devices = [json.loads(path.read_text())["device"] for path in sorted(RESULTS.glob(f"*/{name}.json"))]
    return next(iter(difflib.get_close_matches(device, devices, n=1, cutoff=0.0)), None)


def everything() -> list[Record]:
    """All records, by device and benchmark."""
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*/*.json"))]


def compare(benchmark: Benchmark, now: dict[str, float], before: dict[str, float]) -> list[Comparison]:
    """Every ratio that was measured now or before, and whether it is worse beyond noise."""
    found = []
    for name in dict.fromkeys((*before, *now)):
        if name not in now:
            found.append(Comparison(name, None, before[name], None, "MISSING"))
        elif name not in before:
            found.append(Comparison(name, now[name], None, None, "new"))
        else:
            bound = benchmark.bound(name)
            worse = bound.worse(now[name], before[name])
            is_fine = math.isfinite(worse) and worse <= bound.noise
            found.append(Comparison(name, now[name], before[name], worse, "ok" if is_fine else "WORSE"))
    return found


def _path(name: str, device: str) -> Path:
    folder = re.sub(r"[^A-Za-z0-9]+", "-", device).strip("-")
    return RESULTS / folder / f"{name}.json"
