"""A writer to Weights & Biases.

Who the user is, where the server is, whether there is one (WANDB_MODE=offline) and what else `wandb` knows comes from
its own environment and settings. No key is read or written here.
"""

import os
import re
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb  # pyright: ignore[reportMissingImports]

from slicedice.store import Attempt
from slicedice.store.files import read_json, write_json
from slicedice.writers.interface import ScalarWriter

PROJECT = "slicedice"
"""Unless WANDB_PROJECT names another."""

RECORD = "wandb.json"
"""File of an attempt with the id of its run there."""

OPEN_SECONDS = 30
"""To wait for the server, or for someone to log in, before a run."""

CLOSE_SECONDS = 20
"""To wait for what is on its way, after a run: less than a preempted worker has to end. What is left stays on disk."""


class Unreachable(RuntimeError):
    """Weights & Biases could not be reached before, and is not tried again by this process."""


def identity(attempts: Sequence[Attempt]) -> str:
    """The id of a run on Weights & Biases: that of an earlier attempt, or a new one, which is noted in this attempt.

    Not the run's own id, since another store's run, or one that starts over, is another run there.

    Args:
      attempts: this one, and those that it may go on from, the newest first.
    """
    known = ((read_json(one.path / RECORD) or {}).get("id") for one in attempts)
    old = next((id_ for id_ in known if isinstance(id_, str) and re.fullmatch(r"[0-9a-z-]{8,64}", id_)), None)
    id_ = old or f"{attempts[0].run.name}-{secrets.token_hex(3)}"
    write_json(attempts[0].path / RECORD, {"id": id_})
    return id_


class WandbWriter(ScalarWriter):
    """A run on Weights & Biases. Their steps never go back: what they have of a step stays."""

    _unreachable = ""

    def __init__(self, id_: str, name: str, folder: Path):
        """Opens the run of an id, or goes on with it.

        Args:
          id_: see `identity`.
          name: of the run, for people.
          folder: where `wandb` keeps its files unless WANDB_DIR says where.

        Raises:
          Unreachable, wandb.Error: there is no key, or no answer.
        """
        if WandbWriter._unreachable:
            raise Unreachable(WandbWriter._unreachable)
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or PROJECT,
                id=id_,
                resume="allow",
                name=name,
                dir=None if os.environ.get("WANDB_DIR") else str(folder.absolute()),
                reinit="create_new",  # lanes have a run each, open at once
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
