"""The Slurm launcher with stand-ins for Slurm's commands; `test_slurm_real.py` has the commands themselves."""

import getpass
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from slicedice.cost.topology import parse_topology
from slicedice.files import FileError
from slicedice.launching import Job, Launcher, LaunchError, LeftoverError, Phase, WorkUnit, load_launcher
from slicedice.spec import SpecError
from slicedice.store import Launch, Store

RUN = "0123456789ab"


class Commands:
    """Stand-ins for Slurm's commands, which note how they are called."""

    def __init__(self, folder: Path):
        self.folder, self._notes = folder, folder / "notes"
        for name in ("sbatch", "squeue", "scancel", "scontrol", "srun"):  # none but ours, even where there is a Slurm
            make(folder / name, "exit 127")

    def __call__(self, name: str, body: str = "") -> None:
        note = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))"
        words = [sys.executable, "-c", note, name]
        make(self.folder / name, f'{shlex.join(words)} "$@" >> {shlex.quote(str(self._notes))}\n{body}')

    def notes(self, part: int = 0) -> list:
        """The words of each call, in order; with part 1 its environment."""
        return [json.loads(line)[part] for line in self._notes.read_text().splitlines()] if self._notes.exists() else []


@pytest.fixture
def commands(tmp_path, monkeypatch) -> Commands:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return Commands(folder)


def make(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)


def job(root: Path, devices=(1, 1, 1), max_concurrent: int = 0) -> Job:
    return Job("grid-7f", Store(root), tuple(WorkUnit((RUN,), number) for number in devices), max_concurrent)


def launch(root: Path, handles: tuple[str, ...]) -> Launch:
    return Launch("grid-7f", root / "launches" / "grid-7f", "slurm", {}, ((RUN,),) * len(handles), handles)


def slurm(**settings) -> Launcher:
    return load_launcher("slurm", settings)


