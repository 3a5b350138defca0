"""The sweep: trains what is missing and no more, tells what it found, and ends with the right status."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from slicedice import machine, sweep
from slicedice.spec import SCHEMA
from slicedice.store import Kind

POINTS = 3


def read_json(text: str) -> Any:
    """Reads JSON as the standard has it, without NaN."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def states(desk) -> dict[str, str]:
    """States by run name, from the door itself."""
    return {run["name"]: run["state"] for run in read_json(desk.sweep("status", "--json").out)["runs"]}


def test_a_sweep_trains_what_is_missing_and_reports(desk):
    source = (desk.folder / "sweeps" / "mine.py").read_text()
    figure = 'figures=(Figure("figure_1", "Mine", (Panel("P", x="g", hue="n"),)),)'
    source = source.replace("import Grid", "import Figure, Grid, Panel").replace(
        "Grid(points)", f"Grid(points, {figure})"
    )
    desk.write("sweeps/mine.py", source)
    call = desk.sweep()
    assert call.status == 0
    (launched,) = desk.launched
    assert sorted(launched) == [run.path.name for run in desk.runs]
    assert len(launched) == POINTS
    (report,) = (desk.folder / "runs" / "reports").iterdir()
    files = {"index.html", "claims.json", "results.parquet", "results.csv", "figure_1.png", "figure_1.svg"}
    assert {path.name for path in report.iterdir()} == files
    assert "Is mine better?" in (report / "index.html").read_text()
    assert f"runs/reports/{report.name}" in call.out
    assert all(loss in call.out for loss in ("3.0000", "3.1250", "3.2500"))


def test_a_second_sweep_launches_nothing_and_reports_again(desk):
    first = desk.sweep()
    (page,) = (desk.folder / "runs" / "reports").glob("mine-smoke*/index.html")
    page.unlink()
    second = desk.sweep()
    assert second.status == 0
    assert page.exists()
    assert len(desk.launched) == 1
    assert second.out.splitlines()[-5:] == first.out.splitlines()[-5:]


def test_what_is_launched_comes_in_the_grids_order_with_its_folders(desk):
    desk.sweep("--seeds", "2", "--max_concurrent", "3")
    plan = read_json(desk.sweep("plan", "--json", "--seeds", "2").out)["runs"]
    names = {run["id"]: run["name"] for run in plan}
    assert [names[id_] for id_ in desk.launched[0]] == [
        f"smoke-{layer}-seed{seed}"
        for seed in (0, 1)
        for layer in ("dense", "g1/2-n4-s2-dropless", "g1/4-n8-s2-dropless")
    ]
    assert '"max_concurrent": 3' in (desk.folder / "launched.jsonl").read_text()


def test_runs_that_were_interrupted_or_never_begun_are_launched_again(desk):
    desk.outcomes(n4="preempted", n8="missing")
    call = desk.sweep()
    assert call.status == 1
    assert "smoke-g1/2-n4-s2-dropless-seed0" in call.out
    assert "because" in call.out
    assert sorted(states(desk).values()) == ["done", "missing", "preempted"]
    desk.outcomes()
    assert desk.sweep().status == 0
    assert [len(launch) for launch in desk.launched] == [3, 2]
    assert set(states(desk).values()) == {"done"}


@pytest.mark.parametrize("kind", ["crashed", "out_of_memory"])
def test_failed_runs_are_told_and_launched_only_when_asked_for(desk, kind: str):
    desk.outcomes(n4=kind)
    call = desk.sweep()
    assert call.status == 1
    failed = next(run.path.name for run in desk.runs if run.state().kind == kind)
    assert f"smoke-g1/2-n4-s2-dropless-seed0 · {failed} {kind}: because" in call.out
    assert "the verb retry" in call.out
    assert desk.sweep("status").status == 0
    assert desk.sweep("report").status == 1
    assert desk.sweep().status == 1
    assert len(desk.launched) == 1
    # The verb retry takes up what failed, and nothing else: the second seed is not begun.
    retry = ["retry", "--seeds", "2"]
    assert desk.sweep(*retry).status == 1
    assert desk.launched[1:] == [[failed]]
    desk.outcomes()
    desk.sweep(*retry)
    assert desk.launched[2:] == [[failed]]
    assert desk.sweep("retry").status == 0
    assert len(desk.launched) == 3
    assert set(states(desk).values()) == {"done"}


def test_a_run_that_diverged_is_a_result(desk):
    desk.outcomes(n4="diverged")
    call = desk.sweep()
    assert call.status == 0
    assert "diverged" in call.out
    for arguments in ([], ["retry"]):
        assert desk.sweep(*arguments).status == 0
    assert len(desk.launched) == 1


