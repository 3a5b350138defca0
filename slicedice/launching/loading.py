"""Finds launchers, and gives their settings values."""

import dataclasses
from collections.abc import Mapping

from slicedice import files
from slicedice.launching.protocol import Launcher
from slicedice.spec.errors import SpecError, require
from slicedice.spec.reading import READ
from slicedice.store.launches import Setting


def load_launcher(name: str, settings: Mapping[str, Setting] | None = None) -> Launcher:
    """The launcher of a name or path.

    Args:
      name: as `files.find` takes it.
      settings: values that replace its own. Texts are read as the type of the value they replace.

    Raises:
      FileError: there is no such file, it raises, or what it returns is no launcher.
      SpecError: there is no such setting, or it cannot have that value.
    """
    launcher = files.call("launch", name, "get_launcher")
    if not isinstance(launcher, Launcher) or not dataclasses.is_dataclass(launcher) or isinstance(launcher, type):
        raise files.FileError(
            f"{files.find('launch', name)}: get_launcher() has to return a dataclass with the methods of "
            "slicedice.launching.Launcher; see what is in launch/ for examples."
        )
    known = {field.name: getattr(launcher, field.name) for field in dataclasses.fields(launcher)}
    found = {}
    for setting, value in (settings or {}).items():
        field = f"--launcher.{setting}"
        valid = f"{name} has no such setting; it has {', '.join(known) or 'none'}"
        require(setting in known, field, value, valid)
        kind = type(known[setting])
        try:
            found[setting] = READ[kind](value) if isinstance(value, str) else value
        except (KeyError, ValueError) as error:
            raise SpecError(field, value, f"it has to be of type {kind.__name__}") from error
        require(type(found[setting]) is kind, field, value, f"it has to be of type {kind.__name__}")
    return dataclasses.replace(launcher, **found)