def options(script: str) -> dict[str, str]:
    """The options in a script, each once, the last one first as sbatch takes them."""
    lines = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH ")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def numbers(ranges: str) -> list[int]:
    """What Slurm makes of 0-3,7."""
    found = []
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def run_script(script: str, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess:
    path = tmp_path / "sbatch.sh"
    path.write_text(script)
    known = {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_JOB_ID": "77", "SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "n1"}
    return subprocess.run(["bash", path], env=os.environ | known | environment, capture_output=True, text=True)


@pytest.mark.parametrize("root", ["store", "a b/$(touch hit)", "it's; exit 3", "100%a&|*~"])
def test_the_worker_is_given_the_store_whatever_it_is_called(root, tmp_path, commands):
    commands("srun")
    store = tmp_path / root
    (script,) = slurm(python="/a b/python").render(job(store)).values()
    done = run_script(script, tmp_path)
    assert done.returncode == 0, done.stderr
    (words,) = commands.notes()
    assert words == [
        *["srun", "--kill-on-bad-exit=1", "/a b/python", "-m", "slicedice.work"],
        *["--store", str(store), "--unit", "grid-7f/2"],
    ]
    assert not (tmp_path / "hit").exists()
    assert options(script)["output"] == f'"{str(store).replace("%", "%%")}/launches/grid-7f/unit-%3a.log"'


@pytest.mark.parametrize(
    ("status", "restarts", "again"),
    [
        (0, None, False),
        (1, None, False),
        (28, None, False),
        (75, None, True),
        (75, "4", True),
        (75, "5", False),
        (137, "4", True),
        (137, "5", False),
        (128, None, False),
    ],
)
def test_a_task_starts_itself_again_after_some_ends_and_not_for_ever(status, restarts, again, tmp_path, commands):
    commands("srun", f"exit {status}")
    commands("scontrol")
    (script,) = slurm(requeues=5).render(job(tmp_path / "store")).values()
    done = run_script(script, tmp_path, **({"SLURM_RESTART_COUNT": restarts} if restarts else {}))
    # The number of the task itself is that of the array here, as of Slurm's last task: it would requeue all.
    assert commands.notes()[1:] == ([["scontrol", "requeue", "77_2"]] if again else [])
    assert done.returncode == status


def test_a_cancelled_task_does_not_start_itself_again(tmp_path, commands):
    """Slurm sends SIGTERM to the shell and to the worker, which saves a checkpoint and ends with 75."""
    commands("srun", "kill -TERM $PPID; exit 75")
    commands("scontrol")
    (script,) = slurm().render(job(tmp_path / "store")).values()
    assert run_script(script, tmp_path).returncode == -signal.SIGTERM
    assert [words[0] for words in commands.notes()] == ["srun"]


def test_setup_runs_before_the_worker_and_its_environment_reaches_it(tmp_path, commands):
    commands("srun")
    launcher = slurm(setup="export FIRST=1\nexport SECOND=$FIRST$FIRST", gres="")
    (script,) = launcher.render(job(tmp_path / "store")).values()
    assert run_script(script, tmp_path).returncode == 0
    (environment,) = commands.notes(1)
    assert environment["SECOND"] == "11"
    assert environment["JAX_PLATFORMS"] == "cpu"


@pytest.mark.parametrize(
    ("gres", "platforms"), [("gpu", "cuda,cpu"), ("gpu:h100", "cuda,cpu"), ("", "cpu"), ("npu", None)]
)
def test_a_worker_whose_gpu_fails_does_not_train_on_cores(gres, platforms, tmp_path, commands, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    commands("srun")
    (script,) = slurm(gres=gres).render(job(tmp_path / "store")).values()
    assert run_script(script, tmp_path).returncode == 0
    (environment,) = commands.notes(1)
    assert environment.get("JAX_PLATFORMS") == platforms


def test_each_unit_is_one_task_of_one_array(rng, tmp_path, commands):
    commands("sbatch", f'test -f "$2" && wc -l < {commands.folder}/notes')  # the first one is 1
    devices = tuple(int(n) for n in rng.choice([1, 2, 4], 2300))
    wanted = job(tmp_path / "store", devices)
    launcher = slurm(devices_per_node=4)
    rendered = launcher.render(wanted)
    folder = tmp_path / "store" / "launches" / "grid-7f"
    folder.mkdir(parents=True)
    found = {}
    for i, (name, script) in enumerate(rendered.items()):
        (folder / name).write_text(script)
        (base,) = map(int, re.findall(r"^unit=\$\(\(SLURM_ARRAY_TASK_ID \+ (\d+)\)\)$", script, re.MULTILINE))
        for task in numbers(options(script)["array"]):
            assert task <= 1000  # a cluster's MaxArraySize is 1001
            unit = base + task
            log = options(script)["output"].strip('"').replace("%3a", f"{task:03d}")
            assert unit not in found
            found[unit] = f"{i + 1}_{task}"
            assert options(script)["gres"] == f"gpu:{devices[unit]}"
            if unit % 97 == 0:
                Path(log).write_text(f"of {unit}")
                assert launcher.logs(launch(tmp_path / "store", ()), unit) == f"of {unit}"
    assert sorted(found) == list(range(2300))
    assert list(launcher.submit(wanted, rendered)) == [found[unit] for unit in range(2300)]


@pytest.mark.parametrize(
    ("devices", "per_node", "nodes", "tasks", "gpus"),
    [(1, 8, "1", "1", "gpu:1"), (8, 8, "1", "1", "gpu:8"), (16, 8, "2", "8", "gpu:8"), (2, 1, "2", "1", "gpu:1")],
)
def test_a_unit_on_more_devices_than_a_node_has_takes_several(devices, per_node, nodes, tasks, gpus, tmp_path):
    (script,) = slurm(devices_per_node=per_node).render(job(tmp_path / "store", (devices,))).values()
    asked = options(script)
    assert (asked["nodes"], asked["ntasks-per-node"], asked["gres"]) == (nodes, tasks, gpus)
    assert ("--processes 0" in script) == (nodes != "1")


def test_devices_that_leave_nodes_half_empty_are_refused(tmp_path):
    with pytest.raises(SpecError, match=r"--launcher.devices_per_node = 8 .*a unit on 12 devices"):
        slurm().render(job(tmp_path / "store", (1, 12)))


def test_runs_planned_for_tpus_are_not_sent_to_gpus(tmp_path):
    wanted = replace(job(tmp_path / "store", (8,)), topology=parse_topology("a test", "v5e:2x4"))
    with pytest.raises(SpecError, match=r"^--topology = 'v5e:2x4' .*GPUs"):
        slurm().render(wanted)
    slurm().render(replace(wanted, topology=parse_topology("a test", "h100:8")))
    slurm(gres="").render(wanted)  # CPUs stand in


@pytest.mark.parametrize(
    ("devices", "most", "limits"),
    [
        ((1, 1, 1), 0, [""]),
        ((1, 1, 1), 2, ["2"]),
        ((1, 1, 1), 9, ["3"]),
        ((1, 1, 1, 2), 2, ["1", "1"]),
        ((1, 1, 1, 2), 3, ["2", "1"]),
    ],
)
def test_no_more_units_train_at_once_than_was_said(devices, most, limits, tmp_path):
    scripts = slurm().render(job(tmp_path / "store", devices, most)).values()
    assert [options(script)["array"].partition("%")[2] for script in scripts] == limits


def test_fewer_at_once_than_arrays_cannot_be(tmp_path):
    with pytest.raises(SpecError, match=r"--max_concurrent = 1 cannot be used: use 2 or more"):
        slurm().render(job(tmp_path / "store", (1, 2), 1))


def test_what_the_launcher_relies_on_comes_after_the_users_options(tmp_path):
    script = slurm(extra="--exclusive --array=0-9 --no-requeue").render(job(tmp_path / "store"))["sbatch.sh"]
    asked = options(script)
    assert asked["array"] == "0-2"
    assert script.index("--no-requeue") < script.index("#SBATCH --requeue")
    assert "exclusive" in asked


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("partition", "gpu --wrap=x"),
        ("account", "a\n#SBATCH --uid=0"),
        ("qos", 'a"b'),
        ("constraint", "a#b"),
        ("time", "1 day"),
        ("gres", "gpu:\\"),
        ("extra", "rm -rf /"),
        ("extra", "--comment='a b'"),
        ("extra", "--comment=#"),
        ("cpus", -1),
        ("devices_per_node", 0),
        ("warning", 0),
        ("requeues", -1),
    ],
)
def test_settings_that_no_script_could_hold_are_refused_by_name(setting, value):
    with pytest.raises(SpecError, match=f"^--launcher.{setting} = "):
        slurm(**{setting: value})


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb"])
def test_a_store_that_no_script_could_hold_is_refused(name, tmp_path):
    with pytest.raises(SpecError, match=r"^--store = "):
        slurm().render(job(tmp_path / name))


