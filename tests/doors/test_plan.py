"""`sweep plan`: where runs would train, what that costs, and what the compiler makes of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from slicedice import machine, planning, sweep
from slicedice.cost import RATES, checking
from slicedice.cost.checking import Answer, Program
from slicedice.cost.topology import parse_topology
from slicedice.grid import Plan

GRID = "granularity_vs_count"
MOE = "*-g1/4-n32-s8-*"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(machine, "has_accelerator", lambda: False)


def _plan(capsys, *flags: str, status: int = 0) -> dict[str, Any]:
    assert sweep.main(["plan", "--grid", GRID, "--scale", "300m", "--json", *flags]) == status
    return json.loads(capsys.readouterr().out)


def _refused(capsys, *flags: str) -> str:
    assert sweep.main(["plan", "--grid", GRID, "--scale", "300m", *flags]) == 2
    return capsys.readouterr().err


def test_a_pod_shares_every_run_out(capsys):
    plan = _plan(capsys, "--topology", "v5p:4x4x4", "--price", "4")
    assert (plan["topology"], plan["devices"], plan["device"]) == ("v5p:4x4x4", 64, "v5p")
    assert plan["count"] == len(plan["runs"]) == 49
    for run in plan["runs"]:
        sizes = [int(part.split("=")[1]) for part in run["mesh"].split()]
        assert sizes[0] * (sizes[1] if len(sizes) > 1 else 1) == run["devices"] == 64
        assert run["traffic_bytes"] == sum(run["traffic"].values()) > 0
        assert run["bytes"] == sum(run["memory"].values()) < 95 * 2**30
        assert run["price"] == pytest.approx(4 * 64 * run["seconds"] / 3600)
        assert "fits" not in run
    assert plan["price"] == pytest.approx(sum(run["price"] for run in plan["runs"]))
    assert plan["device_hours"] == pytest.approx(64 * plan["hours"])


def test_more_devices_take_less_time_and_hold_less(capsys):
    few, many = (_plan(capsys, "--only", MOE, "--topology", f"v5p:{shape}")["runs"][0] for shape in ("2x2x2", "4x4x4"))
    assert few["seconds"] > 6 * many["seconds"]
    assert few["memory"]["optimizer"] > 6 * many["memory"]["optimizer"]
    assert few["flops"] == many["flops"]


def test_a_mesh_of_ones_own_is_kept(capsys):
    (run, *_) = _plan(capsys, "--only", MOE, "--topology", "v5e:4x4", "--config.execution.mesh=data=2 expert=8")["runs"]
    assert run["mesh"] == "data=2 expert=8"
    said = _refused(capsys, "--only", MOE, "--topology", "v5e:4x4", "--config.execution.mesh=data=2 expert=4")
    assert "execution.mesh" in said
    assert "8 devices, and v5e:4x4 has 16" in said
    flags = "--only", "*-n2-*", "--topology", "v5e:4x4", "--config.execution.mesh=data=2 expert=8"
    assert "8 devices cannot share out the n = 2 experts" in _refused(capsys, *flags)


def test_fitting_finds_room(capsys):
    flags = "--only", "*-g1/4-n256-*", "--topology", "v5e:4x4", "--config.execution.micro_batch=32"
    (as_it_is, *_) = _plan(capsys, *flags, status=1)["runs"]
    (fitted, *_) = _plan(capsys, *flags, "--fit")["runs"]
    assert as_it_is["micro_batch"] == 32
    assert as_it_is["bytes"] > 15.75 * 2**30 > fitted["bytes"]
    assert (fitted["micro_batch"], fitted["remat"]) != (32, False)


def test_utilization_is_assumed_unless_it_is_asked_for(capsys):
    assumed, asked = (
        _plan(capsys, "--device", "v5p", "--only", "*-dense-*", *flags) for flags in ((), ("--mfu", "0.7"))
    )
    assert (assumed["utilization"], asked["utilization"]) == (0.35, 0.7)
    assert assumed["hours"] == pytest.approx(2 * asked["hours"])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--topology", "v5z:4x4"], ["--topology", "v5p:4x4x4", "h100:8", "slices=2"]),
        (["--topology", ""], ["--topology = ''", "v5p:4x4x4", "h100:8"]),
        (["--topology", "v5e:2x32"], ["--topology", "8x16"]),
        (["--topology", "v5p:8x8x8"], ["512 devices", "64 routing groups of 300m-", "router.group = 8"]),
        (["--topology", "v5e:4x4", "--device", "v5e"], ["--device", "names the device"]),
        (["--fit"], ["--fit", "--topology"]),
        (["--compile"], ["--compile", "--topology"]),
        (["--compile", "--topology", "h100:8"], ["--compile", "TPUs have"]),
        *((["--mfu", share], ["--mfu", "up to 1"]) for share in ("1.5", "0", "nan", "inf")),
        *((["--price", price], ["--price", "from 0", "finite"]) for price in ("-1", "inf", "nan")),
        (["--topology", "v5e:4x4", "--config.execution.mesh=data=3"], ["execution.mesh", "divides 512"]),
        (["--topology", "v5e:4x4", "--config.execution.mesh=experts=4"], ["execution.mesh", "data=8 expert=4"]),
    ],
)
def test_bad_input(flags: list[str], words: list[str], capsys):
    said = _refused(capsys, *flags)
    assert all(word in said for word in words), said


def test_flags_of_plan_go_with_plan(capsys):
    for verb, *flag in (["status", "--topology", "v5e:4x4"], ["status", "--topology", ""], ["run", "--price", "0"]):
        assert sweep.main([verb, "--grid", GRID, *flag]) == 2
        assert "goes with plan" in capsys.readouterr().err


def test_the_scale_that_was_taken_is_told_where_a_topology_is_too_large(capsys):
    flags = ["plan", "--grid", GRID, "--topology", "v5p:4x4x4"]
    assert sweep.main(flags) == 2
    assert "these are runs of nano" in capsys.readouterr().err
    assert sweep.main([*flags, "--scale", "nano"]) == 2
    assert "without which" not in capsys.readouterr().err


def test_a_topology_has_to_do_for_what_is_to_be_trained_alone(desk):
    """What is done keeps its execution where the topology is not for it, and is planned for it elsewhere."""
    pod = "--topology", "h100:2"
    assert "1 routing groups of smoke-g1/2-n4-" in desk.sweep("plan", *pod).err
    assert desk.sweep("--only", "*-n*").status == 0
    for trained in (False, True):
        plan = json.loads(desk.sweep("plan", "--json", *pod).out)
        assert plan["to_train"] == 1 - trained
        assert [run["mesh"] for run in plan["runs"]] == ["data=2", "", ""]
        assert desk.sweep(*pod).status == 0
    executed = {run.execution().mesh for run in desk.runs}
    assert executed == {"", "data=2"}


def test_an_empty_topology_is_no_leave_to_train_here(desk):
    """As an unset variable of a shell makes it."""
    said = desk.sweep("--topology", "")
    assert said.status == 2
    assert "--topology = ''" in said.err
    assert desk.launched == []


def test_of_many_that_do_not_fit_the_rest_are_counted(capsys):
    assert sweep.main(["plan", "--grid", GRID, "--scale", "300m", "--device", "v5e"]) == 1
    said = capsys.readouterr().out
    assert said.count(" does not fit: ") == 20
    assert said.splitlines()[-1] == "Nor do 17 more."


def test_a_sweep_runs_on_the_topology_it_was_planned_for(capsys, desk):
    """As the plan has it, under the same ids."""
    flags = "--topology", "h100:2", "--fit", "--config.router.group=1", "--config.execution.micro_batch=1"
    planned = json.loads(desk.sweep("plan", "--json", *flags).out)["runs"]
    assert desk.sweep(*flags).status == 0
    executed = {run.path.name: json.loads((run.path / "execution.json").read_text()) for run in desk.runs}
    assert len(executed) == len(planned) == 3
    for run in planned:
        execution = executed[run["id"]]
        assert run["mesh"] in ("data=2", "expert=2")
        assert {key: execution[key] for key in ("mesh", "micro_batch", "remat")} == {
            key: run[key] for key in ("mesh", "micro_batch", "remat")
        }
    assert {run["micro_batch"] for run in planned} != {1}


def test_runs_of_one_program_keep_what_is_not_compiled(tiny):
    spec, _ = tiny({"model.experts": "n=4 g=1/2", "router.group": 1})
    runs = {str(every): (spec, tiny({"execution.evaluate_every": every})[1]) for every in (0, 3)}
    where = planning.Where("h100", RATES["h100"], parse_topology("--topology", "h100:2"))
    planned = planning.plan_runs(Plan(runs), where, (), search=True)
    assert {id_: one.execution.evaluate_every for id_, one in planned.items()} == {"0": 0, "3": 3}
    assert len({(one.execution.mesh, one.execution.micro_batch) for one in planned.values()}) == 1


def test_without_the_compiler_the_plan_goes_on_and_says_how_to_get_it(capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checking, "has_compiler", lambda: False)
    flags = ["plan", "--grid", GRID, "--scale", "300m", "--only", MOE, "--topology", "v5e:4x4", "--compile"]
    assert sweep.main(flags) == 1
    said = capsys.readouterr().out
    assert "pip install --editable '.[tpu]' --constraint constraints.txt" in said
    assert "300m-g1/4-n32-s8-dropless-seed0" in said


class Compiler:
    """Says that what has a micro-batch over `largest` does not fit, and counts what it is asked."""

    def __init__(self, largest: int):
        self.largest, self.asked = largest, []

    def __call__(self, program: Program, children: checking.Children) -> Answer:
        self.asked.append(program)
        fits = program.execution.micro_batch <= self.largest
        return {"fits": fits, "bytes": 2**30 * program.execution.micro_batch, "traffic": 5.0, "seconds": 1.0}


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    answers = Compiler(8)
    monkeypatch.setattr(checking, "_ask", answers)
    monkeypatch.setattr(checking, "has_compiler", lambda: True)
    return answers


def test_a_program_is_compiled_once(capsys, compiler: Compiler):
    """Not for each seed, and not again."""
    flags = "--only", MOE, "--seeds", "3", "--topology", "v5e:4x4", "--compile"
    plan = _plan(capsys, *flags)
    assert len(plan["runs"]) == 3
    assert len(compiler.asked) == 1
    assert {(run["fits"], run["compiled_bytes"]) for run in plan["runs"]} == {(True, 8 * 2**30)}
    assert _plan(capsys, *flags)["runs"] == plan["runs"]
    assert len(compiler.asked) == 1
    _plan(capsys, "--only", MOE, "--topology", "v5e:4x4", "--compile", "--config.execution.remat=True")
    assert len(compiler.asked) == 2


def test_what_does_not_fit_is_listed_and_makes_the_status(capsys, compiler: Compiler):
    flags = ["--only", MOE, "--topology", "v5e:4x4", "--compile", "--config.execution.micro_batch=16"]
    plan = _plan(capsys, *flags, status=1)
    assert [run["fits"] for run in plan["runs"]] == [False] * len(plan["runs"])
    assert plan["misfits"] == len(plan["runs"])
    assert sweep.main(["plan", "--grid", GRID, "--scale", "300m", *flags]) == 1
    assert "does not fit: 16.0 GiB of 15.8 GiB a device with micro-batch 16" in capsys.readouterr().out


ONE = "--only", MOE, "--seeds", "1"


def test_fitting_goes_on_until_the_compiler_is_content(capsys, compiler: Compiler):
    plan = _plan(capsys, *ONE, "--topology", "v5p:2x2x2", "--compile", "--fit")
    (run,) = plan["runs"]
    assert run["fits"] is True
    assert run["micro_batch"] == 8
    assert 1 < len(compiler.asked) <= planning.MOST_TRIES
    assert compiler.asked[0].execution.micro_batch > 8


def test_fitting_keeps_a_mesh_of_ones_own_and_ends_with_the_smallest(capsys, compiler: Compiler):
    compiler.largest = 1
    mesh = "--config.execution.mesh=data=4 expert=4"
    (run,) = _plan(capsys, *ONE, "--topology", "v5e:4x4", "--compile", "--fit", mesh, status=1)["runs"]
    assert {program.execution.mesh for program in compiler.asked} == {run["mesh"]} == {"data=4 expert=4"}
    assert (run["fits"], run["micro_batch"], run["remat"]) == (False, 8, True)


def test_arithmetic_is_held_against_the_compiler(capsys, compiler: Compiler):
    flags = [*ONE, "--topology", "v5e:4x4", "--compile"]
    (run,) = _plan(capsys, *flags)["runs"]
    assert sweep.main(["plan", "--grid", GRID, "--scale", "300m", *flags]) == 0
    share = f"{run['bytes'] / run['compiled_bytes']:.2f}"
    assert f"By arithmetic, memory is {share} to {share} and traffic is" in capsys.readouterr().out


def test_several_slices_are_replicas(capsys):
    two = "--topology", "v5e:4x4 slices=2"
    one, both = (_plan(capsys, *ONE, *flags)["runs"][0] for flags in (("--topology", "v5e:4x4"), two))
    assert both["mesh"].startswith("replica=2 ")
    # Gradients go over a slower network, so that twice the devices take more than half the time.
    assert one["seconds"] / 2 < both["seconds"] < one["seconds"]
    said = _refused(capsys, *ONE, *two, "--config.execution.mesh=data=32")
    assert "use replica=2" in said


def test_a_mesh_without_a_topology(capsys):
    """Of any device, a laptop's cores as well; hours are those of all."""
    for device in ("cpu", "v5p"):
        flags = "--device", device, "--only", "*-dense-*", "--seeds", "1"
        (one,), (eight,) = (_plan(capsys, *flags, *mesh)["runs"] for mesh in ((), ("--config.execution.mesh=data=8",)))
        assert eight["devices"] == 8
        assert one["seconds"] / 8 < eight["seconds"] < one["seconds"]
    said = _refused(capsys, "--device", "v5p", "--only", "*-g1/2-n2-*", "--config.execution.mesh=expert=8")
    assert "n = 2 experts of 300m-g1/2-n2-s1-dropless-seed0: use expert=2 or less" in said
