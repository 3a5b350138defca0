"""Which packages writers need, asked before anything is launched."""

import importlib.util

from slicedice.spec.config import WRITERS, listed
from slicedice.spec.errors import require

PACKAGES = {"tensorboard": ("clu", "tensorboardX"), "wandb": ("clu", "wandb")}
"""That each named writer imports."""

assert set(PACKAGES) == set(WRITERS)


def require_installed(writers: str) -> None:
    """Checks that the packages of `execution.writers` are here, without importing them.

    Raises:
      SpecError: one is not; the message says what to install.
    """
    for name in listed("execution.writers", writers):
        packages = PACKAGES.get(name) or ("clu", name.split(":")[0].split(".")[0])
        lacking = [package for package in packages if importlib.util.find_spec(package) is None]
        extra = name if name in PACKAGES else "tensorboard"
        also = "" if name in PACKAGES else f", and the package of {name}"
        require(
            not lacking,
            "execution.writers",
            writers,
            f"{name} needs {' and '.join(lacking)}, not installed here: pip install 'slicedice[{extra}]'{also}",
        )
