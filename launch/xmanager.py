"""Makes an XManager experiment of a sweep: each work unit is one of XManager's, on one of three executors.

local       processes of this machine; XManager's queue for them is the process that makes the experiment
vertex      containers on Vertex AI, which go on by themselves
kubernetes  the same, as Kubernetes jobs

XManager is imported when something is handed over, and not to say what would be: it is an extra, and slow to import.
"""

import asyncio
import atexit
import contextlib
import dataclasses
import importlib
import json
import re
import shlex
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from slicedice.faults import AGAIN, DISK_FULL
from slicedice.launching import Job, LaunchError, LeftoverError, Phase
from slicedice.launching.here import GRACE_SECONDS, on_cores, phases
from slicedice.launching.xmanager_clouds import JOB, Kubernetes, VertexAI
from slicedice.machine import Slot, slots
from slicedice.spec.errors import require
from slicedice.store import Launch
from slicedice.store.files import is_object
from slicedice.store.holder import Holder

EXPERIMENT = "experiment.json"
"""What is submitted, as it is printed before."""

IMAGE = re.compile(r"[a-z0-9][A-Za-z0-9_./:@-]*")

# XManager 0.8.5 knows more accelerators than its executors place. On Vertex AI other GPUs get a machine that has none
# of them, and TPUs from v4 on an error; on Kubernetes a TPU is left out of what the pod asks for, and other GPUs get a
# node selector that no node of GKE has.
PLACED = {
    "vertex": {
        **dict.fromkeys(("p4", "t4", "p100"), (1, 2, 4)),
        **dict.fromkeys(("v100", "l4_24th"), (1, 2, 4, 8)),
        "a100": (1, 2, 4, 8, 16),
        **dict.fromkeys(("tpu_v2", "tpu_v3"), (8,)),
    },
    "kubernetes": dict.fromkeys(("p4", "t4", "p100", "v100", "a100"), (1, 2, 4, 8, 16)),
}
"""By executor, XManager's names of accelerators that it places, and how many of them a machine has."""

WATCH_SECONDS = 0.5

SHELL_SIGNALS = 128
"""From this status on, a shell tells that a signal ended its command."""