def test_json_is_json_whatever_the_runs_found(desk):
    desk.outcomes(n4="diverged", n8="crashed")
    call = desk.sweep("--json")
    assert call.status == 1
    report = read_json(call.out)
    assert report["notes"] == []
    assert [run["state"] for run in report["runs"]] == ["done", "diverged", "crashed"]
    assert read_json(desk.sweep("report", "--json").out) == report
    status = read_json(desk.sweep("status", "--json").out)
    added = [{name: run.pop(name) for name in ("last_step", "failures")} for run in status["runs"]]
    assert status == {"runs": report["runs"], "notes": []}
    assert [own["failures"] for own in added] == [{}, {}, {"crashed": 1}]
    assert [run.get("loss") for run in status["runs"]] == [3.0, None, None]


def test_two_grids_that_share_a_point_share_the_run(desk):
    desk.sweep()
    source = (desk.folder / "sweeps" / "mine.py").read_text()
    # The same layer, written differently, and a point of its own.
    desk.write("sweeps/other.py", source.replace('"n=4 g=1/2"', '"g=1/2 k=2 n=4"').replace("n=8 g=1/4", "n=16 g=1/4"))
    assert desk.sweep(grid="other").status == 0
    assert [len(launch) for launch in desk.launched] == [3, 1]
    assert len(desk.runs) == 4
    assert len(list((desk.folder / "runs" / "reports").iterdir())) == 2


def test_a_grid_that_repeats_itself_trains_once(desk):
    source = (desk.folder / "sweeps" / "mine.py").read_text()
    desk.write("twice.py", source.replace('"dense",', '"dense", "n=1 g=1", "dense",'))
    desk.sweep(grid="./twice.py")
    assert [len(launch) for launch in desk.launched] == [3]


def test_plan_counts_costs_and_leaves_no_trace(desk):
    def there() -> list[Path]:
        return sorted(path for path in desk.folder.rglob("*") if "__pycache__" not in path.parts)

    before = there()
    for arguments in (["plan"], ["--dry_run"], ["retry", "--dry_run"], ["plan", "--json"]):
        call = desk.sweep(*arguments, "--device", "h100")
        assert (call.status, call.err) == (0, "")
    assert there() == before
    call = desk.sweep("plan", "--device", "h100")
    assert "3 of 3 runs to train" in call.out
    assert "h100" in call.out


def test_plan_leaves_an_empty_folder_empty(desk):
    (desk.folder / "runs").mkdir()
    assert "3 of 3 runs to train" in desk.sweep("plan").out
    assert list((desk.folder / "runs").iterdir()) == []


def test_plan_leaves_out_what_is_done(desk):
    desk.outcomes(n4="crashed", n8="preempted")
    desk.sweep()
    call = desk.sweep("plan")
    assert "1 of 3 runs to train" in call.out
    assert "1 of 3 runs to train" in desk.sweep("retry", "--dry_run").out
    for arguments, kind in ((["plan"], Kind.PREEMPTED), (["retry", "--dry_run"], Kind.CRASHED)):
        plan = read_json(desk.sweep("--json", *arguments).out)
        assert (plan["count"], plan["to_train"]) == (3, 1)
        (chosen,) = [run["id"] for run in plan["runs"] if run["to_train"]]
        assert plan["flops"] == next(run["flops"] for run in plan["runs"] if run["id"] == chosen)
        assert next(run for run in desk.runs if run.path.name == chosen).state().kind is kind
    assert len(desk.launched) == 1


def test_plan_as_json_has_every_run_with_its_cost(desk):
    plan = read_json(desk.sweep("plan", "--json", "--device", "v5e").out)
    assert (plan["device"], plan["count"], plan["to_train"]) == ("v5e", POINTS, POINTS)
    assert plan["flops"] == sum(run["flops"] for run in plan["runs"])
    assert plan["hours"] == pytest.approx(sum(run["seconds"] for run in plan["runs"]) / 3600)
    dense, coarse, fine = plan["runs"]
    assert dense["name"] == "smoke-dense-seed0"
    for run in plan["runs"]:
        assert run["to_train"] is True
        assert run["tokens"] == 60 * 8 * 32
        assert min(run["flops"], run["bytes"], run["seconds"]) > 0
    # Twice the experts of half the width: the same expert parameters, more router.
    assert fine["parameters"] - coarse["parameters"] == 2 * 16 * 4
    assert dense["parameters"] < coarse["parameters"]


def test_status_of_a_sweep_that_has_not_begun(desk):
    assert states(desk) == {
        "smoke-dense-seed0": "missing",
        "smoke-g1/2-n4-s2-dropless-seed0": "missing",
        "smoke-g1/4-n8-s2-dropless-seed0": "missing",
    }
    call = desk.sweep("status")
    assert (call.status, call.err) == (0, "")
    assert call.out.count("missing") == 1 + 3  # as the head of a column, and of each run
    assert desk.launched == []


