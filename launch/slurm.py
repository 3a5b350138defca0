"""Hands work units to Slurm as arrays of batch jobs, one task for each unit.

Plain sbatch and not submitit: all tasks are one command, whose queue and requeues are Slurm's and whose record is the
store's, so that there is nothing to pickle, and no process that has to stay.

It never decides whether a run is done, which its folder says; and asks no more than squeue, since many clusters keep no
accounts for sacct.
"""

import getpass
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from slicedice.launching import Job, LaunchError, LeftoverError, Phase
from slicedice.machine import CPU_ENVIRONMENT
from slicedice.spec.errors import require
from slicedice.store import Launch
from slicedice.store.files import is_object

BLOCK = 1000
"""Most units in an array: a cluster's MaxArraySize is 1001 unless it says otherwise, and counts from 0."""

PATIENCE_SECONDS = 120
"""For an answer of Slurm's commands, which themselves try again for a while."""

WORD = re.compile(r"[^\s\"'\\#]*")
"""What stands in a line of options without being read as something else."""

OPTION = re.compile(r"--[a-z][a-z-]*(=[^\s\"'\\#]+)?")

HANDLE = re.compile(r"(\d+)_(\d+)")
"""A task of an array, as Slurm writes it."""

QUEUED = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
"""States in which a job waits. In all others that squeue lists unless told otherwise, it is on its nodes."""


SCRIPT = """\
#!/bin/bash
{options}
unit=$((SLURM_ARRAY_TASK_ID + {base}))
restarts=${{SLURM_RESTART_COUNT:-0}}
echo "== $(date --iso-8601=seconds) unit $unit on $SLURM_JOB_NODELIST, restart $restarts"
{environment}{setup}\
{command}
status=$?
# Told to end, with a checkpoint (75), or killed by a signal: to be started again. After scancel, or someone else's
# requeue, a SIGTERM has ended this shell, which must never trap it: Slurm would requeue even what was cancelled.
if (((status == 75 || status > 128) && restarts < {requeues})); then
  # By the array's number: a task may have that as its own, which then names all tasks.
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
fi
exit $status
"""