@dataclasses.dataclass(frozen=True)
class XManager:
    """Settings.

    executor: local, vertex or kubernetes.
    image: for the last two, a container image that has slicedice, and no entry point but one that runs its arguments.
    accelerator: what XManager calls it, as in t4 or tpu_v3; "" for CPUs alone. A unit has as many as its runs train on.
    cpu: cores of a unit; 0 leaves it to the engine.
    ram: memory of a unit in GiB; 0 leaves it to the engine.
    """

    executor: str = "local"
    image: str = ""
    accelerator: str = ""
    cpu: int = 0
    ram: int = 0

    def __post_init__(self) -> None:
        if self.executor == "local":
            # That a launcher has `attend` makes a sweep wait for it, and for containers it need not.
            object.__setattr__(self, "attend", self._attend)

    def render(self, job: Job) -> Mapping[str, str]:
        """The experiment: its title, executor and executable, and arguments, tags and requirements of each work unit.

        Raises:
          SpecError: XManager could not take the job.
        """
        self._check(job)
        local = self.executor == "local"
        executable, units = sys.executable if local else self.image, []
        for number, unit in enumerate(job.units):
            words = shlex.split(job.command(number, python=shlex.quote(executable) if local else "python"))
            units.append({"args": words[1:] if local else words, "tags": [job.name, *unit.runs]})
            if local:
                units[-1]["output"] = str(_log(job.store.launch_folder(job.name), number))
            else:
                units[-1]["requirements"] = self._requirements(unit.devices)
        content = {"title": job.name, "executor": self.executor, "executable": executable, "work_units": units}
        return {EXPERIMENT: json.dumps(content, indent=2) + "\n"}

    def submit(self, job: Job, rendered: Mapping[str, str]) -> Sequence[str]:
        """Has XManager start a container for each work unit; returns Vertex AI's or Kubernetes' names of them.

        Of local units this process is the engine, and stands for all: `attend` starts them.

        Raises:
          LaunchError: XManager or the engine refused; what had been started was taken back.
          LeftoverError: or could not be.
        """
        if self.executor == "local":
            _xmanager()
            return [Holder.here().handle] * len(job.units)
        return asyncio.run(self._start_all(json.loads(rendered[EXPERIMENT])))

    def poll(self, launch: Launch) -> Sequence[Phase]:
        """Asks Vertex AI or Kubernetes. Local units last as long as their sweep, as seen from this machine.

        Raises:
          LaunchError: the engine cannot be asked.
        """
        if self.executor == "local":
            return phases(launch)
        with _told("ask for work units"):
            engine = self._engine()
            return [engine.phase(handle, launch.name, unit) for unit, handle in enumerate(launch.handles)]

    def cancel(self, launch: Launch, units: Sequence[int]) -> None:
        """Takes back containers. Local workers look themselves whether a run was cancelled.

        Raises:
          LaunchError: the engine cannot be asked.
        """
        if self.executor != "local":
            with _told("cancel work units"):
                for unit in units:
                    self._engine().stop(launch.handles[unit], launch.name, unit)

    def logs(self, launch: Launch, unit: int) -> str:
        """What a local process or a pod has printed. Vertex AI's logs XManager has no way to ask for.

        Raises:
          LaunchError: Kubernetes cannot be asked.
        """
        if self.executor == "local":
            log = _log(launch.folder, unit)
            return log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        with _told("ask for logs"):
            return self._engine().logs(launch.handles[unit], launch.name, unit)

    def _check(self, job: Job) -> None:
        """Raises SpecError for what XManager could not do."""

        def setting(name: str, valid: str, holds: Callable[[Any], object]) -> None:
            require(bool(holds(getattr(self, name))), f"--launcher.{name}", getattr(self, name), valid)

        executors = ("local", *PLACED)
        setting("executor", f"it is one of {', '.join(executors)}", executors.__contains__)
        for name in ("cpu", "ram"):
            setting(name, "use a number from 0", lambda amount: amount >= 0)
        if self.executor == "local":
            valid = (
                "the logs of XManager's local units lie in the store: name a folder, or leave it to --launcher local"
            )
            require(not is_object(job.store.root), "--store", job.store.address, valid)
            for name in ("image", "accelerator", "cpu", "ram"):
                setting(name, f"it goes with the executors {', '.join(PLACED)}", lambda value: not value)
            return
        setting("image", "name a container image that has slicedice, as in REGISTRY/NAME:TAG", IMAGE.fullmatch)
        known = PLACED[self.executor]
        valid = f"on {self.executor} XManager places {', '.join(known)} and no newer TPU; leave it out for CPUs"
        setting("accelerator", valid, ("", *known).__contains__)
        counts, device = known.get(self.accelerator, (1,)), self.accelerator or "a CPU"
        valid = f"a unit is one machine, with {', '.join(map(str, counts))} devices of {device}"
        for devices in sorted({unit.devices for unit in job.units}):
            require(devices in counts, "execution.mesh", f"{devices} devices", valid)
        root, valid = job.store.address, "Vertex AI's containers see buckets alone, as /gcs/BUCKET"
        require(self.executor != "vertex" or root.startswith("/gcs/"), "--store", root, valid)
        valid = "XManager hands over all work units at once; the engine's quota says how many run"
        require(job.max_concurrent == 0, "--max_concurrent", job.max_concurrent, valid)

    def _requirements(self, devices: int) -> dict[str, int]:
        """Arguments of `xm.JobRequirements`."""
        found = {self.accelerator: devices, "cpu": self.cpu, "ram": self.ram * 2**30}
        return {name: amount for name, amount in found.items() if name and amount}

    def _engine(self) -> VertexAI | Kubernetes:
        return VertexAI() if self.executor == "vertex" else Kubernetes()

    async def _start_all(self, content: dict[str, Any]) -> list[str]:
        """Adds the work units of an experiment; returns the engine's names of them."""
        xm, xm_local = _xmanager()
        engine, handles, title, asked = self._engine(), [], content["title"], ""
        executor = {"vertex": xm_local.Vertex, "kubernetes": xm_local.Kubernetes}[self.executor]
        try:
            with _told("launch"), contextlib.redirect_stdout(sys.stderr):
                engine.connect()
                async with xm_local.create_experiment(title) as experiment:
                    image = xm.container(executor.Spec(), content["executable"])
                    [executable] = experiment.package([image])
                    for number, unit in enumerate(content["work_units"], 1):
                        place = executor(requirements=xm.JobRequirements(**unit["requirements"]))
                        added = xm.Job(executable, place, name=JOB, args=unit["args"])
                        asked = f"{experiment.experiment_id}_{number}"  # as XManager calls the unit
                        unit = await experiment.add(added, role=xm.WorkUnitRole(tags=unit["tags"]))
                        handles.append(engine.name(unit))
                        asked = ""
        except BaseException as error:
            left = []
            if asked:  # the engine may have it, and the answer be lost
                try:
                    handles += engine.find(title, asked)
                except Exception:
                    left.append(f"{title}_{asked}")
            for unit, handle in enumerate(handles):
                try:
                    engine.stop(handle, title, unit)
                except Exception:  # that it refused before is what has to be told
                    left.append(handle)
            if left:
                raise LeftoverError(f"{error} What was started may still be there: {', '.join(left)}") from error
            raise
        return handles

    def _attend(self, job: Job) -> None:
        """Trains the job's runs in processes of this machine, as many at once as pay, and waits for them.

        Raises:
          LaunchError: a worker could not work, or XManager is not installed.
          KeyboardInterrupt: after the workers have saved what they were training.
        """
        content = json.loads(self.render(job)[EXPERIMENT])
        places = slots(job.max_concurrent, job.bytes, job.devices)
        local = _Local(job, content)
        with _told("train"), contextlib.redirect_stdout(sys.stderr):  # what XManager prints; a sweep may print JSON
            asyncio.run(local.run(places))


