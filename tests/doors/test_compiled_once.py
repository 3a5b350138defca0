"""However many processes train a program, one of them compiles its step."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from slicedice.data import prepare
from slicedice.store import Store
from slicedice.worker import Worker
from tests.evaluation.files import write_lines


def add(store: Store, texts: Path, tiny, **fields: object) -> str:
    spec, execution = tiny({"data.source": str(texts), "model.layers": 1, **fields})
    prepare(spec.data.source, spec.data.tokenizer, store.data, spec.data.heldout_fraction)
    store.run(spec).create(spec, execution)
    return store.run(spec).path.name


def write_texts(folder: Path) -> Path:
    draw = np.random.default_rng(0)
    write_lines(folder / "all.jsonl", [{"text": "".join(draw.choice(list("abcd "), 60)) + "x"} for _ in range(8)])
    return folder


def compiled(store: Store, run: str) -> tuple[int, int]:
    """Steps compiled for a run, and found in the cache."""
    found = (store.run(run).result() or {})["compilation"]
    assert found["seconds"] > 0 or found["steps"] == found["steps_from_cache"] == 0
    return found["steps"], found["steps_from_cache"]


def test_processes_that_begin_at_once_compile_a_program_once(tmp_path: Path, tiny):
    store, texts = Store(tmp_path / "store").create(), write_texts(tmp_path / "texts")
    runs = [add(store, texts, tiny, seed=seed) for seed in range(2)]
    command = [sys.executable, "-m", "slicedice.work", "--store", str(store.root)]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    workers = [subprocess.Popen([*command, run], env=environment) for run in runs]
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    assert sorted(compiled(store, run) for run in runs) == [(0, 1), (1, 0)]


def test_a_process_compiles_each_program_for_its_first_run(tmp_path: Path, tiny):
    store, texts = Store(tmp_path / "store").create(), write_texts(tmp_path / "texts")
    runs = [
        add(store, texts, tiny, **fields) for fields in ({}, {"seed": 1}, {"model.experts": "n=4 g=1/2"}, {"seed": 2})
    ]
    list(Worker(store).train_all(runs))
    # By what came before in this process, the cache may have them.
    assert [sum(compiled(store, run)) for run in runs] == [1, 0, 1, 0]


def test_what_is_compiled_for_some_threads_is_not_taken_for_others(tmp_path: Path, tiny):
    """The compiler cuts loops into a part for each."""
    store, texts = Store(tmp_path / "store").create(), write_texts(tmp_path / "texts")
    runs = [add(store, texts, tiny, seed=seed) for seed in range(3)]
    for run, threads in zip(runs, ("1", "2", "1"), strict=True):
        command = [sys.executable, "-m", "slicedice.work", "--store", str(store.root), run]
        told = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"), "NPROC": threads, "JAX_NUM_CPU_DEVICES": "1"}
        assert subprocess.run(command, env=os.environ | told, timeout=300).returncode == 0
    assert [compiled(store, run) for run in runs] == [(1, 0), (1, 0), (0, 1)]