@dataclass(frozen=True)
class Slurm:
    """Settings of the launcher. Those that are empty or 0 are left to the cluster.

    partition, account, qos, constraint: as sbatch takes them.
    time: limit for a unit between two requeues, as sbatch takes it: `90` minutes, `12:00:00`, `2-0`.
    gres: what a device is to Slurm; `gpu:h100` names a type. Empty: units train on CPUs.
    devices_per_node: most that a unit has of one node. One on more takes several nodes, all of them filled, and is a
      process for each device; else it is one process.
    cpus: cores for each process.
    mem: memory for each node, such as `64G`.
    extra: more options of sbatch, `--exclusive --mail-type=FAIL`.
    setup: shell lines that run before the worker, such as `module load cuda`. The store keeps them, in plain text.
    python: the interpreter; empty for the one that submits.
    warning: seconds before the time limit at which the worker is told to save a checkpoint and to end.
    requeues: how often a unit is started again, those by Slurm itself included, before one that was stopped stays so.
    """

    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    time: str = ""
    gres: str = "gpu"
    devices_per_node: int = 8
    cpus: int = 0
    mem: str = ""
    extra: str = ""
    setup: str = ""
    python: str = ""
    warning: int = 120
    requeues: int = 20

    def __post_init__(self):
        """Raises SpecError for values that no cluster takes."""
        for field in ("partition", "account", "qos", "constraint", "time", "gres", "mem"):
            value = getattr(self, field)
            valid = "write it as for sbatch, without blanks, quotes, backslashes and #"
            require(bool(WORD.fullmatch(value)), f"--launcher.{field}", value, valid)
        valid = "write options of sbatch as --NAME or --NAME=VALUE, without quotes, backslashes and #"
        require(all(map(OPTION.fullmatch, self.extra.split())), "--launcher.extra", self.extra, valid)
        for field, least, most in (
            ("devices_per_node", 1, 1024),
            ("cpus", 0, 65535),
            ("warning", 1, 65535),
            ("requeues", 0, 10**6),
        ):
            value = getattr(self, field)
            require(least <= value <= most, f"--launcher.{field}", value, f"use a number from {least} to {most}")

    def render(self, job: Job) -> Mapping[str, str]:
        """One script for each array."""
        valid = "scripts and logs of Slurm lie in the store: name a folder that all nodes have"
        require(not is_object(job.store.root), "--store", job.store.address, valid)
        tpus = job.topology is not None and job.topology.rate.is_tpu
        valid = "it is of TPUs, and --launcher.gres asks for GPUs: name a topology such as h100:8"
        require(not (tpus and self.gres.startswith("gpu")), "--topology", str(job.topology), valid)
        arrays = list(_arrays(job))
        names = ["sbatch.sh"] if len(arrays) == 1 else [f"sbatch-{i}.sh" for i in range(len(arrays))]
        limits = _shares(job, [len(array.units) for array in arrays])
        return {name: self._script(job, array, limit) for name, array, limit in zip(names, arrays, limits, strict=True)}

    def submit(self, job: Job, rendered: Mapping[str, str]) -> Sequence[str]:
        """Calls sbatch for each script. If one is refused, or it is interrupted, those before it are taken back."""
        handles = [""] * len(job.units)
        try:
            for script, array in zip(rendered, _arrays(job), strict=True):
                said = _ask("sbatch", "--parsable", str(_folder(job) / script))
                number = re.match(r"\d+", said)
                if not number:
                    raise LaunchError(f"sbatch answered {said!r} instead of a job's number.")
                for unit in array.units:
                    handles[unit] = f"{number[0]}_{unit % BLOCK}"
        except BaseException as error:
            # By name, and not by number: of the last one the number may be lost, and not the job.
            taking_back = ["scancel", "--quiet", f"--name={job.name}", f"--user={getpass.getuser()}"]
            try:
                _ask(*taking_back)
            except LaunchError as failed:
                left = f"What was submitted before may still be there ({failed}): {shlex.join(taking_back)}"
                raise LeftoverError(f"{error} {left}") from error
            raise
        return handles

    def poll(self, launch: Launch) -> Sequence[Phase]:
        """Calls squeue once. Whatever it does not list any more has ended."""
        states = _states(launch)
        phases = {handle: Phase.QUEUED if state in QUEUED else Phase.RUNNING for handle, state in states.items()}
        return [phases.get(handle, Phase.ENDED) for handle in launch.handles or [""] * len(launch.units)]

    def cancel(self, launch: Launch, units: Sequence[int]) -> None:
        """Calls scancel once, which sends SIGTERM, and SIGKILL after the cluster's KillWait, 30 seconds by default."""
        # Not by scancel's own --name: with that, of an array it cancels all tasks that have not begun.
        known, tasks = _states(launch), dict[str, list[int]]()
        for unit in units if launch.handles else ():
            if launch.handles[unit] in known:
                job, task = _read(launch.handles[unit])
                tasks.setdefault(job, []).append(task)
        if tasks:
            _ask("scancel", "--quiet", *(f"{job}_[{_ranges(numbers)}]" for job, numbers in tasks.items()))

    def logs(self, launch: Launch, unit: int) -> str:
        """Reads the unit's file in the launch's folder, with all its starts one after the other."""
        try:
            return (launch.folder / f"unit-{unit:03d}.log").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    def _script(self, job: Job, array: "_Array", limit: int) -> str:
        nodes, processes = self._shape(array.devices)
        several = nodes * processes > 1
        per_node = array.devices // nodes
        base = array.block * BLOCK
        log = _folder(job) / f"unit-{array.block or ''}%3a.log"
        options = [
            *self.extra.split(),  # first, since of two options of a name sbatch takes the last
            f"--job-name={job.name}",
            *(f"--{name}={getattr(self, name)}" for name in ("partition", "account", "qos", "constraint", "time", "mem")
              if getattr(self, name)),
            f"--nodes={nodes}",
            f"--ntasks-per-node={processes}",
            *([f"--cpus-per-task={self.cpus}"] if self.cpus else []),
            *([f"--gres={self.gres}:{per_node}"] if self.gres else []),
            f"--array={_ranges(unit - base for unit in array.units)}{f'%{limit}' if limit else ''}",
            f"--output={_quoted(log)}",
            "--open-mode=append",
            "--requeue",
            f"--signal=USR1@{self.warning}",
        ]  # fmt: skip
        environment = CPU_ENVIRONMENT | {"JAX_NUM_CPU_DEVICES": str(per_node // processes)}
        if self.gres:  # a worker is to end where its GPU does not start, and not to train on the node's cores
            environment = {"JAX_PLATFORMS": "cuda,cpu"} if self.gres.partition(":")[0] == "gpu" else {}
        srun = ["srun", "--kill-on-bad-exit=1", *(["--label"] if several else [])]
        srun += [f"--cpus-per-task={self.cpus}"] if self.cpus else []  # it does not follow from sbatch's
        python = shlex.quote(self.python or sys.executable)
        worker = job.command("$unit", processes=0 if several else 1, python=python)
        return SCRIPT.format(
            options="\n".join(f"#SBATCH {option}" for option in options),
            environment="".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items()),
            setup=f"{self.setup.rstrip()}\n" if self.setup else "",
            base=base,
            command=f"{' '.join(srun)} {worker}",
            requeues=self.requeues,
        )

    def _shape(self, devices: int) -> tuple[int, int]:
        """Nodes, and processes on each, for a unit that trains on so many devices."""
        if devices <= self.devices_per_node:
            return 1, 1
        valid = f"a unit on {devices} devices does not fill whole nodes of so many"
        require(devices % self.devices_per_node == 0, "--launcher.devices_per_node", self.devices_per_node, valid)
        return devices // self.devices_per_node, self.devices_per_node


@dataclass(frozen=True)
class _Array:
    """Units of one number of devices, since all tasks of an array are alike, and of one block of numbers."""

    devices: int
    block: int
    units: tuple[int, ...]


def _arrays(job: Job) -> Iterator[_Array]:
    found: dict[tuple[int, int], list[int]] = {}
    for number, unit in enumerate(job.units):
        found.setdefault((unit.devices, number // BLOCK), []).append(number)
    for (devices, block), units in found.items():
        yield _Array(devices, block, tuple(units))


def _shares(job: Job, sizes: Sequence[int]) -> list[int]:
    """Of how many units train at once, each array's part, at least 1; 0 if it was not said."""
    if not job.max_concurrent:
        return [0] * len(sizes)
    valid = (
        f"use {len(sizes)} or more: so many arrays take the units, each of one number of devices and {BLOCK} at most"
    )
    require(job.max_concurrent >= len(sizes), "--max_concurrent", job.max_concurrent, valid)
    shares = [1] * len(sizes)
    for _ in range(min(job.max_concurrent, sum(sizes)) - len(sizes)):
        shares[max(range(len(sizes)), key=lambda i: sizes[i] / shares[i])] += 1
    return shares


def _folder(job: Job) -> Path:
    return job.store.launch_folder(job.name).absolute()


def _quoted(path: Path) -> str:
    """A path for an option in a script. `%` is escaped; what quotes do not protect is refused."""
    text = str(path.parent).replace("%", "%%")
    valid = "Slurm takes no folder with double quotes, backslashes or control characters in its name"
    require(not re.search(r'["\\\x00-\x1f\x7f]', text), "--store", str(path.parent), valid)
    return f'"{text}/{path.name}"'


def _ranges(numbers: Iterable[int]) -> str:
    """Numbers as Slurm lists them: 0-3,7."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)


def _read(handle: str) -> tuple[str, int]:
    found = HANDLE.fullmatch(handle)
    if not found:
        raise LaunchError(f"{handle!r} is no task of a Slurm array: another launcher submitted this.")
    return found[1], int(found[2])


def _states(launch: Launch) -> dict[str, str]:
    """What squeue lists of a launch's tasks. Numbers on record may be anybody's: a job of another name is not ours."""
    jobs = sorted({job for job, _ in map(_read, launch.handles)})
    if not jobs:
        return {}
    try:
        listed = _ask("squeue", "--noheader", "--array", "--format=%i %T %j", f"--jobs={','.join(jobs)}")
    except LaunchError as error:
        if "Invalid job id" not in str(error):  # a single one, which Slurm has forgotten
            raise
        return {}
    lines = [line.split(maxsplit=2) for line in listed.splitlines()]
    return {line[0]: line[1] for line in lines if line[2:] == [launch.name]}


def _ask(*command: str) -> str:
    """What one of Slurm's commands prints.

    Raises:
      LaunchError: it is not here, it failed, or did not answer.
    """
    # Inside an allocation SLURM_* speak of that job, and sbatch and srun would take them up; SQUEUE_* filter.
    environment = {
        name: value
        for name, value in os.environ.items()
        if name == "SLURM_CONF" or not name.startswith(("SLURM_", "SRUN_", "SQUEUE_"))
    }
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, errors="replace", timeout=PATIENCE_SECONDS
        )
    except FileNotFoundError as error:
        raise LaunchError(f"There is no {command[0]} here: run this where Slurm's commands are.") from error
    except subprocess.TimeoutExpired as error:
        raise LaunchError(f"{command[0]} did not answer in {PATIENCE_SECONDS} seconds.") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip() or f"exit status {done.returncode}"
        raise LaunchError(f"{command[0]} refused: {said}")
    return done.stdout.strip()


def get_launcher() -> Slurm:
    """The launcher, with default settings."""
    return Slurm()
