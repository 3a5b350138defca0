"""Runs of one program trained at once, each a lane of one step that is mapped over all of them.

A small model does not fill an accelerator: most of its step goes into starting kernels, and into reading weights that
few rows are multiplied with. As lanes, several models share each start and fill the chip together. Each lane has its
own numbers, seed, metrics and checkpoints, and is the run that it would be alone, but for the order in which a wider
kernel may add up.

The code of a run stays that of a run alone: `train` takes a `Lane` where it would take a `Program`. Every lane has a
thread, of which one works at a time, until it comes to its next step; once all that are left have, the step is taken
for all, and they go on in order. With its first step a lane's state becomes part of what is stacked, before the next
lane makes or reads its own, so that there is memory for one at a time beside the others.
"""

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_map_with_path
from jaxtyping import Array, Int

from slicedice.model import Decoder
from slicedice.training.gradients import Hyper
from slicedice.training.program import Program, TrainState, compiling_alone

T = TypeVar("T")


class Lanes:
    """The state of all lanes, stacked on the device, and the step of all.

    width: how many there is room for. What a lane without a run computes, nobody reads.
    ran_out: whether a lane left the others in `train`, for want of memory.
    """

    def __init__(self, program: Program, width: int):
        self.program, self.width, self.ran_out = program, width, False
        # Layers stay the first axis, which the step scans over: with lanes in front, it would turn all weights around.
        self._axes = axes = tree_map_with_path(lambda path, _: int("blocks" in keystr(path)), program.like)
        self._step_of = {
            shared: jax.jit(jax.vmap(program.take_step, (axes, None if shared else 0, 0), (axes, 0)), donate_argnums=0)
            for shared in (True, False)
        }
        self._compiled: dict[bool, jax.stages.Compiled] = {}
        self._compiling = threading.Lock()
        self._with = jax.jit(self._replaced, donate_argnums=0)
        self._take = jax.jit(lambda all_, lane: jax.tree.map(lambda axis, x: x.take(lane, axis), axes, all_))
        self._state: TrainState | None = None
        self._shared = True

    def put(self, lane: int, state: TrainState) -> None:
        """Has a lane go on from a state, whose memory is given back at once: so many beside these might not fit."""
        if self._state is None:
            self._state = jax.tree.map(self._zeros, self._axes, self.program.like)
        self._state = self._with(self._state, lane, state)
        jax.tree.map(lambda leaf: leaf.delete(), state)

    def read(self, lane: int) -> TrainState:
        """The state of a lane."""
        return self._take(self._state, lane)

    def step(self, batches: Sequence[np.ndarray], hypers: Sequence[Hyper]) -> dict[str, Array]:
        """Takes a step of every lane; returns metrics, each [width].

        Args:
          batches: [B, S + 1] of each.
          hypers: of each.
        """
        self._shared &= all(np.array_equal(batch, batches[0]) for batch in batches)
        hyper = jax.tree.map(lambda *numbers: np.stack(numbers), *hypers)
        batch = batches[0] if self._shared else np.stack(batches)
        self._state, metrics = self.compile(self._shared)(self._state, batch, hyper)
        return metrics

    def compile(self, shared: bool) -> jax.stages.Compiled:
        """The step of all as it is compiled, once: by this thread or by another one that has begun to.

        Args:
          shared: whether all lanes read the same batch.
        """
        with self._compiling:
            if shared not in self._compiled:
                state, shape = jax.tree.map(self._shape, self._axes, self.program.like), self.program.batch_shape
                batch = jax.ShapeDtypeStruct(shape if shared else (self.width, *shape), jnp.int32)
                number = jax.ShapeDtypeStruct((self.width,), jnp.float32)
                hyper = jax.tree.map(lambda _: number, Hyper.of(self.program.spec))
                with compiling_alone(self.program):
                    self._compiled[shared] = self._step_of[shared].lower(state, batch, hyper).compile()
            return self._compiled[shared]

    def clear(self) -> None:
        """Gives all memory back."""
        self._state, self._shared = None, True

    def train(self, works: Sequence[Callable[["Lane"], T]]) -> list[T]:
        """Calls each function with a lane of its own, in a thread of its own, and returns what they return.

        Args:
          works: as many as there is room for; each takes steps by its lane.

        Raises:
          BaseException: what one of them let out, the first in order, after all have ended. What a step raises, each
            of them is handed.
        """
        assert len(works) <= self.width
        self.clear()
        self.ran_out = False
        lanes = [Lane(self, index, work) for index, work in enumerate(works)]
        while working := [lane for lane in lanes if lane.takes_steps]:
            interrupt = None
            for lane in working:
                try:
                    lane.work()
                except KeyboardInterrupt as caught:
                    interrupt = caught
                    lane.wait()
            working = [lane for lane in working if lane.takes_steps]
            error = interrupt or next((lane.error for lane in working if lane.error), None)
            if working and not error:
                try:
                    self._advance(working)
                except BaseException as caught:
                    error = caught
            if error:
                self.clear()  # its memory may be what is needed now
            for lane in working:
                lane.error = error
            del error, interrupt  # what they were raised in holds states
        self.clear()
        for lane in lanes:
            if not lane.is_over:
                lane.work()
        for lane in lanes:
            if lane.failure:
                raise lane.failure
        return [lane.result for lane in lanes]  # pyright: ignore[reportReturnType]

    def _advance(self, lanes: Sequence["Lane"]) -> None:
        """Takes the step that each of `lanes` has come to."""
        of = {lane.index: lane for lane in lanes}
        each = [of.get(index, lanes[0]) for index in range(self.width)]
        metrics = self.step([lane.batch for lane in each], [lane.hyper for lane in each])
        for lane in lanes:
            lane.beside[len(lanes)] += 1
            lane.metrics = {name: _Of(values, lane.index) for name, values in metrics.items()}

    def _zeros(self, axis: int, leaf: jax.ShapeDtypeStruct) -> Array:
        whole = self._shape(axis, leaf)
        return jnp.zeros(whole.shape, whole.dtype, device=whole.sharding)

    def _shape(self, axis: int, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        shape = *leaf.shape[:axis], self.width, *leaf.shape[axis:]
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=leaf.sharding)

    def _replaced(self, all_: TrainState, lane: Int[Array, ""], state: TrainState) -> TrainState:
        def put(axis: int, x: Array, own: Array) -> Array:
            return jax.lax.dynamic_update_index_in_dim(x, own, lane, axis)

        return jax.tree.map(put, self._axes, all_, state)


