"""Programs that a worker trains with: each is made once, for runs alone or as lanes, and may be compiled ahead."""

import contextlib
import dataclasses
import logging
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from slicedice.faults import is_out_of_memory
from slicedice.spec import Execution, RunSpec, program_key
from slicedice.store import Store, StoreError
from slicedice.store.files import is_disk_full

if TYPE_CHECKING:
    from slicedice.training import Lanes, Program
    from slicedice.training.compilations import Compilations

log = logging.getLogger("slicedice.work")


class Programs:
    """Those of one process, by `program_key`. Several threads may ask for them."""

    def __init__(self, store: Store, is_free: Callable[[str], bool]):
        """Begins with none.

        Args:
          store: where runs are.
          is_free: whether a run is to be trained, and nobody does.
        """
        self.store, self._is_free = store, is_free
        self._programs: dict[str, Program] = {}
        self._lanes: dict[str, Lanes] = {}
        self._without = set[str]()
        self._making = threading.RLock()
        self._compiled_before: Compilations | None = None

    def together(self, runs: Sequence[str]) -> tuple[list[str], "Lanes | None"]:
        """The first of `runs`, and those to be trained beside it, with their lanes; None for a run alone."""
        from slicedice import training

        first = runs[0]
        execution = self.store.run(first).execution()
        alike = self._alike(runs, execution)
        if first not in alike or len(alike) == 1 or (key := program_key(alike[first], execution)) in self._without:
            return [first], None
        try:
            lanes = self._lanes_of(alike, execution, training.packing.lanes_that_pay)
        except Exception as error:
            if is_disk_full(error):
                raise
            # Outside any attempt: if it is the program's own fault, the first run meets it again, and has it on record.
            log.warning("the program of %s has no lanes: %s: %s", first, type(error).__name__, error)
            if not is_out_of_memory(error):  # which may pass, and is soon found out
                self._without.add(key)
            return [first], None
        together = list(alike)[: lanes.width] if lanes else [first]
        return ([first], None) if len(together) == 1 else (together, lanes)

    def _alike(self, runs: Sequence[str], execution: Execution) -> dict[str, RunSpec]:
        """Those of `runs` to train that are of the first one's program, if they may be lanes; none if not."""
        import jax

        most = execution.lanes or (1 if jax.default_backend() == "cpu" else len(runs))
        if most == 1 or jax.process_count() > 1 or execution.mesh_shape.devices > 1:
            return {}
        specs, key = dict[str, RunSpec](), ""
        for run in runs:
            with contextlib.suppress(StoreError):  # which its own turn will tell
                spec = self.store.read_spec(run)
                own = program_key(spec, self.store.run(run).execution())
                key = key or own
                if own == key and self._is_free(run):
                    specs[run] = spec
        return dict(sorted(specs.items(), key=lambda item: item[1].seed))  # runs of a seed read the same batches

    def _lanes_of(
        self,
        alike: dict[str, RunSpec],
        execution: Execution,
        choose: "Callable[[Program, Sequence[int]], Lanes | None]",
    ) -> "Lanes | None":
        """Lanes for runs of a program; `choose` makes them, or not, by the runs' seeds, if nobody said how many."""
        from slicedice import training

        spec = next(iter(alike.values()))
        key = program_key(spec, execution)
        with self._making:
            if key not in self._lanes:
                program = self.program(spec, execution)
                if execution.lanes:
                    made = training.Lanes(program, training.packing.round_of(len(alike), execution.lanes))
                else:
                    made = choose(program, [one.seed for one in alike.values()])
                if made is None:
                    return None
                self._lanes[key] = made
            return self._lanes[key]

    def narrow(self, lanes: "Lanes") -> None:
        """Has later rounds take less memory than these lanes, which ran out of it."""
        from slicedice import training

        with self._making:
            key = program_key(lanes.program.spec, lanes.program.execution)
            self._lanes[key] = training.packing.narrowed(lanes)

    def program(self, spec: RunSpec, execution: Execution) -> "Program":
        """That of a run, made when it is first asked for."""
        from slicedice import training

        key = program_key(spec, execution)
        with self._making:
            if key not in self._programs:
                self._compiled_before = self._compiled_before or training.compilations.so_far()
                self._programs[key] = training.Program(spec, execution)
            return self._programs[key]

    def compile_next(self, current: str, runs: Sequence[str]) -> None:
        """Compiles the step of the first of `runs` to train of another program than `current`.

        Where it is known how many lanes there will be, it is their step.
        """
        from slicedice import training

        own = program_key(self.store.read_spec(current), self.store.run(current).execution())
        for place, run in enumerate(runs):
            with contextlib.suppress(StoreError):  # which its own turn will tell
                spec, execution = self.store.read_spec(run), self.store.run(run).execution()
                if program_key(spec, execution) == own or not self._is_free(run):
                    continue
                alike = self._alike(runs[place:], execution)
                lanes = self._lanes_of(alike, execution, training.packing.known_lanes) if len(alike) > 1 else None
                if lanes and lanes.width > 1:
                    lanes.compile(shared=len({one.seed for one in list(alike.values())[: lanes.width]}) == 1)
                else:
                    self.program(spec, execution).compile()
                return

    def compiled(self) -> dict[str, Any]:
        """What this process compiled since it was last asked: of lanes, the first that ends tells it."""
        from slicedice.training import compilations

        now = compilations.so_far()
        new, self._compiled_before = now.since(self._compiled_before or now), now
        return dataclasses.asdict(new)