class _Local:
    """Work units as processes of this machine: `xm_local.Local` starts them, all at once if it is let."""

    def __init__(self, job: Job, content: dict[str, Any]):
        self.job, self.content = job, content
        self.waiting = deque(enumerate(content["work_units"]))
        self.running: set[Any] = set()
        self.starting = asyncio.Lock()
        self.stdout = sys.stdout

    async def run(self, places: Sequence[Slot]) -> None:
        """Has all work units trained, one after the other in each of the places."""
        _, xm_local = _xmanager()
        watch = asyncio.create_task(self.watch())
        try:
            async with xm_local.create_experiment(self.content["title"]) as experiment:
                try:
                    await asyncio.gather(*(self.serve(place, experiment) for place in places))
                finally:
                    await self.stop()
        except RuntimeError as error:
            if "non-zero code" not in str(error):  # with which XManager ends if any process did, as when it is stopped
                raise
        finally:
            watch.cancel()
        # Nothing is left of what XManager would stop when Python ends, and say so.
        atexit.unregister(importlib.import_module("xmanager.xm_local.execution")._terminate_local_jobs)

    async def serve(self, place: Slot, experiment: Any) -> None:
        """Has one work unit after the other trained in a place.

        Raises:
          LaunchError: a worker could not work; so it would be with every other unit.
        """
        while self.waiting:
            number, unit = self.waiting.popleft()
            process = await self.start(unit, place, experiment)
            self.running.add(process)
            status = await process.wait()
            self.running.discard(process)
            if 0 < status < SHELL_SIGNALS and status != AGAIN:
                why = "the disk is full" if status == DISK_FULL else f"the end of {unit['output']} says why"
                raise LaunchError(f"Work unit {number} ended with status {status}: {why}.")

    async def start(self, unit: dict[str, Any], place: Slot, experiment: Any) -> Any:
        """Adds a work unit to the experiment; returns its process."""
        xm, xm_local = _xmanager()
        [executable] = experiment.package([xm.binary(xm_local.Local.Spec(), self.content["executable"])])
        executor = xm_local.Local(experimental_stream_output=False)
        output = xm.ShellSafeArg(f">> {shlex.quote(unit['output'])} 2>&1")  # XManager starts processes by a shell
        args = [*unit["args"], output]
        job = xm.Job(executable, executor, name=JOB, args=args, env_vars=place.environment)
        async with self.starting:
            with on_cores(place):
                added = await experiment.add(job, role=xm.WorkUnitRole(tags=unit["tags"]))
        return added._local_execution_handles[0].process  # XManager's own stop() is not written for processes

    async def stop(self) -> None:
        """Asks workers to save and end, and kills those that do not in time."""
        self.waiting.clear()
        running = list(self.running)
        for process in running:
            _signal(process.pid, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE_SECONDS):
                await asyncio.gather(*(process.wait() for process in running))
        for process in running:
            if process.returncode is None:
                _signal(process.pid, signal.SIGKILL)

    async def watch(self) -> None:
        """Draws progress until it is cancelled."""
        while True:
            with contextlib.redirect_stdout(self.stdout):
                self.job.watch()
            await asyncio.sleep(WATCH_SECONDS)


def get_launcher() -> XManager:
    """For `--launcher xmanager`."""
    return XManager()


def _xmanager() -> tuple[Any, Any]:
    """The packages xm and xm_local."""
    try:
        # By name: to tools that resolve imports without running them, `xmanager` may be this file.
        found = importlib.import_module("xmanager.xm"), importlib.import_module("xmanager.xm_local")
        flags = importlib.import_module("absl.flags").FLAGS
    except ImportError as error:
        raise LaunchError(
            f"XManager cannot be imported ({error}): install slicedice with its extra `xmanager`."
        ) from error
    if not flags.is_parsed():  # the `xmanager` command has; to set its flags, use that
        flags(["slicedice"])
    return found


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Has errors of XManager, and of the clients below it, end as ours: they have no class in common."""
    try:
        yield
    except LaunchError:
        raise
    except Exception as error:
        raise LaunchError(f"XManager could not {what}: {type(error).__name__}: {error}") from error


def _log(folder: Path, unit: int) -> Path:
    return folder / f"unit-{unit}.log"


def _signal(shell: int, number: int) -> None:
    """Signals a worker, which is the only child of the shell that XManager started; unless that made way for it."""
    psutil = importlib.import_module("psutil")  # as XManager has
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(shell)
        for worker in [process] if process.cmdline()[:1] == [sys.executable] else process.children():
            worker.send_signal(number)
