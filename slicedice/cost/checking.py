"""Asking the compiler about many programs at once, each once: answers are kept in the user's cache folder."""

import functools
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
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

COMMAND = [sys.executable, "-m", "slicedice.cost.compiling"]
"""What compiles a program."""

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


class Children:
    """The processes that compile, which end together."""

    def __init__(self):
        self.ended = False
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._scratch = tempfile.TemporaryDirectory()  # theirs, since one that is killed clears nothing away

    def __enter__(self) -> "Children":
        return self

    def __exit__(self, *_: object) -> None:
        self._scratch.cleanup()

    def ask(self, command: list[str], text: str) -> tuple[int, str, str]:
        """Runs a command on `text`; returns its status, standard output and standard error."""
        with self._lock:
            if self.ended:
                return -signal.SIGKILL, "", ""
            child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {"TMPDIR": self._scratch.name},
                start_new_session=True,  # Ctrl-C reaches this process, which ends them
            )
            self._running.add(child)
        said, complained = child.communicate(text)
        with self._lock:
            self._running.remove(child)
        return child.returncode, said, complained

    def end(self) -> None:
        """Ends those that run, and lets no other begin: there is nothing that they would have to save."""
        with self._lock:
            self.ended = True
            for child in self._running:
                child.kill()


def check(
    programs: Iterable[Program],
    processes: int,
    folder: Path | None,
    tell: Callable[[Program, Answer, bool], None],
    begin: Callable[[int, int], object] = lambda count, known: None,
) -> dict[str, Answer]:
    """Compiles programs that were not compiled before.

    Args:
      programs: what to compile; of equal keys one.
      processes: compilations at once.
      folder: where answers are kept; None to keep none.
      tell: called for each program with its answer, and whether it was kept from before; one at a time, by any thread.
      begin: called first if there are any, with how many, and of how many the answer was kept from before.

    Returns:
      Answers by key. Where there is no compiler, all say so.
    """
    distinct = {program.key: program for program in programs}
    kept = {key: answer for key in distinct if folder and (answer := _read(folder / f"{key}.json"))}
    if distinct:
        begin(len(distinct), len(kept))
    lock = threading.Lock()

    def say(key: str, answer: Answer) -> None:
        with lock:
            tell(distinct[key], answer, key in kept)

    for key, answer in kept.items():
        say(key, answer)
    with Children() as children, ThreadPoolExecutor(max(1, processes)) as pool:

        def ask(key: str) -> tuple[str, Answer]:
            answer = _ask(distinct[key], children)
            if not children.ended:  # else it tells of its end alone
                if folder and "fits" in answer:
                    _write(folder / f"{key}.json", answer)
                say(key, answer)
            return key, answer

        try:
            return kept | dict(pool.map(ask, [key for key in distinct if key not in kept]))
        except BaseException:  # Ctrl-C above all: leaving the pool would wait for every program
            pool.shutdown(wait=False, cancel_futures=True)
            children.end()
            raise


def _ask(program: Program, children: Children) -> Answer:
    """A process for each program: the compiler gives back none of the memory that it took."""
    request = {
        "spec": canonical_json(program.spec),
        "execution": asdict(program.execution),
        "topology": program.topology.slice_name,
        "slices": program.topology.slices,
    }
    status, said, complained = children.ask(COMMAND, json.dumps(request) + "\n")
    lines = said.splitlines()
    if status or not lines:
        return {"error": f"the compiler's process ended with status {status}: {complained[-500:]}"}
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
