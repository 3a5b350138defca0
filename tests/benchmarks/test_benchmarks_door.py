"""The door to the benchmarks: what is listed, when a ratio counts as worse, and what is said where nothing compares."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import __main__ as door
from benchmarks import chart, overhead, records
from benchmarks.catalogue import BENCHMARKS, GPU_SECONDS, GROUPS, OTHERS, Benchmark, Bound
from slicedice.data import prepare
from slicedice.evaluation import scoring
from slicedice.store import Store

FOLDER = Path(door.__file__).parent
BENCHMARK = Benchmark(
    "made_up",
    "nothing",
    0.1,
    (
        Bound("time *", "lower", 1.6, noise=1.5),
        Bound("memory *", "one", 1.15, noise=1.1),
        Bound("*", "higher", 2.0, noise=1.5),
    ),
)


def verdict(name: str, now: float, stored: float) -> str:
    (found,) = records.compare(BENCHMARK, {name: now}, {name: stored})
    return found.verdict


@pytest.mark.parametrize(
    ("name", "better", "stored", "noisy", "worse"),
    [
        ("rate over theirs", 9.0, 3.0, 2.1, 1.9),
        ("time over dense", 0.3, 1.2, 1.7, 1.9),
        ("memory of a step", 1.0, 1.05, 1.14, 1.25),
        ("memory of a step", 1.0, 1.05, 0.9, 0.8),
    ],
)
def test_only_worse_beyond_noise_is_a_regression(name: str, better: float, stored: float, noisy: float, worse: float):
    assert [verdict(name, now, stored) for now in (better, stored, noisy, worse)] == ["ok", "ok", "ok", "WORSE"]


def test_no_number_and_nothing_measured_are_regressions():
    assert verdict("rate", float("nan"), 3.0) == "WORSE"
    assert verdict("rate", 0.0, 3.0) == "WORSE"
    assert verdict("time of it", 0.1, 0.0) == "WORSE"
    assert verdict("time of it", 0.0, 0.0) == "ok"
    gone, new = records.compare(BENCHMARK, {"rate of b": 1.0}, {"rate of a": 1.0})
    assert gone.is_regression
    assert not new.is_regression


def test_targets():
    rate, time, memory = (BENCHMARK.bound(name) for name in ("rate", "time of it", "memory of it"))
    assert (rate.meets(2.0), rate.meets(1.9)) == (True, False)
    assert (time.meets(1.6), time.meets(1.7)) == (True, False)
    assert [memory.meets(x) for x in (0.8, 0.9, 1.1, 1.2)] == [False, True, True, False]


def test_every_script_is_listed(capsys: pytest.CaptureFixture[str]):
    assert door.main(["--list"]) == 0
    listed = capsys.readouterr().out
    scripts = {path.stem for path in FOLDER.glob("[!_]*.py") if "\nif __name__ ==" in path.read_text()}
    assert scripts == {benchmark.name for benchmark in BENCHMARKS} | OTHERS.keys()
    assert all(f"\n{script}" in listed for script in scripts)
    assert all('"--json"' in benchmark.path.read_text() for benchmark in BENCHMARKS)


def test_the_gpu_group_ends_within_8_minutes():
    """Each has its share, however long those before it took within theirs, and what these left over."""
    group = GROUPS["gpu"]
    shares = [benchmark.gpu_seconds for benchmark in group]
    assert sum(shares) <= GPU_SECONDS < 8 * 60
    for place in range(len(group)):
        spent = sum(shares[:place])
        assert door.limit_of_first(group[place:], spent) >= shares[place]
        assert spent + door.limit_of_first(group[place:], spent) <= GPU_SECONDS
    assert door.limit_of_first(group[-1:], 100.0) == GPU_SECONDS - 100


def test_a_machine_without_a_gpu_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert door.main(["--group", "gpu"]) == 1
    assert "needs a GPU" in capsys.readouterr().err


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Has the door find, of whatever it runs, these ratios on this device, and an empty folder of results."""
    found = {"device": "Good chip 2", "cores": 2, "ratios": {"rate": 3.0}}
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    monkeypatch.setattr(records, "run", lambda benchmark, limit=None: {"benchmark": benchmark.name, **found})
    return found


def test_check(measured: dict[str, Any], capsys: pytest.CaptureFixture[str]):
    """A device of which nothing is stored compares with none; then a worse ratio fails, and a better one does not."""
    door.measure(BENCHMARK, None, check=False, save=True)
    measured["device"] = "Good chip 3"
    assert door.measure(BENCHMARK, None, check=True, save=False)
    said = capsys.readouterr().out
    assert "nothing is stored of Good chip 3; the nearest of what is stored is Good chip 2" in said
    measured["device"] = "Good chip 2"
    for now, is_fine in ((6.0, True), (2.5, True), (1.5, False)):
        measured["ratios"] = {"rate": now}
        assert door.measure(BENCHMARK, None, check=True, save=False) is is_fine
    assert "WORSE (2.00 times as bad, noise up to 1.5)" in capsys.readouterr().out