def test_report_of_a_sweep_that_is_half_done(desk):
    desk.outcomes(n8="missing")
    desk.sweep()
    call = desk.sweep("report")
    assert call.status == 0
    assert call.out.count("missing") == 1
    assert len(desk.launched) == 1


@pytest.mark.parametrize("pattern", ["*-n8-*", "*n8*", "id"])
def test_only_some_runs(desk, pattern: str):
    plan = read_json(desk.sweep("plan", "--json").out)["runs"]
    wanted = next(run["id"] for run in plan if "-n8-" in run["name"])
    call = desk.sweep("--only", wanted if pattern == "id" else pattern)
    assert call.status == 0
    assert desk.launched == [[wanted]]
    desk.sweep()
    assert [len(launch) for launch in desk.launched] == [1, 2]


def test_seeds_are_added_to_those_that_are_done(desk):
    desk.sweep()
    call = desk.sweep("--seeds", "3")
    assert [len(launch) for launch in desk.launched] == [3, 6]
    assert call.status == 0
    seeds = {run["seed"] for run in read_json(desk.sweep("status", "--json", "--seeds", "3").out)["runs"]}
    assert seeds == {0, 1, 2}


def test_fields_from_the_command_line_reach_every_run(desk):
    desk.sweep("--config.optimizer.learning_rate=0.25", "--config.seed=7")
    rows = read_json(desk.sweep("status", "--json", "--config.optimizer.learning_rate=0.25", "--config.seed=7").out)[
        "runs"
    ]
    assert [(row["learning_rate"], row["seed"], row["state"]) for row in rows] == [(0.25, 7, "done")] * POINTS
    assert set(states(desk).values()) == {"missing"}


def test_fields_may_have_spaces(desk):
    # Shells hand over such an argument whole, and it stands where argparse would look for the verb.
    desk.write("sweeps/plain.py", "from slicedice.grid import Grid\n\n\ndef get_grid(scale):\n    return Grid([{}])\n")
    call = desk.sweep("--config.model.experts=n=4 k=2 g=1/2", grid="plain")
    assert call.status == 0
    (run,) = desk.runs
    assert '"n":4' in (run.path / "spec.json").read_text()
    desk.write("my texts/a.jsonl", '{"text": "one"}\n{"text": "two"}\n')
    assert desk.sweep("--config.data.source=my texts", grid="plain").status == 0
    assert len(desk.launched) == 2


def test_a_store_has_the_name_one_gives_it(desk):
    assert desk.sweep("--store", "else/where").status == 0
    assert (desk.folder / "else" / "where" / "store.json").exists()
    assert not (desk.folder / "runs").exists()


@pytest.mark.parametrize(("accelerator", "scale"), [(False, "nano"), (True, "10m")])
def test_the_scale_follows_the_machine(desk, monkeypatch, capsys, accelerator: bool, scale: str):
    monkeypatch.setattr(machine, "has_accelerator", lambda: accelerator)
    assert sweep.main(["plan", "--json", "--grid", "mine"]) == 0
    plan = read_json(capsys.readouterr().out)
    assert {run["name"].split("-")[0] for run in plan["runs"]} == {scale}


def test_grids_see_the_scale(desk):
    source = (desk.folder / "sweeps" / "mine.py").read_text()
    desk.write("sweeps/mine.py", source.replace("    points =", '    assert scale == "smoke"\n    points ='))
    assert desk.sweep("plan").status == 0


def broken(error: str) -> str:
    """The source of a launcher that raises."""
    return (
        "from dataclasses import dataclass\nfrom slicedice import files\nfrom slicedice.launching import LaunchError\n"
        "\n\n@dataclass(frozen=True)\n"
        f"class Broken(files.load('launch', 'fake.py').Fake):\n    def attend(self, job):\n        raise {error}\n\n\n"
        "def get_launcher():\n    return Broken()\n"
    )


def test_ctrl_c_is_told_in_a_sentence(desk):
    desk.write("stopped.py", broken("KeyboardInterrupt"))
    call = desk.sweep(launcher="stopped.py")
    assert call.status == 130
    assert "Traceback" not in call.err
    assert "same command" in call.err


@pytest.mark.parametrize("what", ["disk", "launch"])
def test_what_ends_a_launch_is_told_in_a_sentence(desk, what: str):
    errors = {"disk": f"OSError({errno.ENOSPC}, 'No space left')", "launch": "LaunchError('the engine is gone')"}
    source = broken(errors[what])
    desk.write("broken.py", source)
    call = desk.sweep(launcher="broken.py")
    assert call.status == 2
    assert len(call.err.strip().splitlines()) == 1
    assert {"disk": "disk is full", "launch": "the engine is gone"}[what] in call.err


