"""Live progress of a sweep, read off the store: what trains, how far it is, and when all will be done."""

import time
from datetime import timedelta

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from slicedice.grid import Plan
from slicedice.report.results import settings
from slicedice.spec import RunSpec, run_name
from slicedice.store import Kind, Store

PLAIN_SECONDS = 30.0
"""Between two lines where the output is no terminal."""


class Progress:
    """Shows the state of `runs` whenever `watch` is called, as a live table or as a line now and then."""

    def __init__(self, store: Store, plan: Plan, runs: list[str], console: Console):
        self.store, self.console = store, console
        self.runs: dict[str, RunSpec] = {id_: plan.runs[id_][0] for id_ in runs}
        self.settings = settings(plan.runs)
        self.live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self.began = time.monotonic()
        self._runs = {id_: plan.runs[id_] for id_ in runs}
        self.states = {id_: state for id_, (state, _) in store.look(self._runs).items()}
        self.first = dict(self.states)
        self.first_steps = self._steps()
        self._said, self._next = -PLAIN_SECONDS, 0.0

    def __enter__(self) -> "Progress":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def watch(self) -> None:
        """Reads the store and draws; in large sweeps not at every call, so that looking takes a tenth of the time."""
        began = time.monotonic()
        if began < self._next:
            return
        left = {id_: run for id_, run in self._runs.items() if not self.states[id_].kind.has_result}
        self.states |= {id_: state for id_, (state, _) in self.store.look(left).items()}
        self._next = began + 10 * (time.monotonic() - began)
        if self.live:
            self.live.update(self._table(), refresh=True)
        elif time.monotonic() - self._said > PLAIN_SECONDS:
            self._said = time.monotonic()
            self.console.print(self._line(), soft_wrap=True)

    def _steps(self) -> int:
        return sum(state.steps for state in self.states.values())

    def remaining(self) -> float | None:
        """Seconds to the end at the rate of steps so far; None as long as there is no rate."""
        left = sum(self.runs[id_].budget.steps - self.states[id_].steps for id_ in self.runs if self._waits(id_))
        done = self._steps() - self.first_steps
        if left == 0:
            return 0.0
        return left * (time.monotonic() - self.began) / done if done > 0 else None

    def _waits(self, id_: str) -> bool:
        """Whether the run is still to train: it is now, or is as it was when the sweep began."""
        state = self.states[id_]
        return state.kind is Kind.RUNNING or (not state.kind.has_result and state == self.first[id_])

    def _line(self) -> str:
        kinds = [state.kind for state in self.states.values()]
        counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in Kind if kind in kinds)
        elapsed, remaining = timedelta(seconds=int(time.monotonic() - self.began)), self.remaining()
        end = "" if remaining is None else f", about {timedelta(seconds=int(remaining))} to go"
        return f"{len(kinds)} runs: {counts}; {elapsed} so far{end}"

    def _table(self) -> Group:
        table = Table.grid(padding=(0, 2))
        for id_, state in self.states.items():
            if state.kind is Kind.RUNNING:
                spec = self.runs[id_]
                share = state.steps / spec.budget.steps
                bar = Text("━" * round(24 * share), style="cyan") + Text("─" * (24 - round(24 * share)), style="dim")
                table.add_row(
                    f"{run_name(spec)} {self.settings[id_]}".strip(), bar, f"step {state.steps} of {spec.budget.steps}"
                )
        # Below the table and not in it, where its length would push the bars aside.
        return Group(table, self._line())
