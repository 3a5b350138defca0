"""What the XManager launcher says it would submit, and what it refuses. None of this needs XManager."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from slicedice import files
from slicedice.launching import Attended, Job, LaunchError, Phase, WorkUnit, load_launcher
from slicedice.spec import SpecError
from slicedice.store import Launch, Store
from slicedice.store.holder import Holder

RUNS = "0123456789ab", "ba9876543210", "00000000000a"


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Two work units of three runs; the store's path is none to write into a shell as it is."""
    store = Store(tmp_path / "it's; a $HOME").create()
    return Job("grid-12ab-1", store, (WorkUnit(RUNS[:2]), WorkUnit(RUNS[2:])))


def on(job: Job, root: str, devices: int = 1) -> Job:
    """The job with another store, and units of so many devices."""
    units = tuple(dataclasses.replace(unit, devices=devices) for unit in job.units)
    return dataclasses.replace(job, store=Store(root), units=units)


@pytest.fixture(autouse=True)
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """XManager cannot be imported."""
    for name in ("xmanager", "xmanager.xm", "xmanager.xm_local"):
        monkeypatch.setitem(sys.modules, name, None)


def rendered(job: Job, **settings: str) -> dict:
    texts = load_launcher("xmanager", settings).render(job)
    assert list(texts) == ["experiment.json"]
    return json.loads(texts["experiment.json"])


def test_a_local_work_unit_is_the_workers_command(job: Job):
    experiment = rendered(job)
    assert experiment["title"] == "grid-12ab-1"
    assert experiment["executor"] == "local"
    assert experiment["executable"] == sys.executable
    root = str(job.store.root)
    for number, unit in enumerate(experiment["work_units"]):
        assert unit["args"] == ["-m", "slicedice.work", "--store", root, "--unit", f"grid-12ab-1/{number}"]
        assert unit["output"] == f"{root}/launches/grid-12ab-1/unit-{number}.log"
    assert [unit["tags"] for unit in experiment["work_units"]] == [
        ["grid-12ab-1", *RUNS[:2]],
        ["grid-12ab-1", RUNS[2]],
    ]


def test_a_container_is_told_the_workers_command(job: Job):
    job = on(job, "/gcs/bucket/runs", 2)
    experiment = rendered(job, executor="vertex", image="gcr.io/p/image:1", accelerator="a100", cpu="8", ram="64")
    assert experiment["executor"] == "vertex"
    assert experiment["executable"] == "gcr.io/p/image:1"
    command = "python -m slicedice.work --store /gcs/bucket/runs --unit grid-12ab-1/{}"
    assert [" ".join(unit["args"]) for unit in experiment["work_units"]] == [command.format(0), command.format(1)]
    assert all(unit["requirements"] == {"a100": 2, "cpu": 8, "ram": 64 * 2**30} for unit in experiment["work_units"])


VERTEX = {"executor": "vertex", "image": "gcr.io/p/i:1"}
KUBERNETES = {"executor": "kubernetes", "image": "gcr.io/p/i:1"}


@pytest.mark.parametrize(
    ("settings", "root", "devices", "field", "valid"),
    [
        ({"executor": "borg"}, "/gcs/b", 1, "--launcher.executor", "local, vertex, kubernetes"),
        ({"image": "gcr.io/p/i:1"}, "runs", 1, "--launcher.image", "vertex, kubernetes"),
        ({"cpu": "4"}, "runs", 1, "--launcher.cpu", "vertex, kubernetes"),
        ({"cpu": "-4", **VERTEX}, "/gcs/b", 1, "--launcher.cpu", "number from 0"),
        ({"executor": "vertex"}, "/gcs/b", 1, "--launcher.image", "container image"),
        ({**VERTEX, "image": "--privileged"}, "/gcs/b", 1, "--launcher.image", "container image"),
        ({**VERTEX, "accelerator": "tpu_v5e"}, "/gcs/b", 8, "--launcher.accelerator", "no newer TPU"),
        ({**VERTEX, "accelerator": "h100"}, "/gcs/b", 8, "--launcher.accelerator", "a100"),
        ({**VERTEX, "accelerator": "tpu_v3"}, "/gcs/b", 4, "execution.mesh", "8 devices of tpu_v3"),
        ({**VERTEX, "accelerator": "t4"}, "/gcs/b", 8, "execution.mesh", "1, 2, 4 devices"),
        (VERTEX, "/gcs/b", 2, "execution.mesh", "1 devices"),
        (VERTEX, "/home/me/runs", 1, "--store", "/gcs/BUCKET"),
        ({**KUBERNETES, "accelerator": "tpu_v3"}, "/store", 8, "--launcher.accelerator", "a100"),
    ],
)
def test_what_xmanager_cannot_do_is_refused(job: Job, settings, root, devices, field, valid):
    with pytest.raises(SpecError, match=field) as caught:
        rendered(on(job, root, devices), **settings)
    assert valid in str(caught.value)


