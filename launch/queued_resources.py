"""Trains work units on TPU VMs, each of which Google's queue gives when it has one: a script that drives `gcloud`.

For each unit the script asks for a queued resource, waits until it is there, installs slicedice on all of its hosts,
trains the unit, and deletes it; one that was preempted it asks for anew. It has to keep running, and can be run by
hand, or again. docs/launching/queued_resources.md tells more.
"""

import contextlib
import fcntl
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from slicedice import cache
from slicedice.cost.topology import Topology
from slicedice.faults import DISK_FULL
from slicedice.launching import Job, LaunchError, Phase
from slicedice.launching.tpu_vm_script import BODY
from slicedice.spec.errors import require
from slicedice.store import Launch

SCRIPT = "queued_resources.sh"

AT_ONCE = 4
"""Units, where nobody says how many."""

KINDS = {
    "v4": ("v4", 2, "tpu-ubuntu2204-base"),
    "v5e": ("v5litepod", 1, "v2-alpha-tpuv5-lite"),
    "v5p": ("v5p", 2, "v2-alpha-tpuv5"),
    "v6e": ("v6e", 1, "v2-alpha-tpuv6e"),
}
"""What the Cloud TPU API calls a kind, how much it counts for a chip (two are its TensorCores), and its software."""

NAME = re.compile(r"[A-Za-z0-9]([-\w.@:]*[A-Za-z0-9])?")

WHEEL = re.compile(r"gs://[-\w./]+/[-\w.+]+\.whl")

USER = re.compile(r"(?<=://)(?!git@)[^/\s]+(?=@)")
"""In an address: who asks, which may be a token, and their password. Of Git by SSH it is no secret."""

VOLUME = re.compile(r"[A-Za-z0-9][-\w.]*:/[-\w./]*")

ENVIRONMENT = "slicedice-env"
"""On a TPU VM, whose own Python is older than slicedice takes."""

STOP = "pkill -TERM -f '[s]licedice.work'; while pgrep -f '[s]licedice.work' > /dev/null; do sleep 1; done"
"""On a TPU VM: has the worker save a checkpoint, and waits until it has. The brackets keep it from finding itself."""

STOP_SECONDS = 600


