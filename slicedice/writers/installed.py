"""Which writers there are here, asked before anything is launched.

Beside the two that are named here, any class of clu's interface will do that an installed package declares, under
"slicedice.writers" in its entry points. Runs name writers, and a store may be someone else's: so nothing is imported
because a store says so, but only what was installed for this.
"""

import importlib.util
from importlib.metadata import EntryPoint, entry_points

from slicedice.spec.config import listed
from slicedice.spec.errors import require

GROUP = "slicedice.writers"
"""Of entry points, each a class of `clu.metric_writers.MetricWriter` that takes a run's folder for its logs."""

PACKAGES = {"tensorboard": ("clu", "tensorboardX"), "wandb": ("clu", "wandb")}
"""What our own import."""


def declared() -> dict[str, EntryPoint]:
    """The writers of other packages, by name."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def require_installed(writers: str) -> None:
    """Checks that the writers of `execution.writers` and their packages are here, without importing any.

    Raises:
      SpecError: one is not; the message says what to install.
    """
    names = listed("execution.writers", writers)
    others = declared() if set(names) - set(PACKAGES) else {}
    known = ", ".join([*PACKAGES, *others])
    for name in names:
        there = f"there is no writer {name!r} here: choose some of {known}, or install a package that declares it"
        require(name in PACKAGES or name in others, "execution.writers", writers, there)
        lacking = [package for package in PACKAGES.get(name, ("clu",)) if importlib.util.find_spec(package) is None]
        extra = name if name in PACKAGES else "tensorboard"
        install = f"{name} needs {' and '.join(lacking)}, not installed here: pip install 'slicedice[{extra}]'"
        require(not lacking, "execution.writers", writers, install)
