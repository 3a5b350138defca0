"""A store in which much is missing, damaged, copied or foreign: reports end, name it, and leave the rest as it is."""

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from slicedice import sweep
from slicedice.grid import Plan, enumerate_runs, load_config, load_grid
from slicedice.report.tables import MOST_LINES
from slicedice.spec import SCHEMA
from slicedice.store import Kind, RunFolder, Store
from tests import endings

GRID = '''
"""How much can go wrong?"""

from slicedice.grid import Figure, Grid, Panel, axis, product


def get_grid(scale):
    layers = axis("model.experts", ["dense", *(f"n={s * g} g=1/{g}" for g in (2, 4, 8) for s in (2, 4, 8))])
    balancing = product(axis("router.alpha", [0.0, 1e-4, 1e-2]), axis("router.gamma", [0.0, 1e-3]))
    panels = (Panel("Size", x="g", hue="n"),)
    figures = (
        Figure("loss", "Loss", panels, columns="balancing"),
        Figure("train", "Train", panels, layers, y="train_loss"),
    )
    return Grid(product(layers, balancing), figures, seeds=5)
'''
RUNS = 5 * (1 + 9 * 6)  # dense models have no balancing

Do = Callable[[RunFolder, RunFolder], object]
"""Something done to the folder of a run, for which there is that of another run to copy."""


def rewrite(name: str, **changes: Any) -> Do:
    """Replaces keys of a JSON file."""

    def do(run: RunFolder, _: RunFolder) -> None:
        path = run.path / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return do


def write(name: str, content: bytes) -> Do:
    return lambda run, _: (run.path / name).write_bytes(content)