def test_containers_are_handed_over_at_once(job: Job):
    job = dataclasses.replace(on(job, "/gcs/b"), max_concurrent=2)
    with pytest.raises(SpecError, match="--max_concurrent = 2"):
        rendered(job, **VERTEX)


def test_a_sweep_waits_for_local_units_alone():
    assert isinstance(load_launcher("xmanager", {}), Attended)
    assert not isinstance(load_launcher("xmanager", VERTEX), Attended)
    assert isinstance(load_launcher("xmanager", {"executor": "local"}), Attended)


@pytest.mark.parametrize("settings", [{}, VERTEX])
def test_without_xmanager_the_extra_is_named(job: Job, settings: dict[str, str]):
    launcher = load_launcher("xmanager", settings)
    job = on(job, "/gcs/b") if settings else job
    with pytest.raises(LaunchError, match="extra `xmanager`"):
        launcher.submit(job, launcher.render(job))


def test_local_units_last_as_long_as_their_sweep(job: Job, tmp_path: Path):
    launcher = load_launcher("xmanager", {})
    over = subprocess.Popen([sys.executable, "-c", ""])
    gone = Holder.here().handle.replace(str(os.getpid()), str(over.pid), 1)
    over.wait()
    for handle, phase in ((Holder.here().handle, Phase.QUEUED), (gone, Phase.ENDED), ("elsewhere", Phase.ENDED)):
        launch = Launch("grid-1", tmp_path, "xmanager", {}, (RUNS[:2], RUNS[2:]), (handle, handle))
        assert launcher.poll(launch) == [phase, phase]
        launcher.cancel(launch, [0])  # workers look for themselves
    (tmp_path / "unit-1.log").write_text("said\n")
    assert launcher.logs(launch, 1) == "said\n"
    assert launcher.logs(launch, 0) == ""


def test_the_launch_script_is_no_launcher():
    assert "xmanager" in files.names("launch")
    assert "xm_sweep" not in files.names("launch")


# What the `xmanager` command does with a script, of whose work units nothing is left.
COMMAND = """
import sys
from absl import app, flags
flags.DEFINE_string("xm_launch_script", None, "XManager's own")
sys.modules["xmanager.xm"] = sys
sys.path.insert(0, "launch")
import xm_sweep
xm_sweep.sweep.main = lambda arguments: print(arguments)
app.run(xm_sweep.main, argv=[sys.argv[2], "--xm_launch_script=" + sys.argv[2], *sys.argv[4:]])
"""


def test_the_launch_script_hands_all_arguments_of_a_sweep_on():
    here = files.find("launch", "xmanager").parent.parent
    given = [
        "status", "--grid=g", "--seeds", "3", "--dry_run", "--verbosity=1", "--config.a.b=1e-3", "--config.a.b=2",
        "--launcher.executor=vertex", "--only=*-n32-*",
    ]  # fmt: skip
    command = [sys.executable, "-c", COMMAND, "launch", "launch/xm_sweep.py", "--", *given]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    given.remove("--verbosity=1")  # absl's
    assert done.stdout.strip() == repr([*given, "--launcher", "xmanager"])
