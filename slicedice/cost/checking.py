"""Asking the compiler about many programs at once, each once: answers are kept in the user's cache folder."""

import functools
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from slicedice.cost.compiling import NO_COMPILER
from slicedice.cost.topology import Topology
from slicedice.spec import Execution, RunSpec, canonical_json, program_key

CHILD_BYTES = 8 * 2**30
"""Memory to set aside for one compilation; the largest programs here took 5 GiB."""

COMPILED_ROOMS = "kernels", "moe", "model", "parallel", "training", "cost", "spec"
"""Whose code a program comes from."""

Answer = dict[str, Any]
"""What `slicedice.cost.compiling` says: `fits`, `bytes`, `traffic`, `collectives`, `seconds`, or an `error`."""


class Program(NamedTuple):
    """A step to compile. Equal keys are the same program."""

    spec: RunSpec
    execution: Execution
    topology: Topology

    @property
    def key(self) -> str:
        """Of the program, the pod, the compiler and our own code."""
        parts = [
            program_key(self.spec, self.execution),
            str(self.topology),
            *map(_version, ("jax", "jaxlib", "libtpu")),
        ]
        return hashlib.sha256("\n".join([*parts, _code()]).encode()).hexdigest()[:16]


def check(
    programs: Iterable[Program], processes: int, folder: Path | None, tell: Callable[[Program, Answer, bool], None]
) -> dict[str, Answer]:
    """Compiles programs that were not compiled before.

    Args:
      programs: what to compile; of equal keys one.
      processes: compilations at once.
      folder: where answers are kept; None to keep none.
      tell: called for each program with its answer, and whether it was kept from before; by any thread.

    Returns:
      Answers by key. Where there is no compiler, all say so.
    """
    distinct = {program.key: program for program in programs}
    answers: dict[str, Answer] = {}
    for key, program in distinct.items():
        if folder and (kept := _read(folder / f"{key}.json")):
            answers[key] = kept
            tell(program, kept, True)
    missing = [key for key in distinct if key not in answers]

    def ask(key: str) -> tuple[str, Answer]:
        program = distinct[key]
        answer = _ask(program)
        if folder and "fits" in answer:
            _write(folder / f"{key}.json", answer)
        tell(program, answer, False)
        return key, answer

    with ThreadPoolExecutor(max(1, processes)) as pool:
        answers |= dict(pool.map(ask, missing))
    return answers


def _ask(program: Program) -> Answer:
    """A process for each program: the compiler gives back none of the memory that it took."""
    request = {
        "spec": canonical_json(program.spec),
        "execution": asdict(program.execution),
        "topology": program.topology.slice_name,
        "slices": program.topology.slices,
    }
    command = [sys.executable, "-m", "slicedice.cost.compiling"]
    done = subprocess.run(command, input=json.dumps(request) + "\n", capture_output=True, text=True)
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return {"error": f"the compiler's process ended with status {done.returncode}: {done.stderr[-500:]}"}
    return json.loads(lines[-1])


def has_compiler() -> bool:
    """Whether the TPU's compiler is installed."""
    return _version("libtpu") != ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


@functools.cache
def _code() -> str:
    """A digest of the code that programs come from."""
    top, digest = Path(__file__).parents[1], hashlib.sha256()
    for room in COMPILED_ROOMS:
        for path in sorted((top / room).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _read(path: Path) -> Answer | None:
    try:
        answer = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return answer if isinstance(answer, dict) and "fits" in answer else None


def _write(path: Path, answer: Answer) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(answer))
    temporary.replace(path)


__all__ = ["CHILD_BYTES", "NO_COMPILER", "Answer", "Program", "check", "has_compiler"]
