"""While a worker trains on an accelerator, it compiles what comes next; here the CPU stands for one."""

import io
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slicedice import ahead, training, work
from slicedice.data import prepare
from slicedice.programs import Programs
from slicedice.store import Kind, Store
from slicedice.training import Lanes, Program
from slicedice.worker import Worker
from tests.evaluation.files import write_lines

OTHER = {"model.experts": "n=4 g=1/2"}
"""Another program."""


@pytest.fixture
def room(tiny, tmp_path: Path) -> Callable[..., tuple[Store, list[str]]]:
    """A store with runs that differ as is said, and their ids."""
    draw = np.random.default_rng(0)
    texts = [{"text": "".join(draw.choice(list("abcd "), 60)) + "x"} for _ in range(8)]
    write_lines(tmp_path / "texts" / "all.jsonl", texts)

    def made(*changes: dict[str, Any]) -> tuple[Store, list[str]]:
        store, ids = Store(tmp_path / "store").create(), []
        for change in changes:
            spec, execution = tiny({"data.source": str(tmp_path / "texts"), "model.layers": 1, **change})
            prepare(spec.data.source, spec.data.tokenizer, store.data, spec.data.heldout_fraction)
            store.run(spec).create(spec, execution)
            ids.append(store.run(spec).path.name)
        return store, ids

    return made


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has it pay here, where each run waits at its beginning until all is done that was begun."""
    monkeypatch.setattr(ahead, "pays", lambda: True)
    train = training.train

    def waiting(*arguments: Any, **settings: Any) -> Any:
        for thread in threading.enumerate():
            if thread.name == ahead.NAME:
                thread.join()
        return train(*arguments, **settings)

    monkeypatch.setattr(training, "train", waiting)


def compiled(store: Store, runs: list[str]) -> list[int]:
    """Steps compiled by the end of each run, since the one before had ended, or found where other tests had them so."""
    found = ((store.run(run).result() or {})["compilation"] for run in runs)
    return [about["steps"] + about["steps_from_cache"] for about in found]


def test_the_next_program_is_compiled_when_its_first_run_begins(room):
    store, runs = room({}, {"seed": 1}, OTHER, {**OTHER, "seed": 1}, {"model.d_model": 32})
    assert [kind for _, kind in Worker(store).train_all(runs)] == [Kind.DONE] * 5
    assert compiled(store, runs) == [2, 0, 1, 0, 0]


def test_lanes_are_compiled_if_their_number_is_known(room, monkeypatch: pytest.MonkeyPatch):
    seeds = [{"seed": seed, "execution.lanes": 2} for seed in range(2)]
    rates = [{"optimizer.learning_rate": rate, "execution.lanes": 2} for rate in (1e-3, 2e-3)]
    store, runs = room(*seeds, *({**OTHER, **one} for one in rates))
    assert [kind for _, kind in Worker(store).train_all(runs)] == [Kind.DONE] * 4
    assert [sum(compiled(store, part)) for part in (runs[:2], runs[2:])] == [2, 0]


@pytest.mark.parametrize("known", [0, 2])
def test_lanes_whose_number_is_not_known_have_the_step_of_one_compiled(room, known: int, monkeypatch):
    store, runs = room({}, *({**OTHER, "seed": seed} for seed in range(2)))
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    monkeypatch.setattr(
        training.packing, "known_lanes", lambda program, seeds: Lanes(program, known) if known else None
    )
    monkeypatch.setattr(training.packing, "lanes_that_pay", pytest.fail)
    asked = []
    for kind in (Program, Lanes):
        monkeypatch.setattr(kind, "compile", lambda self, kind=kind, **about: asked.append((kind, about)))
    Programs(store, lambda run: True).compile_next(runs[0], runs[1:])
    assert asked == [(Lanes, {"shared": False})] if known else [(Program, {})]


def test_what_fails_ahead_fails_no_run_that_trains(room, monkeypatch: pytest.MonkeyPatch):
    store, runs = room({}, OTHER)
    compile_ = Program.compile

    def fails(program: Program) -> Any:
        if threading.current_thread().name == ahead.NAME:
            raise ValueError("no such kernel")
        return compile_(program)

    monkeypatch.setattr(Program, "compile", fails)
    assert [kind for _, kind in Worker(store).train_all(runs)] == [Kind.DONE] * 2
    assert compiled(store, runs) == [1, 1]


def test_what_may_come_is_compiled_and_not_trained(room, monkeypatch: pytest.MonkeyPatch, capsys):
    store, runs = room({}, {"seed": 1}, OTHER)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{runs[0]} / {runs[1]} {runs[2]}\n{runs[1]} /\n"))
    assert work.main(["--store", str(store.root)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{run} done" for run in runs[:2]]
    assert compiled(store, runs[:2]) == [2, 0]
    assert store.run(runs[2]).state().kind is Kind.MISSING


@pytest.mark.parametrize("why", ["unknown", "damaged", "done", "of the same program"])
def test_hints_that_come_to_nothing_do_no_harm(room, why: str):
    store, (first, other, same) = room({}, OTHER, {"seed": 1})
    hint = {"unknown": "0123456789ab", "of the same program": same}.get(why, other)
    if why == "damaged":
        (store.run(other).path / "spec.json").write_text("{")
    if why == "done":
        assert [kind for _, kind in Worker(store).train_all([other])] == [Kind.DONE]
    assert dict(Worker(store).train_all([first], [hint])) == {first: Kind.DONE}
    assert compiled(store, [first]) == [1]


def test_out_of_memory_beside_a_compilation_is_tried_again_as_it_was(room, monkeypatch: pytest.MonkeyPatch):
    store, runs = room({}, OTHER)
    step, failed = Program.step, []

    def no_room_once(program: Program, *arguments: Any) -> Any:
        if not failed:
            failed.append(program)
            raise RuntimeError("RESOURCE_EXHAUSTED: a compiler times its kernels")
        return step(program, *arguments)

    monkeypatch.setattr(Program, "step", no_room_once)
    assert [kind for _, kind in Worker(store).train_all(runs)] == [Kind.DONE] * 2
    assert (store.run(runs[0]).result() or {})["execution"]["micro_batch"] == 8


def test_a_worker_ends_without_waiting_for_what_it_compiles(room):
    store, runs = room({}, OTHER)
    script = """
import runpy, sys, threading, time
from slicedice import ahead, training

compile_ = training.Program.compile
ahead.pays = lambda: True
training.Program.compile = lambda self: (time.sleep(600) if ahead.NAME in threading.current_thread().name else 0,
    compile_(self))[1]
runpy.run_module("slicedice.work", run_name="__main__")
"""
    line = f"{runs[0]} / {runs[1]}\n"
    command = [sys.executable, "-c", script, "--store", str(store.root)]
    ended = subprocess.run(command, input=line, capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stdout) == (0, f"{runs[0]} done\n"), ended.stderr[-2000:]


@pytest.mark.parametrize(
    ("backend", "processes", "expected"), [("gpu", 1, True), ("tpu", 1, True), ("cpu", 1, False), ("gpu", 2, False)]
)
def test_it_pays_where_an_accelerator_trains_one_process(monkeypatch, backend: str, processes: int, expected: bool):
    monkeypatch.undo()
    monkeypatch.setattr("jax.default_backend", lambda: backend)
    monkeypatch.setattr("jax.process_count", lambda: processes)
    assert ahead.pays() is expected
