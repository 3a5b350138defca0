"""Finds the files that users add: grids in `sweeps/`, experiments in `experiments/`, launchers in `launch/`.

A name is looked up in the folder of that kind in the working directory first, then in the checkout beside
the package, then in what was installed with it. A path, with a slash or ending in .py, is taken as it is.
"""

import hashlib
import importlib.machinery
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

FUNCTIONS = {"sweeps": "get_grid", "experiments": "get_config", "launch": "get_launcher"}
"""What a file of each kind has. One that does not name it is not of the kind, as an XManager launch script is none."""


class FileError(ValueError):
    """A file that is not there, or that raises when it is loaded."""


def folders(kind: str) -> list[Path]:
    """Where files of a kind live, first wins."""
    package = Path(__file__).parent
    # Beside an installed package are other people's packages, which may have these names.
    checkout = [package.parent / kind] if (package.parent / "pyproject.toml").exists() else []
    places = [Path.cwd() / kind, *checkout, package / kind]
    return [place for place in dict.fromkeys(places) if place.is_dir()]


def names(kind: str) -> list[str]:
    """All names of a kind, sorted; those that begin with a number by that number."""

    def order(name: str) -> tuple[int, str]:
        digits = re.match(r"\d*", name)
        return int(digits[0]) if digits and digits[0] else 0, name

    found = {path for folder in folders(kind) for path in folder.glob("[!_]*.py")}
    wanted = FUNCTIONS[kind].encode()
    return sorted({path.stem for path in found if path.is_file() and wanted in path.read_bytes()}, key=order)


def find(kind: str, name: str) -> Path:
    """The file of a name or path.

    Raises:
      FileError: there is none; the message lists the names there are.
    """
    if "/" in name or name.endswith(".py"):
        if not Path(name).is_file():
            raise FileError(f"there is no file {name}. Known {kind}: {', '.join(names(kind))}.")
        return Path(name)
    for folder in folders(kind):
        if (folder / f"{name}.py").is_file():
            return folder / f"{name}.py"
    raise FileError(f"unknown name {name!r} in {kind}: choose one of {', '.join(names(kind))}, or give a path.")


def label(kind: str, name: str) -> str:
    """What to call the file of a name or path: its stem, and for another file than the name means, a digest."""
    path = find(kind, name)
    known = next((folder / path.name for folder in folders(kind) if (folder / path.name).is_file()), None)
    if known is not None and known.samefile(path):
        return path.stem
    return f"{path.stem}-{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:6]}"


class _AsItIsNow(importlib.machinery.SourceFileLoader):
    """Compiles the file each time: bytecode is known by a file's size and second, which an edit may leave alone."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def load(kind: str, name: str) -> ModuleType:
    """Runs the file of a name or path as a module of its own.

    Raises:
      FileError: there is none, or it raises; the message names the line.
    """
    path = find(kind, name)
    module_name = f"slicedice_{kind}_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path, loader=_AsItIsNow(module_name, str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # as dataclasses with postponed annotations want it
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise FileError(_blame(path, error)) from error
    return module


def function(kind: str, name: str, wanted: str) -> Callable[..., Any]:
    """The function `wanted` of a user's file.

    Raises:
      FileError: there is no such file, it raises, or it has no such function.
    """
    found = getattr(load(kind, name), wanted, None)
    if not callable(found):
        raise FileError(f"{find(kind, name)} has no function {wanted}: see what is in {kind}/ for examples.")
    return found


def call(kind: str, name: str, wanted: str, *arguments: Any) -> Any:
    """Calls the function `wanted` of a user's file.

    Raises:
      FileError: as `function` does, or the call raises; the message names the line.
    """
    found = function(kind, name, wanted)
    try:
        return found(*arguments)
    except (Exception, SystemExit) as error:
        raise FileError(_blame(find(kind, name), error)) from error


def _blame(path: Path, error: BaseException) -> str:
    """A sentence on an error raised by a user's file, with the line of that file it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).absolute() == path.absolute()]
    if isinstance(error, SyntaxError):
        lines = [error.lineno]
    where = f"{path}, line {lines[-1]}" if lines else str(path)
    return f"{where}: {type(error).__name__}: {error}"