def truncate(name: str) -> Do:
    """Leaves half of a file."""

    def do(run: RunFolder, _: RunFolder) -> None:
        content = (run.path / name).read_bytes()
        (run.path / name).write_bytes(content[: len(content) // 2])

    return do


def become_copy(run: RunFolder, other: RunFolder) -> None:
    shutil.rmtree(run.path)
    shutil.copytree(other.path, run.path)


def become_file(run: RunFolder, _: RunFolder) -> None:
    shutil.rmtree(run.path)
    run.path.write_text("words")


def have_a_folder_for_a_result(run: RunFolder, _: RunFolder) -> None:
    (run.path / "result.json").unlink()
    (run.path / "result.json").mkdir()


def be_interrupted(run: RunFolder, _: RunFolder) -> None:
    (run.path / "result.json").unlink()
    run.attempt().metrics.write_text('{"step": 0}\n{"step": 1}\n{"st')


def fail(run: RunFolder, _: RunFolder) -> None:
    (run.path / "result.json").unlink()
    endings.fail(run, Kind.CRASHED, "ValueError: [/red] f32[batch] $x^ <b>")


def fail_badly(run: RunFolder, other: RunFolder) -> None:
    fail(run, other)
    (run.attempts()[0].path / "end.json").write_text("[")


class Damage(NamedTuple):
    """What is done, the state that follows, and words of the reason that is told."""

    do: Do
    state: str
    why: str = ""


SPEC, RESULT, METRICS = "spec.json", "result.json", "attempts/1/metrics.jsonl"
CANNOT = "its result.json cannot be read: it is"
NAN = {"macro": {"nats": math.nan, "bits_per_byte": math.nan}}
OTHER_TEXT = {"data_fingerprint": "other", "device": "d", "git_revision": None, "finished": "now"}
DAMAGE = {
    "missing": Damage(lambda run, _: shutil.rmtree(run.path), "missing"),
    "diverged": Damage(rewrite(RESULT, kind="diverged", steps=3, evaluation={}), "diverged"),
    "crashed": Damage(fail, "crashed", "[/red] f32[batch] $x^ <b>"),
    "damaged failure": Damage(fail_badly, "crashed", "its end.json is damaged"),
    "interrupted": Damage(be_interrupted, "preempted", "its result.json is gone"),
    "copy of another": Damage(become_copy, "missing", "its spec.json is of another run"),
    "truncated spec": Damage(truncate(SPEC), "missing", "its spec.json is damaged"),
    "no spec": Damage(lambda run, _: (run.path / SPEC).unlink(), "missing", "its spec.json is missing"),
    "spec of another schema": Damage(rewrite(SPEC, schema=SCHEMA + 1), "missing", "or of another version"),
    "truncated result": Damage(truncate(RESULT), "preempted", f"{CANNOT} damaged"),
    "result of another schema": Damage(rewrite(RESULT, schema=SCHEMA + 1), "preempted", f"{CANNOT} of schema"),
    "list": Damage(write(RESULT, b"[1, 2]"), "preempted", f"{CANNOT} damaged"),
    "bytes": Damage(write(RESULT, b"\xff\x00" * 99), "preempted", f"{CANNOT} damaged"),
    "file": Damage(become_file, "crashed", "its folder cannot be read"),
    "folder for a result": Damage(have_a_folder_for_a_result, "crashed", RESULT),
    "NaN loss": Damage(rewrite(RESULT, evaluation={"held_out": NAN}), "done", "it has no finite held-out loss"),
    "text for a number": Damage(rewrite(RESULT, train={"load_imbalance": "1"}), "done", "str is no number"),
    "no provenance": Damage(rewrite(RESULT, provenance=None), "done", "its result.json is damaged"),
    "other text": Damage(rewrite(RESULT, provenance=OTHER_TEXT), "done", "trained on other text"),
}
FAILED = ("crashed", "damaged failure", "interrupted", "file", "folder for a result")
"""What ends a run without a result, and is told in its row alone."""
HARMLESS: dict[str, Do] = {
    "truncated metrics": truncate(METRICS),
    "NaN in training": rewrite(RESULT, train={"cross_entropy": math.nan, "load_imbalance": 1.5}),
    "copy beside": lambda run, _: shutil.copytree(run.path, run.path.with_name(f"{run.path.name} copy")),
}
"""What leaves a run its loss."""


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """The grid's plan, in a working folder that has its file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "much.py").write_text(GRID)
    return enumerate_runs([(load_grid("much", "smoke"), load_config("smoke"))], overrides={})


@pytest.fixture
def full(plan: Plan, tmp_path: Path, content, rng, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store in which all runs are done."""
    monkeypatch.setattr("slicedice.store.files.os.fsync", lambda _: None)  # a power cut would spoil nothing here
    store = Store(tmp_path / "runs").create()
    for id_, (spec, execution) in plan.runs.items():
        run, loss = store.run(id_), float(rng.normal(2.0, 0.1))
        run.create(spec, execution)
        endings.finish(run, Kind.DONE, content({"a": loss - 0.1, "b": loss + 0.1, "macro": loss}, steps=60))
        run.attempt().metrics.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(60)))
    return store


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any]]:
    """The sweep's exit status and what it prints; as JSON that has to be as the standard has it, without NaN."""

    def made(*arguments: str) -> tuple[int, Any]:
        capsys.readouterr()
        status = sweep.main([*arguments, "--grid", "much", "--scale", "smoke"])
        out = capsys.readouterr().out
        return status, json.loads(out, parse_constant=pytest.fail) if "--json" in arguments else out

    return made


@pytest.fixture
def damaged(full: Store, plan: Plan) -> dict[str, str]:
    """What was done to runs, by id: everything to two of them; beside them lie things that are no runs."""
    cases = [*DAMAGE, *DAMAGE, *HARMLESS]
    done_to = dict(zip(plan.runs, cases, strict=False))
    other = full.run(list(plan.runs)[-1])
    for id_, name in done_to.items():
        do = DAMAGE[name].do if name in DAMAGE else HARMLESS[name]
        do(full.run(id_), other)
    shutil.copytree(other.path, full.root / "runs" / "ffffffffffff")
    (full.root / "runs" / "notes.txt").write_text("words")
    return done_to


def by_id(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in rows}


