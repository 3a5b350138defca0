"""Orbax behind one small door: a checkpoint is complete or it does not exist.

The training state is kept under `training/`, the newest two; the finished model, parameters and router biases
without the optimizer's state, under `model/`. Leaves are saved by their path in the state, so a checkpoint
can be read without this code; with them go their checksums, see `checksum.py`.
"""

import contextlib
import functools
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.tree_util import keystr, tree_flatten_with_path

from slicedice.parallel import processes
from slicedice.training import checksum
from slicedice.training.program import TrainState

log = logging.getLogger(__name__)

T = TypeVar("T")
P = TypeVar("P")
B = TypeVar("B")


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read."""


KEPT = 2
"""How many checkpoints of training: should the newest be damaged, the one before it is gone on from."""


class Checkpoints:
    """Checkpoints of one attempt at a run, below `folder`, and those of earlier attempts.

    folder: `RUN/attempts/N/checkpoints`.
    earlier: folders of earlier attempts, the newest first, each with the most steps that are gone on from. They are
      removed once this attempt has as many checkpoints as are kept.
    before: called before a state is saved, so that what belongs to its steps is in the store first.
    """

    def __init__(
        self, folder: Path, earlier: Sequence[tuple[Path, int]] = (), before: Callable[[], None] = lambda: None
    ):
        self.folder = _for_orbax(folder)
        self._earlier = [(_for_orbax(other), most) for other, most in earlier]
        self._before = before
        self._passed_over: list[int] = []

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        # It makes its folder, which who only reads the model should not.
        return _manager(self.folder)

    def save(self, state: TrainState) -> None:
        """Saves the state after its last step."""
        self._before()
        while self._passed_over:  # Orbax would refuse to save one of these steps again, and keep them as the newest
            self._manager.delete(self._passed_over.pop())
        content = ocp.args.StandardSave(_with_checksums(_by_path(state)))  # pyright: ignore
        self._manager.save(int(state.step), args=content, force=True)
        if self._earlier and len(self._manager.all_steps()) >= KEPT:
            self._drop_earlier()

    def restore(self, like: TrainState) -> TrainState | None:
        """Returns the newest state saved that can be read, on whatever devices it was saved from; None if none was.

        Args:
          like: shapes, and the sharding that each array is to have, as `Program.like`.

        Raises:
          CheckpointError: none can be read: they are damaged, of another model, or there is no room for them.
        """
        first: CheckpointError | None = None
        self._passed_over = []
        for folder, step in self._saved():
            leaves, error = {}, None
            try:
                leaves = self._read(folder, step, like)
            except CheckpointError as caught:
                error = caught
            if not processes.greatest(error is not None):  # otherwise one would wait below for the others
                if not (changed := checksum.changed(leaves)):
                    log.info("goes on from the checkpoint of step %d in %s", step, folder / "training")
                    return _into(like, leaves)
                error = CheckpointError(_unreadable(folder, step, f"{_some(changed)} not as it was saved"))
            error = error or CheckpointError(f"another process could not read the checkpoint of step {step}")
            log.warning("%s", error, exc_info=error.__cause__)
            first = first or error
            self._passed_over += [step] * (folder is self.folder)
        if first:
            raise first
        return None

    def _saved(self) -> list[tuple[epath.Path, int]]:
        """Folders and steps of all states that may be gone on from, the best first."""
        found = []
        for folder, most in [(self.folder, sys.maxsize), *self._earlier]:
            steps = (int(path.name) for path in (folder / "training").glob("[0-9]*") if _is_whole(path))
            found += [(folder, step) for step in sorted(steps, reverse=True) if step <= most]
        return found

    def _read(self, folder: epath.Path | Path, step: int, like: TrainState) -> dict[str, jax.Array]:
        where, wanted = folder / "training", dict[str, Any](_by_path(like))
        wanted[checksum.NAME] = checksum.shape(wanted, like.step.sharding)
        try:
            with contextlib.closing(_manager(folder, read_only=True)) as manager:
                return manager.restore(step, args=ocp.args.StandardRestore(wanted))  # pyright: ignore
        except Exception as error:
            if difference := _difference(where / str(step) / "default", wanted):
                raise CheckpointError(
                    f"the checkpoint of step {step} in {where} is of another model: {difference}. Move that folder "
                    "away, and after `sweep retry` the run starts over."
                ) from error
            why = f"{type(error).__name__}; the run's log says more"
            raise CheckpointError(_unreadable(folder, step, why)) from error

    def save_model(self, state: TrainState) -> None:
        """Saves the finished model."""
        with ocp.StandardCheckpointer() as saver:
            content = _with_checksums(_by_path((state.params, state.bias)))
            saver.save(self.folder / "model", content, force=True)

    def restore_model(self, like: tuple[P, B]) -> tuple[P, B]:
        """Returns the finished model that `save_model` saved; makes and changes nothing.

        Args:
          like: parameters and router biases of the model, arrays or `jax.ShapeDtypeStruct`s.

        Returns:
          Parameters and biases with the saved values, on this process's first device.

        Raises:
          CheckpointError: there is no finished model, or it cannot be read: it is damaged, or of another model.
        """
        path = self.folder / "model"
        if not path.is_dir():
            raise CheckpointError(
                f"the run {self._run} has no finished model: {path} is missing. It is written when the run is done; "
                "remove the run's folder to train it anew."
            )
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])  # where it was saved may be another device
        wanted = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here) for name, leaf in _by_path(like).items()
        }
        wanted[checksum.NAME] = checksum.shape(wanted, here)
        try:
            with ocp.StandardCheckpointer() as reader:
                leaves = reader.restore(path, wanted)
        except Exception as error:
            difference = _difference(path, wanted)
            what = f"of another model: {difference}" if difference else "damaged"
            raise self._model_error(type(error).__name__, what) from error
        if changed := checksum.changed(leaves):
            raise self._model_error(f"{_some(changed)} not as it was saved", "damaged")
        return _into(like, leaves)

    def _model_error(self, why: str, what: str) -> CheckpointError:
        return CheckpointError(
            f"the finished model of the run {self._run} cannot be read ({why}): {self.folder / 'model'} is {what}. "
            "Remove the run's folder to train it anew."
        )

    @property
    def _run(self) -> epath.Path:
        """The folder of the run, of whose attempt `N` this is `attempts/N/checkpoints`."""
        return self.folder.parents[2]

    def drop_training_state(self) -> None:
        """Removes what only going on with training needs; for when the result is written."""
        for step in list(self._manager.all_steps()):
            self._manager.delete(step)
        self._drop_earlier()

    def _drop_earlier(self) -> None:
        if processes.leads():
            # Not the finished model beside it: the attempt may have finished the run after all.
            for folder, _ in self._earlier:
                try:
                    (folder / "training").rmtree(missing_ok=True)
                except Exception as error:  # it is in nobody's way
                    log.warning("%s is not removed: %s", folder, error)
        self._earlier = []

    def close(self) -> None:
        """Waits for what is being written."""
        if "_manager" in vars(self):
            self._manager.close()


def _for_orbax(folder: Path) -> epath.Path:
    """A folder, or what has the name of one in a bucket, by Orbax's own means."""
    return epath.Path(os.fspath(folder.absolute()))