def test_a_script_runs_and_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With what it printed last, and how it was made; one that fails, says nothing or runs too long is told apart."""
    monkeypatch.setattr(records, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(Benchmark, "path", property(lambda self: tmp_path / f"{self.name}.py"))
    where = {"device": "A (good) chip", "platform": "cpu", "cores": 1, "python": "3", "git_revision": None}
    monkeypatch.setattr(records, "provenance", lambda only_cpu: where | {"packages": {"jax": "1"}})
    script = tmp_path / "made_up.py"
    script.write_text('print("talk")\nprint(\'{"rows": [1], "ratios": {"rate": 3.0}}\')\n')
    record = records.run(BENCHMARK)
    path = records.save(record)
    assert path == tmp_path / "results" / "A-good-chip" / "made_up.json"
    assert records.stored("made_up", "A (good) chip") == json.loads(json.dumps(record))
    assert record["command"] == "python benchmarks/made_up.py --json"
    assert (record["ratios"], record["details"], record["packages"]) == ({"rate": 3.0}, {"rows": [1]}, {"jax": "1"})
    for text, reason in (
        ("raise SystemExit(3)", "status 3"),
        ("print('{}')", "no JSON object with `ratios`"),
        ("import time; time.sleep(60)", "limit of 1 s"),
    ):
        script.write_text(text)
        with pytest.raises(records.RunError, match=reason):
            records.run(BENCHMARK, limit=1.0)


def test_stored_ratios_have_bounds_and_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each that is committed; and of made up ones, those that meet their targets lie right of the line."""
    by_name = {benchmark.name: benchmark for benchmark in BENCHMARKS}
    for record in records.everything():
        for name in record["ratios"]:
            by_name[record["benchmark"]].bound(name)
    made_up = [{"benchmark": "active_flops", "device": "a", "ratios": {"10m x over dense": 1.5, "versus x": 1.5}}]
    assert [times >= 1 for _, times, _ in chart.bars(made_up)] == [False, True]
    monkeypatch.setattr(chart, "PATH", tmp_path / "chart.svg")
    assert "2 ratios of 1 devices" in chart.write(made_up)
    assert "active_flops: versus x" in (tmp_path / "chart.svg").read_text()


def test_parts_of_a_sweeps_time():
    """Two workers, of which one trains two runs: all parts, without compilation, are the workers' whole time."""
    run = partial(overhead.Run, scored=True)
    runs = [
        run("x", "a", 1, began=10.0, stepped=32.0, ended=35.0, steps=20.0, compiling=2.0, compiled=1),
        run("y", "b", 1, began=36.0, stepped=57.0, ended=60.0, steps=20.0, compiling=0.0, compiled=0),
        run("z", "b", 2, began=12.0, stepped=45.0, ended=50.0, steps=30.0, compiling=3.0, compiled=1, scored=False),
    ]
    found = overhead.parts(runs, {"a": 0.5, "b": 2.0}, begin=0.0, end=70.0)
    seconds = {name: round(140 * share, 1) for name, share in found.items()}
    assert seconds.pop("compilation, in other parts already") == 5
    assert seconds == {
        "steps of training": 70,
        "steps of evaluation": 2.5,
        "start": 22,
        "before and between steps": 2 + 1 + 3,
        "after the last step": 3 + 3 + 5 - 2.5,
        "between runs": 1,
        "waiting": 10,
        "report": 20,
    }
    assert sum(seconds.values()) == 140
    assert list(overhead.outside(found).values()) == [pytest.approx(67.5 / 140, abs=1e-4), 0.5]


def test_held_out_text_is_scored_at_the_median_time(tmp_path: Path, tiny, monkeypatch: pytest.MonkeyPatch):
    """A model may be scored in several ways; the first step of each compiles."""
    store, text = Store(tmp_path / "store").create(), tmp_path / "text"
    text.mkdir()
    for i in range(200):
        (text / f"{i}.txt").write_text(f"{i} times {i} is {i * i}, and that is that. " * 3)
    spec, execution = tiny({"data.source": str(text)})
    prepare(spec.data.source, spec.data.tokenizer, store.data, spec.data.heldout_fraction)
    store.run(spec).create(spec, execution)
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)

    def way(seconds: float, calls: list[float]):
        def score(*rows: np.ndarray) -> np.ndarray:
            calls.append(seconds if calls else 100.0)
            clock.now += calls[-1]
            return np.zeros(len(rows[0]))

        return score

    ways: tuple[list[float], list[float]] = [], []
    monkeypatch.setattr(overhead, "time", clock)
    monkeypatch.setattr(scoring, "scorers", lambda *_: {"one": way(2.0, ways[0]), "two": way(3.0, ways[1])})
    seconds = overhead.scoring(store, store.run(spec).path.name)
    assert len(ways[0]) == len(ways[1]) > 2
    assert seconds == 5.0 * len(ways[0])