def test_what_is_damaged_is_named_and_the_rest_is_as_it_was(full: Store, plan: Plan, call, request):
    clean = by_id(call("report", "--json")[1]["runs"])
    assert list(clean) == list(plan.runs)
    assert len(clean) == RUNS
    done_to: dict[str, str] = request.getfixturevalue("damaged")
    status, report = call("report", "--json")
    rows, states = by_id(report["runs"]), by_id(call("status", "--json")[1]["runs"])
    lacking = by_id(call("report", "--missing", "--json")[1]["missing"])
    assert status == 1
    assert list(rows) == [id_ for id_ in plan.runs if done_to.get(id_) != "other text"]
    assert set(states) == set(plan.runs)
    for id_, row in states.items():
        name = done_to.get(id_, "")
        told = {column: value for column, value in row.items() if column not in ("last_step", "failures")}
        assert told == rows.get(id_, told), name
        if name not in DAMAGE:
            assert (row["loss"], row["reason"], id_ in lacking) == (clean[id_]["loss"], None, False), name
            continue
        _, state, why = DAMAGE[name]
        assert (row["state"], row.get("loss"), id_ in lacking) == (state, None, name != "diverged"), name
        assert why in (row["reason"] or ""), name
    untouched = plan.runs.keys() - done_to.keys()
    assert {id_: rows[id_] for id_ in untouched} == {id_: clean[id_] for id_ in untouched}
    # What was trained and cannot be used is in a note as well.
    left_out = [id_ for id_, name in done_to.items() if name in DAMAGE and DAMAGE[name].why and name not in FAILED]
    for why, count in Counter(states[id_]["reason"] for id_ in left_out).items():
        (note,) = [note for note in report["notes"] if note.startswith(f"Left out, {why}: ")]
        names, _, more = note.removeprefix(f"Left out, {why}: ").partition(" and ")
        assert len(names.split(", ")) + int(more.removesuffix(" more") or 0) == count, why
        assert set(names.split(", ")) <= {states[id_]["name"] for id_ in left_out if states[id_]["reason"] == why}
    notes = "\n".join(report["notes"])
    copied = next(id_ for id_, name in done_to.items() if name == "copy beside")
    assert all(name in notes for name in (f"{copied} copy", "notes.txt", "ffffffffffff"))


def test_every_verb_ends_over_a_damaged_store(full: Store, plan: Plan, damaged: dict[str, str], call):
    notes = call("report", "--json")[1]["notes"]
    status, page = call("report")
    assert status == 1
    (folder,) = (full.root / "reports").iterdir()
    files = {path.name for path in folder.iterdir()}
    assert files >= {"index.html", "results.parquet", "results.csv", "claims.json", "loss.svg", "train.png"}
    assert all(note in page for note in notes)
    assert all(word in (folder / "index.html").read_text() for word in ("notes.txt", "ffffffffffff", "other text"))
    status, told = call("status")
    assert status == 0
    assert all(note in told for note in notes)
    quiet = sum(name in ("missing", "diverged", *HARMLESS) for name in damaged.values()) + RUNS - len(damaged)
    assert f"{quiet} more runs are listed by --only PATTERN or --json." in told
    assert call("report", "--missing")[0] == 0
    for id_ in (next(iter(damaged)), next(id_ for id_, name in damaged.items() if name == "file"), list(plan.runs)[-1]):
        status, why = call("why", id_, "--json")
        assert (status, why["runs"]) == (0, [id_])
        assert "loss" in {line["figure"] for line in why["why"]}
    assert call("diff", *list(damaged)[:2])[0] == 0
    states = [row["state"] for row in call("status", "--json")[1]["runs"]]
    assert call("plan", "--json")[1]["to_train"] == states.count("missing") + states.count("preempted")


def test_a_store_of_another_version_is_all_left_out(full: Store, plan: Plan, call):
    for id_ in plan.runs:
        rewrite(RESULT, schema=SCHEMA + 1)(full.run(id_), full.run(id_))
    status, report = call("report", "--json")
    assert status == 1
    assert {(row["state"], row.get("loss")) for row in report["runs"]} == {("preempted", None)}
    (note,) = report["notes"]
    assert f"schema {SCHEMA + 1}" in note
    assert note.endswith(f" and {RUNS - 5} more")
    assert call("report")[0] == 1
    assert f"{RUNS - MOST_LINES} more runs are listed by" in call("status")[1]
