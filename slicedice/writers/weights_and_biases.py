"""A writer to Weights & Biases.

Who the user is, where the server is, whether there is one (WANDB_MODE=offline) and what else `wandb` knows comes from
its own environment and settings. No key is read or written here.
"""

import os
import re
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb  # pyright: ignore[reportMissingImports]

from slicedice.store.files import read_json, write_json
from slicedice.writers.interface import ScalarWriter

PROJECT = "slicedice"
"""Unless WANDB_PROJECT names another."""

OPEN_SECONDS = 30
"""To wait for the server, or for someone to log in, before a run."""

CLOSE_SECONDS = 20
"""To wait for what is on its way, after a run: less than a preempted worker has to end. What is left stays on disk."""


class Unreachable(RuntimeError):
    """Weights & Biases could not be reached before, and is not tried again by this process."""


class WandbWriter(ScalarWriter):
    """A run on Weights & Biases. Their steps never go back: what they have of a step stays."""

    _unreachable = ""

    def __init__(self, record: Path, name: str, folder: Path, *, anew: bool):
        """Opens, or goes on with, the run whose id `record` has.

        Args:
          record: file of the id that the run has there. A run that is trained anew, or in another store, is another.
          name: of the run, for people.
          folder: where `wandb` keeps its files unless WANDB_DIR says where.
          anew: whether the run begins with its first step.

        Raises:
          Unreachable, wandb.Error: there is no key, or no answer.
        """
        if WandbWriter._unreachable:
            raise Unreachable(WandbWriter._unreachable)
        known = None if anew else (read_json(record) or {}).get("id")
        if not isinstance(known, str) or not re.fullmatch(r"[0-9a-z-]{8,64}", known):
            known = f"{record.parent.name}-{secrets.token_hex(3)}"
            write_json(record, {"id": known})
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or PROJECT,
                id=known,
                resume="allow",
                name=name,
                dir=None if os.environ.get("WANDB_DIR") else str(folder.absolute()),
                reinit="finish_previous",
                settings=wandb.Settings(
                    console="off",  # a worker's output is its launcher's
                    quiet=True,
                    save_code=False,
                    init_timeout=OPEN_SECONDS,
                    login_timeout=OPEN_SECONDS,
                    finish_timeout=CLOSE_SECONDS,
                ),
            )
        except Exception as error:
            WandbWriter._unreachable = f"{error}"
            raise

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Writes numbers."""
        self._run.log(dict(scalars), step=step)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Writes settings, nested by the parts of their dotted names."""
        config: dict[str, Any] = {}
        for name, value in hparams.items():
            *parents, leaf = name.split(".")
            node = config
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = value
        self._run.config.update(config, allow_val_change=True)  # how a run is executed may change when it goes on

    def flush(self) -> None:
        """Leaves it to wandb, whose own process sends what it has."""

    def close(self) -> None:
        """Ends the run there; as failed if an exception is on its way."""
        self._run.finish(exit_code=0 if sys.exc_info()[1] is None else 1)
