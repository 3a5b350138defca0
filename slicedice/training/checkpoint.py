"""Orbax behind one small door: a checkpoint is complete or it does not exist.

The training state is kept under `training/`, newest only; the finished model, parameters and router biases
without the optimizer's state, under `model/`. Leaves are saved by their path in the state, so a checkpoint
can be read without this code.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from jax.tree_util import keystr, tree_flatten_with_path

from slicedice.training.program import TrainState

T = TypeVar("T")


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read."""


class Checkpoints:
    """Checkpoints of one run below `folder`."""

    def __init__(self, folder: Path):
        self.folder = folder.absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(self.folder / "training", options=options)

    def save(self, state: TrainState) -> None:
        """Saves the state after its last step."""
        self._manager.save(int(state.step), args=ocp.args.StandardSave(_by_path(state)), force=True)  # pyright: ignore

    def restore(self, like: TrainState) -> TrainState:
        """Returns the newest state saved, or `like` itself if there is none.

        Raises:
          CheckpointError: the checkpoint cannot be read: it is damaged, of another model, or there is no room for it.
        """
        step = self._manager.latest_step()
        if step is None:
            return like
        try:
            leaves = self._manager.restore(step, args=ocp.args.StandardRestore(_by_path(like)))  # pyright: ignore
        except Exception as error:
            raise CheckpointError(
                f"the checkpoint of step {step} in {self.folder / 'training'} cannot be read "
                f"({type(error).__name__}; the run's log says more). If it is damaged, remove that folder and use "
                "--retry: nothing else is lost, and the run starts over."
            ) from error
        return _into(like, leaves)

    def save_model(self, state: TrainState) -> None:
        """Saves the finished model."""
        with ocp.StandardCheckpointer() as saver:
            saver.save(self.folder / "model", _by_path((state.params, state.bias)), force=True)

    def drop_training_state(self) -> None:
        """Removes what only going on with training needs; for when the result is written."""
        for step in list(self._manager.all_steps()):
            self._manager.delete(step)

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.close()


def _by_path(tree: Any) -> dict[str, jax.Array]:
    return {keystr(path, simple=True, separator="."): leaf for path, leaf in tree_flatten_with_path(tree)[0]}


def _into(like: T, leaves: Mapping[str, Any]) -> T:
    paths, treedef = tree_flatten_with_path(like)
    return jax.tree.unflatten(treedef, [leaves[keystr(path, simple=True, separator=".")] for path, _ in paths])
