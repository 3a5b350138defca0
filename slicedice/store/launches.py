"""What was handed to engines: `launches/NAME/` has what was submitted, word for word, and `launch.json`.

A record of it, and no more: what has become of a run its own folder says.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slicedice.store.files import StoreError, create, read_json, write_json, write_whole
from slicedice.store.run import ID

NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")
"""What launches are called: also what Slurm, Kubernetes and XManager take for a name."""

GIVEN = re.compile(r".+-([0-9a-f]{4})-[0-9]+")
"""Names that `Store.next_launch` gives, with the tag of the store; others may be there, of records made by hand."""

LAUNCHER = re.compile(r"[A-Za-z]\w*")
"""Of a launcher that is looked for by name; others are files, of which a record says too little to load one."""

HANDLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./:-]{0,199}")
"""An engine's name for a work unit. It goes into commands, so that nothing else is read."""

Setting = bool | int | float | str


@dataclass(frozen=True)
class Launch:
    """A launch on record.

    name: what it is called. folder: where its files are.
    launcher: name of its file in `launch/`, or the path of another.
    settings: those of the launcher that were not left as they are.
    units: ids of the runs of each work unit.
    handles: the engine's name for each unit; empty until the engine has them.
    """

    name: str
    folder: Path
    launcher: str
    settings: Mapping[str, Setting]
    units: tuple[tuple[str, ...], ...]
    handles: tuple[str, ...] = ()

    @property
    def number(self) -> int:
        """Its place among the launches of its store; 0 if its name does not tell."""
        last = self.name.rpartition("-")[2]
        return int(last) if last.isdecimal() else 0

    @property
    def tag(self) -> str:
        """That of the store it was launched from; "" if its name does not tell."""
        found = GIVEN.fullmatch(self.name)
        return found[1] if found else ""

    @property
    def is_by_name(self) -> bool:
        """Whether the launcher is found by name."""
        return LAUNCHER.fullmatch(self.launcher) is not None


def write_launch(launch: Launch, rendered: Mapping[str, str]) -> None:
    """Puts a launch on record, with the files that are submitted; again when its engine has named its units.

    Raises:
      StoreError: it has no handles yet, so that it is new, and there is one of its name.
    """
    path = launch.folder / "launch.json"
    content = {"launcher": launch.launcher, "settings": dict(launch.settings), "units": launch.units}
    if launch.handles:
        write_json(path, content | {"handles": launch.handles})
    elif not create(path, content | {"handles": launch.handles}):
        raise StoreError(
            f"There is {launch.folder} already: another sweep began at the same moment. The same command again "
            "trains what that one does not."
        )
    for name, text in rendered.items():
        write_whole(launch.folder / name, text)


def read_launch(folder: Path) -> Launch:
    """Reads a launch back. What it says is data: names are checked, and nothing it names is loaded.

    Raises:
      StoreError: there is none, or its record is damaged.
    """
    content = read_json(folder / "launch.json") or {}
    try:
        settings, handles = dict(content["settings"]), _texts(content["handles"])
        launch = Launch(
            folder.name,
            folder,
            str(content["launcher"]),
            {str(key): value for key, value in settings.items() if isinstance(value, Setting)},
            tuple(_texts(unit) for unit in content["units"]),
            handles,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{folder} has no launch.json that can be read: {error}.") from error
    runs = [run for unit in launch.units for run in unit]
    named = [NAME.fullmatch(launch.name), *map(HANDLE.fullmatch, handles), *map(ID.fullmatch, runs)]
    if not all(named):
        raise StoreError(f"{folder / 'launch.json'} has names that no launch is given.")
    return launch


def _texts(values: Sequence[Any]) -> tuple[str, ...]:
    if isinstance(values, str) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"{values!r} are no texts")
    return tuple(values)