def _is_whole(step: epath.Path) -> bool:
    """Whether the folder of a step is a whole checkpoint: in a bucket, Orbax cannot rename what is not yet."""
    return step.name.isdecimal() and ("://" not in os.fspath(step) or ocp.utils.is_checkpoint_finalized(step))


def _manager(folder: epath.Path | Path, *, read_only: bool = False) -> ocp.CheckpointManager:
    kept = None if read_only else KEPT
    options = ocp.CheckpointManagerOptions(max_to_keep=kept, enable_async_checkpointing=False, read_only=read_only)
    return ocp.CheckpointManager(folder / "training", options=options)


def _unreadable(folder: epath.Path | Path, step: int, why: str) -> str:
    return (
        f"the checkpoint of step {step} in {folder / 'training'} cannot be read ({why}). If it is damaged, remove that "
        "folder: nothing else is lost, and after `sweep retry` the run starts over."
    )


def _some(names: Sequence[str]) -> str:
    return f"{names[0]} is" if len(names) == 1 else f"{names[0]} and {len(names) - 1} more are"


def _with_checksums(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return leaves | {checksum.NAME: checksum.checksums(leaves)}


def _difference(path: epath.Path | Path, wanted: Mapping[str, Any]) -> str:
    """The first array that is not there as it is wanted, in words; "" if all are, or what is there cannot be told."""
    try:
        with ocp.StandardCheckpointer() as reader:
            there = {name: tuple(leaf.shape) for name, leaf in reader.metadata(path).item_metadata.items()}
    except Exception:  # damaged
        return ""
    asked = {name: leaf.shape for name, leaf in wanted.items()}
    for name in sorted({*there, *asked}):
        if there.get(name) != asked.get(name):
            has, wants = (f"of shape {shapes[name]}" if name in shapes else "nothing" for shapes in (there, asked))
            return f"of {name} it has {has}, and this run {wants}"
    return ""


def _by_path(tree: Any) -> dict[str, jax.Array]:
    return {keystr(path, simple=True, separator="."): leaf for path, leaf in tree_flatten_with_path(tree)[0]}


def _into(like: T, leaves: Mapping[str, Any]) -> T:
    paths, treedef = tree_flatten_with_path(like)
    return jax.tree.unflatten(treedef, [leaves[keystr(path, simple=True, separator=".")] for path, _ in paths])