def test_when_sbatch_refuses_what_it_took_before_is_taken_back(tmp_path, commands):
    commands("sbatch", "case $2 in *-0.sh) echo 41;; *) echo 'sbatch: error: invalid account' >&2; exit 1;; esac")
    commands("scancel")
    wanted = job(tmp_path / "store", (1, 2))
    with pytest.raises(LaunchError, match="sbatch refused: sbatch: error: invalid account"):
        slurm().submit(wanted, slurm().render(wanted))
    assert commands.notes()[-1][:3] == ["scancel", "--quiet", "--name=grid-7f"]


def test_what_is_interrupted_is_taken_back_by_its_name_since_a_number_may_be_lost(tmp_path, commands, monkeypatch):
    commands("sbatch", "echo 41")
    commands("scancel")
    wanted, ask = job(tmp_path / "store", (1, 2)), subprocess.run

    def interrupted(words, **options):
        done = ask(words, **options)
        if words[0] == "sbatch":
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(subprocess, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        slurm().submit(wanted, slurm().render(wanted))
    user = getpass.getuser()
    assert [words[0] for words in commands.notes()] == ["sbatch", "scancel"]
    assert commands.notes()[-1] == ["scancel", "--quiet", "--name=grid-7f", f"--user={user}"]


def test_what_cannot_be_taken_back_is_told(tmp_path, commands):
    commands("sbatch", "case $2 in *-0.sh) echo 41;; *) exit 1;; esac")
    commands("scancel", "echo 'Unable to contact slurm controller' >&2; exit 1")
    wanted = job(tmp_path / "store", (1, 2))
    with pytest.raises(LeftoverError, match=r"sbatch refused.*Unable to contact.*scancel --quiet --name=grid-7f"):
        slurm().submit(wanted, slurm().render(wanted))


def test_an_answer_of_sbatch_that_is_no_number_is_not_taken_for_one(tmp_path, commands):
    commands("sbatch", "echo Submitted")
    wanted = job(tmp_path / "store")
    with pytest.raises(LaunchError, match="'Submitted'"):
        slurm().submit(wanted, slurm().render(wanted))


def test_where_there_is_no_slurm_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    wanted = job(tmp_path / "store")
    with pytest.raises(LaunchError, match="There is no sbatch here"):
        slurm().submit(wanted, slurm().render(wanted))


def test_a_job_submitted_from_within_a_job_inherits_nothing_of_it(tmp_path, commands, monkeypatch):
    commands("sbatch", "echo 5")
    for name in ("SLURM_JOB_ID", "SLURM_MEM_PER_NODE", "SLURM_CONF", "SBATCH_ACCOUNT"):
        monkeypatch.setenv(name, "x")
    wanted = job(tmp_path / "store")
    slurm().submit(wanted, slurm().render(wanted))
    (environment,) = commands.notes(1)
    assert {name for name in environment if name.startswith(("SLURM_", "SBATCH_"))} == {"SLURM_CONF", "SBATCH_ACCOUNT"}


def test_phases_are_what_squeue_lists(tmp_path, commands):
    states = {0: "PENDING", 1: "RUNNING", 2: "COMPLETING", 3: "REQUEUE_HOLD", 4: "CONFIGURING", 5: "SUSPENDED"}
    listed = [f"9_{task} {state} grid-7f" for task, state in states.items()] + ["12_6 RUNNING grid-7f"]
    commands("squeue", "\n".join(f"echo '{line}'" for line in listed))
    handles = (*(f"9_{task}" for task in range(7)), "12_0")
    q, r, e = Phase.QUEUED, Phase.RUNNING, Phase.ENDED
    assert list(slurm().poll(launch(tmp_path, handles))) == [q, r, r, q, r, r, e, e]
    (words,) = commands.notes()
    assert "--jobs=12,9" in words  # asked once for all


def test_jobs_of_other_names_are_not_ours(tmp_path, commands):
    """As of a record that somebody else has written."""
    commands("squeue", "echo '9_0 RUNNING grid-7'; echo '9_1 RUNNING grid-7f x'; echo '9_2 RUNNING grid-7f'")
    launched = launch(tmp_path, ("9_0", "9_1", "9_2"))
    assert list(slurm().poll(launched)) == [Phase.ENDED, Phase.ENDED, Phase.RUNNING]


def test_what_slurm_has_forgotten_has_ended(tmp_path, commands):
    commands("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert list(slurm().poll(launch(tmp_path, ("9_0", "9_1")))) == [Phase.ENDED] * 2


def test_a_controller_that_cannot_be_asked_says_nothing_of_units(tmp_path, commands):
    commands("squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(LaunchError, match="Unable to contact slurm controller"):
        slurm().poll(launch(tmp_path, ("9_0",)))


def test_units_of_another_engine_are_not_asked_for(tmp_path, commands):
    commands("squeue")
    with pytest.raises(LaunchError, match="'default/job-3' is no task of a Slurm array"):
        slurm().poll(launch(tmp_path, ("default/job-3",)))
    assert not commands.notes()


def test_cancelling_names_the_units_tasks_and_no_other(tmp_path, commands):
    commands("scancel")
    ours = (*(f"9_{i}" for i in range(6)), "12_0")
    listed = [f"{task} PENDING grid-7f" for task in ours if task != "9_4"] + ["13_0 RUNNING theirs"]
    commands("squeue", "\n".join(f"echo '{line}'" for line in listed))
    # Of those that are named one has ended, and one is another's, as of a record that somebody else has written.
    slurm().cancel(launch(tmp_path, (*ours, "13_0")), [0, 2, 3, 4, 6, 7])
    assert commands.notes()[1:] == [["scancel", "--quiet", "9_[0,2-3]", "12_[0]"]]
    slurm().cancel(launch(tmp_path, ("13_0",)), [0])
    assert [words[0] for words in commands.notes()[2:]] == ["squeue"]


def test_nothing_is_cancelled_of_a_launch_that_never_was(tmp_path, commands):
    commands("scancel")
    slurm().cancel(launch(tmp_path, ()), [])
    unsubmitted = Launch("grid-7f", tmp_path, "slurm", {}, ((RUN,),))
    slurm().cancel(unsubmitted, [0])
    assert list(slurm().poll(unsubmitted)) == [Phase.ENDED]
    assert not commands.notes()  # scancel without a job is an error, and with a wrong one worse


def test_a_unit_that_never_began_has_no_log(tmp_path):
    assert slurm().logs(launch(tmp_path, ("9_0",)), 0) == ""


def test_a_file_of_ones_own_changes_the_defaults(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "launching" / "slurm.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "my_cluster.py").write_text(code)
    script = load_launcher("my_cluster", {"time": "7"}).render(job(tmp_path / "store"))["sbatch.sh"]
    assert options(script)["partition"] == "gpu"
    assert options(script)["time"] == "7"
    (tmp_path / "launch" / "my_cluster.py").write_text(code.replace("partition", "partitoin"))
    with pytest.raises(FileError, match=r"my_cluster\.py.*--launcher\.partitoin"):
        load_launcher("my_cluster", {})