@dataclass(frozen=True)
class QueuedResources:
    """Settings. What is left empty is left to gcloud.

    zone: where the TPUs are, as in us-central2-b.
    project: that pays for them.
    package: what is installed on TPU VMs: a wheel in a bucket, gs://BUCKET/slicedice-VERSION-py3-none-any.whl, or
      whatever else pip takes, with its extras `tpu` and, for a store in a bucket, `gcs`.
    python: the version of Python that is installed with it.
    runtime_version: software of the TPU VM; empty: what Google names for the kind.
    spot: preemptible, and cheaper.
    reserved: of the project's reservation.
    service_account: of the TPU VM, which may use the store's bucket.
    network, subnetwork: that it is in.
    internal_ips: it has no address on the Internet, and reaches package indexes by what its network has for that.
    volume: HOST:/SHARE of NFS, such as Filestore, where the store is a path.
    volume_mount: where TPU VMs have it; the store's path is in there.
    compilation_cache: gs:// folder for compiled programs, which need not be compiled again. What is in it is executed:
      not in the store, and nobody else's.
    max_restarts: of a unit, after failures. Preemptions do not count.
    """

    zone: str = ""
    project: str = ""
    package: str = ""
    python: str = "3.12"
    runtime_version: str = ""
    spot: bool = False
    reserved: bool = False
    service_account: str = ""
    network: str = ""
    subnetwork: str = ""
    internal_ips: bool = False
    volume: str = ""
    volume_mount: str = ""
    compilation_cache: str = ""
    max_restarts: int = 10

    def render(self, job: Job) -> Mapping[str, str]:
        """The script, with its settings at the top.

        Raises:
          SpecError: a setting cannot be used, the TPU VMs could not reach the store, or there are none of the topology.
        """
        self._check(job)
        assert job.topology is not None
        settings = {
            "launch": job.name,
            "slices": str(job.topology.slices),
            "at_once": str(min(job.max_concurrent or AT_ONCE, len(job.units))),
            "max_restarts": str(self.max_restarts),
            "disk_full": str(DISK_FULL),
            "install": self._install(),
            "work": self._work(job),
        }
        lists = {
            "units": [str(number) for number in range(len(job.units))],
            "where": self._where(),
            "wanted": self._wanted(job.topology),
        }
        head = [f"{name}={shlex.quote(value)}" for name, value in settings.items()]
        head += [f"{name}=({' '.join(map(shlex.quote, values))})" for name, values in lists.items()]
        about = f"# Trains the launch {job.name}: `bash {SCRIPT}` all of its units, `bash {SCRIPT} 3 5` these."
        lint = "# shellcheck disable=SC2016  # what is in single quotes is for the hosts' shells"
        return {SCRIPT: "\n".join(["#!/usr/bin/env bash", about, lint, "set -uo pipefail", "", *head]) + "\n" + BODY}

    def submit(self, job: Job, rendered: Mapping[str, str]) -> Sequence[str]:
        """Starts the script, which goes on by itself.

        Returns:
          ZONE/NAME of each unit's queued resource, most of which are made later.

        Raises:
          LaunchError: there is no gcloud, or the script of this launch is running.
        """
        self._require_gcloud(
            f"Install it, or run the script elsewhere: --dry_run prints it, and `bash {SCRIPT}` is all it takes."
        )
        folder = _folder(job.name)
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder, fcntl.LOCK_EX) as lock:
            if lock is None:
                raise LaunchError(f"The script of {job.name} is running already; its logs are in {folder}.")
            for path in [*folder.glob("unit-*.ended"), *folder.glob("unit-*.cancelled")]:
                path.unlink()  # of a launch of the same name in another store
            script = folder / SCRIPT
            script.write_text(rendered[SCRIPT], encoding="utf-8")
            # The lock goes along, so that it is held as long as the script runs.
            subprocess.run(
                ["bash", "-c", 'nohup bash "$0" > "$1" 2>&1 < /dev/null &', str(script), str(folder / "script.log")],
                check=True,
                env=os.environ | {"SLICEDICE_LOGS": str(folder), "SLICEDICE_LOCK": str(lock)},
                pass_fds=[lock],
                start_new_session=True,
            )
        return [f"{self.zone}/{job.name}-{number}" for number in range(len(job.units))]

    def poll(self, launch: Launch) -> Sequence[Phase]:
        """Asks Google which queued resources there are, once, and this machine's script which units have ended."""
        folder, states = _folder(launch.name), self._states()
        alive = _is_running(folder)

        def phase(unit: int, name: str) -> Phase:
            state = states.get(name, "")
            if (folder / f"unit-{unit}.ended").exists():
                return Phase.ENDED
            if state == "ACTIVE":
                return Phase.RUNNING
            return Phase.QUEUED if alive or state not in ("", "SUSPENDED", "FAILED", "DELETING") else Phase.ENDED

        return [phase(unit, f"{launch.name}-{unit}") for unit in range(len(launch.handles))]

    def cancel(self, launch: Launch, units: Sequence[int]) -> None:
        """Has workers save a checkpoint, waits until they have, and deletes the units' queued resources.

        By the launch's name, whatever handles are on record.
        """
        folder, states = _folder(launch.name), self._states()
        folder.mkdir(parents=True, exist_ok=True)
        for unit in units:
            (folder / f"unit-{unit}.cancelled").touch()  # for the script, which would start it again
        names = [f"{launch.name}-{unit}" for unit in units]

        def end(name: str) -> None:
            if states[name] == "ACTIVE":
                # Where it cannot be asked, as when it was just preempted, it goes on from the checkpoint before.
                with contextlib.suppress(LaunchError):
                    flags = ["--node=all", "--worker=all", "--batch-size=all", "--quiet", f"--command={STOP}"]
                    self._gcloud("ssh", name, *flags, seconds=STOP_SECONDS)
            try:
                self._gcloud("delete", name, "--force", "--quiet", "--async")
            except LaunchError:
                if name in self._states():  # the script may have been quicker
                    raise

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(end, [name for name in names if name in states]))

    def logs(self, launch: Launch, unit: int) -> str:
        """What the script wrote of a unit, which is what its workers print, and gcloud."""
        with contextlib.suppress(FileNotFoundError):
            return (_folder(launch.name) / f"unit-{unit}.log").read_text(encoding="utf-8", errors="replace")
        return ""

    def _check(self, job: Job) -> None:
        require(bool(self.zone), "--launcher.zone", self.zone, "name the zone of the TPUs, as in us-central2-b")
        for field in ("zone", "project", "runtime_version", "service_account", "network", "subnetwork", "python"):
            value = getattr(self, field)
            good = not value or NAME.fullmatch(value)
            require(
                bool(good), f"--launcher.{field}", value, "use letters, digits, hyphens, dots, and in an account an @"
            )
        bucket = self.package.startswith("gs://")
        valid = (
            "name a wheel in a bucket, gs://BUCKET/slicedice-VERSION-py3-none-any.whl, which `pip wheel --no-deps .` "
            "makes and `gcloud storage cp` copies there; or what pip takes, as in 'slicedice[tpu,gcs] @ "
            "https://HOST/FILE.whl'"
        )
        good = WHEEL.fullmatch(self.package) if bucket else self.package and not self.package.startswith("-")
        require(bool(good), "--launcher.package", self.package, valid)
        valid = (
            "leave out what is before the @: passwords and tokens would lie in the script and the store for all to see"
        )
        require(not USER.search(self.package), "--launcher.package", USER.sub("...", self.package), valid)
        require(self.max_restarts >= 0, "--launcher.max_restarts", self.max_restarts, "use a number from 0")
        require(not (self.spot and self.reserved), "--launcher.spot", True, "what is reserved is no spot machine")
        compiled = self.compilation_cache
        valid = "name a folder in a bucket, as in gs://bucket/compiled"
        require(not compiled or compiled.startswith("gs://"), "--launcher.compilation_cache", compiled, valid)
        self._check_store(job.store.address)
        topology = job.topology
        field, known = "--topology", f"TPU VMs are slices of {', '.join(KINDS)}, as in v5e:4x4"
        require(topology is not None, field, None, known)
        assert topology is not None
        require(topology.device in KINDS, field, str(topology), f"{known}; the launcher jobset has others")
        valid = "slices of other shapes have as many chips, and the Cloud TPU API tells them apart by number alone"
        require(_is_only_shape(topology.shape), field, str(topology), valid)

    def _check_store(self, root: str) -> None:
        volume, mount = self.volume, self.volume_mount
        if root.startswith("gs://"):
            require(not volume, "--launcher.volume", volume, f"the store is in a bucket, {root}")
            require(not mount, "--launcher.volume_mount", mount, f"the store is in a bucket, {root}")
            return
        valid = (
            "TPU VMs do not reach this machine's folders: name a store in a bucket, gs://BUCKET/FOLDER, or by "
            "--launcher.volume and --launcher.volume_mount a share of NFS that has the store at this same path"
        )
        require(bool(volume), "--store", root, valid)
        require(bool(VOLUME.fullmatch(volume)), "--launcher.volume", volume, "write HOST:/SHARE, as in 10.0.0.2:/runs")
        within = os.path.isabs(mount) and os.path.commonpath([mount, root]) == os.path.normpath(mount)
        require(within, "--launcher.volume_mount", mount, f"name a folder that has the store in it, {root}")

    def _where(self) -> list[str]:
        return [f"--zone={self.zone}", *([f"--project={self.project}"] if self.project else [])]

    def _wanted(self, topology: Topology) -> list[str]:
        """What is asked for, as flags."""
        kind, counts, runtime = KINDS[topology.device]
        given = {
            "accelerator-type": f"{kind}-{math.prod(topology.shape) * counts}",
            "runtime-version": self.runtime_version or runtime,
            "service-account": self.service_account,
            "network": self.network,
            "subnetwork": self.subnetwork,
        }
        flags = {"spot": self.spot, "reserved": self.reserved, "internal-ips": self.internal_ips}
        # With an account of its own, a machine's rights are the account's; else they are cut down to a few.
        scopes = ["--scopes=https://www.googleapis.com/auth/cloud-platform"]
        return (
            [f"--{flag}={value}" for flag, value in given.items() if value]
            + [f"--{flag}" for flag, is_set in flags.items() if is_set]
            + scopes
        )

    def _install(self) -> str:
        """The command that mounts the volume and installs slicedice on a TPU VM; it may be run again."""
        package, fetch = shlex.quote(self.package), ""
        if self.package.startswith("gs://"):
            name = self.package.rpartition("/")[2]
            fetch, package = f"gcloud storage cp {package} . && ", f'"slicedice[tpu,gcs] @ file://$PWD/{name}"'
        if self.volume:
            mount = shlex.quote(self.volume_mount)
            made = f"sudo apt-get -qq install -y nfs-common > /dev/null && sudo mkdir -p {mount}"
            fetch = (
                f"{{ mountpoint -q {mount} || {{ {made} && sudo mount -t nfs {self.volume} {mount}; }}; }} && {fetch}"
            )
        uv, python = "python3 -m uv", f"{ENVIRONMENT}/bin/python"
        return (
            # A system's Python may refuse packages that are not the system's.
            f"{fetch}PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv && "
            f"{{ test -x {python} || {uv} venv --quiet --python {self.python} {ENVIRONMENT}; }} && "
            f"{uv} pip install --quiet --python {python} {package}"
        )

    def _work(self, job: Job) -> str:
        """The command that trains the unit `$unit` on a TPU VM.

        A worker whose connection was lost goes on without it. The lock has the next one wait for it.
        """
        environment = "JAX_PLATFORMS=tpu,cpu"
        if self.compilation_cache:
            environment += f" JAX_COMPILATION_CACHE_DIR={shlex.quote(self.compilation_cache)}"
        command = job.command("$unit", processes=0, python=f"{ENVIRONMENT}/bin/python")
        return f"{environment} flock slicedice.lock {command}"

    def _require_gcloud(self, otherwise: str) -> None:
        if shutil.which("gcloud") is None:
            raise LaunchError(f"The launcher queued_resources needs gcloud, which is not on the path. {otherwise}")

    def _gcloud(self, *words: str, seconds: float = 120) -> str:
        """Output of `gcloud compute tpus queued-resources`.

        Raises:
          LaunchError: there is no gcloud, it failed, or it took too long.
        """
        self._require_gcloud("Ask on the machine that the script runs on.")
        command = ["gcloud", "compute", "tpus", "queued-resources", words[0], *words[1:], *self._where()]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired as error:
            raise LaunchError(f"`{shlex.join(command)}` took more than {seconds:.0f} seconds.") from error
        if done.returncode:
            raise LaunchError(f"`{shlex.join(command)}` ended with status {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def _states(self) -> dict[str, str]:
        """States of the zone's queued resources, by name."""
        listed = json.loads(self._gcloud("list", "--format=json") or "[]")
        return {item["name"].rpartition("/")[2]: item["state"]["state"] for item in listed}


def get_launcher() -> QueuedResources:
    """The launcher with its own settings."""
    return QueuedResources()


def _is_only_shape(shape: tuple[int, ...]) -> bool:
    """Whether no other slice has as many chips: so it is with all that are flat, and those of less than four cubes."""
    cubes = math.prod(shape) // 64
    if len(shape) == 2 or cubes < 2:
        return True
    shapes = [
        (a, b, cubes // a // b)
        for a in range(1, cubes + 1)
        for b in range(a, cubes // a + 1)
        if cubes % (a * b) == 0 and cubes // a // b >= b
    ]
    return len(shapes) == 1


def _folder(launch: str) -> Path:
    """Where the script of a launch is and writes, on the machine that it runs on."""
    return cache.folder() / "launches" / launch


@contextlib.contextmanager
def _lock(folder: Path, kind: int) -> Iterator[int | None]:
    """The lock that a script holds, for itself alone, while it runs; None if one does.

    Whoever asks whether one does has it too, shared with others who ask, for a moment that is waited for.
    """
    with (folder / "lock").open("a") as lock:
        for pause in (0.05, 0.2, 0.75, None):
            try:
                fcntl.flock(lock, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                if kind == fcntl.LOCK_EX and pause:
                    time.sleep(pause)
                    continue
                yield None
            else:
                yield lock.fileno()
            return


def _is_running(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    with _lock(folder, fcntl.LOCK_SH) as lock:
        return lock is None
