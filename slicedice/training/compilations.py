"""What this process has XLA compile, and what it finds compiled in the cache, by the events of `jax.monitoring`."""

import functools
import threading
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.monitoring

COMPILED, FOUND = "/jax/core/compile/backend_compile_duration", "/jax/compilation_cache/cache_hits"

STEP = "take_step"
"""In the name of what is compiled of a program, for one run or for lanes."""


def quick() -> dict[str, Any] | None:
    """Options of `jax.jit` for what runs seldom: on CPU unoptimised, which compiles in a fraction of the time."""
    return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None


@dataclass
class Compilations:
    """Sums over a process, or over a part of its time.

    steps: training steps that were compiled. steps_from_cache: those that another process, or an earlier one, had
      compiled. seconds: spent on these and all others, initial values and evaluation among them.
    """

    steps: int = 0
    steps_from_cache: int = 0
    seconds: float = 0.0

    def since(self, before: "Compilations") -> "Compilations":
        """What came after that."""
        return Compilations(**{name: value - getattr(before, name) for name, value in asdict(self).items()})


def so_far() -> Compilations:
    """Those of this process since this was asked for the first time."""
    return Compilations(**asdict(_counted()))


@functools.cache
def _counted() -> Compilations:
    total, lock, found = Compilations(), threading.Lock(), threading.local()

    def note_found(event: str, **_: object) -> None:
        if event == FOUND:  # comes before the other, in the same thread
            found.now = True

    def note_compiled(event: str, duration_secs: float, **about: object) -> None:
        if event != COMPILED:
            return
        from_cache, found.now = getattr(found, "now", False), False
        with lock:
            total.seconds += duration_secs
            if STEP in str(about.get("fun_name")):
                total.steps_from_cache += from_cache
                total.steps += not from_cache

    jax.monitoring.register_event_listener(note_found)
    jax.monitoring.register_event_duration_secs_listener(note_compiled)
    return total