def test_a_result_of_another_schema_is_trained_again(desk):
    desk.sweep()
    run = desk.runs[0]
    path = run.path / "result.json"
    path.write_text(path.read_text().replace(f'"schema": {SCHEMA}', f'"schema": {SCHEMA + 1}'))
    desk.sweep()
    assert desk.launched[1:] == [[run.path.name]]


def test_the_checkout_need_not_be_the_working_folder(desk, monkeypatch, tmp_path: Path):
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    call = desk.sweep("plan", "--json", grid=str(desk.folder / "sweeps" / "mine.py"))
    assert len(read_json(call.out)["runs"]) == POINTS
    assert desk.sweep("plan", "--json", grid="granularity_vs_count").status == 0


def test_finished_runs_on_text_that_has_changed_are_told_and_kept(desk):
    desk.sweep()
    file = next((desk.folder / "texts").rglob("*.jsonl"))
    file.write_text(file.read_text() + '\n{"text": "and more"}')
    told = desk.sweep()
    assert "3 finished runs were trained on other text" in told.out
    assert len(desk.launched) == 1
    assert "3 finished runs were trained on other text" in desk.sweep("retry").out
    assert len(desk.launched) == 1
    assert set(states(desk).values()) == {"done"}


def test_a_vocabulary_below_the_tokenizers_is_refused(desk, capsys: pytest.CaptureFixture[str]):
    assert desk.sweep("--config.model.vocab_size=64").status == 2
    assert desk.launched == []


def test_a_varied_setting_is_shown_and_dense_is_compared_at_the_same_setting(desk):
    source = (desk.folder / "sweeps" / "mine.py").read_text()
    rates = 'product(axis("optimizer.learning_rate", [1e-3, 4e-3]), points)'
    desk.write("sweeps/rates.py", source.replace("Grid(points)", f"Grid({rates})").replace("axis\n", "axis, product\n"))
    report = read_json(desk.sweep("--json", grid="rates").out)
    assert {run["settings"] for run in report["runs"]} == {"learning_rate=0.001", "learning_rate=0.004"}
    assert len({run["beside"] for run in report["runs"]}) == 2
    assert desk.sweep("report", grid="rates").status == 0
    (page,) = (desk.folder / "runs" / "reports").glob("rates-smoke*/index.html")
    assert "learning_rate=0.004" in page.read_text()


def test_looking_makes_no_store(desk):
    assert desk.sweep("status").status == 0
    assert desk.sweep("plan").status == 0
    report = desk.sweep("report")
    assert report.status == 2
    assert "no store at runs" in report.err
    assert not (desk.folder / "runs").exists()


def test_status_tells_what_is_left_out(desk):
    desk.sweep()
    result = desk.runs[0].path / "result.json"
    content = read_json(result.read_text())
    content["provenance"]["data_fingerprint"] = "0" * 12
    result.write_text(json.dumps(content))
    name = next(run["name"] for run in read_json(desk.sweep("plan", "--json").out)["runs"] if run["id"] in str(result))
    (note,) = [line for line in desk.sweep("status").out.splitlines() if line.startswith("Left out, ")]
    assert "other text" in note
    assert name in note
    # The state of every run is told; a report has none of its numbers.
    left_out = read_json(desk.sweep("status", "--json").out)["runs"][-1]
    assert (left_out["name"], left_out["state"], left_out.get("loss")) == (name, "done", None)
    assert len(read_json(desk.sweep("report", "--json").out)["runs"]) == POINTS - 1


def test_what_varies_beside_the_layer_is_in_the_plan(desk):
    desk.write(
        "sweeps/rates.py",
        "from slicedice.grid import Grid, axis\n\n\ndef get_grid(scale):\n"
        "    return Grid(axis('optimizer.learning_rate', [0.5, 0.25]))\n",
    )
    told = desk.sweep("plan", grid="rates").out
    assert "learning_rate=0.5" in told
    assert "learning_rate=0.25" in told
    runs = read_json(desk.sweep("plan", "--json", grid="rates").out)["runs"]
    assert [run["settings"] for run in runs] == ["learning_rate=0.5", "learning_rate=0.25"]


def test_two_files_of_one_name_have_reports_of_their_own(desk):
    desk.sweep()
    desk.write("other/mine.py", (desk.folder / "sweeps" / "mine.py").read_text())
    desk.sweep(grid="other/mine.py")
    desk.sweep(grid="sweeps/mine.py")  # by its path, the same file
    assert len(list((desk.folder / "runs" / "reports").iterdir())) == 2