class Lane:
    """What `train` takes for the program of one run of several; its state is the lane itself, once it has taken a step.

    Attributes:
      batch, hyper: what its next step is to be taken of.
      metrics: of its last step.
      beside: how many of its steps were taken by how many lanes.
      error: what its step raised.
      takes_steps: whether it has neither ended nor left the others.
      is_over, result, failure: whether its function has ended, and what it returned or raised.
    """

    def __init__(self, lanes: Lanes, index: int, work: Callable[["Lane"], Any]):
        self._lanes, self.index = lanes, index
        self.batch: Any = None
        self.hyper: Any = None
        self.metrics: dict[str, Any] = {}
        self.beside = Counter[int]()
        self.error: BaseException | None = None
        self.takes_steps, self.is_over, self.result, self.failure = True, False, None, None
        self._may_work, self._rests = threading.Semaphore(0), threading.Semaphore(0)
        self.like, self.init = lanes.program.like, lanes.program.init
        threading.Thread(target=self._run, args=(work,), name=f"lane {index}", daemon=True).start()

    @property
    def width(self) -> int:
        """How many lanes took a step together, in most of its steps; 1 if it took none."""
        return self.beside.most_common(1)[0][0] if self.beside else 1

    def model(self, state: TrainState) -> Decoder:
        """As the program's."""
        return self._lanes.program.model(state)

    def place(self, rows: Callable[[slice], np.ndarray]) -> np.ndarray:
        """The batch, which goes to the device together with the others'."""
        return rows(slice(0, self._lanes.program.spec.budget.batch_size))

    def step(self, state: Any, batch: Any, hyper: Hyper) -> tuple[Any, dict[str, Any]]:
        """Its step, which is taken once all lanes have come to theirs.

        Raises:
          BaseException: what that raised. The state is lost.
        """
        self.batch, self.hyper = batch, hyper
        if state is not self:
            try:
                self._lanes.put(self.index, state)
            except BaseException as error:  # which ends the step of all
                jax.tree.map(lambda leaf: leaf.delete(), state)
                self.error = error
        self._rest()
        try:
            if self.error:
                raise self.error
        finally:
            self.error = None
        return self, self.metrics

    def leave(self) -> None:
        """Has the others go on without it, and waits until they have ended or left, with no state on the device."""
        self._lanes.ran_out, self.takes_steps = True, False
        self._rest()

    def read(self, state: Any) -> TrainState:
        """A state of this lane as arrays."""
        return self._lanes.read(self.index) if state is self else state

    def work(self) -> None:
        """Lets its thread work until that comes to its next step, leaves, or comes to its end."""
        self._may_work.release()
        self.wait()

    def wait(self) -> None:
        """Waits for that."""
        self._rests.acquire()

    def _rest(self) -> None:
        self._rests.release()
        self._may_work.acquire()

    def _run(self, work: Callable[["Lane"], Any]) -> None:
        self._may_work.acquire()
        try:
            self.result = work(self)
        except BaseException as error:
            self.failure = error
        self.takes_steps, self.is_over = False, True
        self._rests.release()


class _Of:
    """One lane's number of an array [lanes], which is fetched once for all of them."""

    def __init__(self, values: Array, lane: int):
        self._values, self._lane = values, lane

    def item(self) -> float | int:
        """The number."""
        return np.asarray(self._values)[self._lane].item()
