"""A Slurm of one's own on this machine, for as long as a test takes: Debian's packages slurm-wlm and munge, as root.

Each "node" is a slurmd of its own at an address of the loopback device, which is its name as well: JAX takes the
coordinator's address from the list of nodes, so that names have to resolve. Nodes claim more CPUs than there are.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")

PATIENCE_SECONDS = 60

# Credentials expire early: a job that is requeued waits for that, two minutes unless said otherwise. KillWait is the
# default, written down since it is what workers have to save a checkpoint in. MinJobAge lets jobs be forgotten soon.
CONFIGURATION = """\
ClusterName=slicedice
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
KillWait=30
MinJobAge=10
SchedulerParameters=sched_interval=2
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=2
"""


def is_here() -> bool:
    """Whether a cluster can be started."""
    return os.geteuid() == 0 and all(shutil.which(daemon, path=_path()) for daemon in DAEMONS)


@contextlib.contextmanager
def cluster(nodes: int = 2, cpus: int = 4) -> Iterator[dict[str, str]]:
    """Starts a cluster, and ends it with all its jobs.

    Yields:
      The environment in which Slurm's commands speak to it.
    """
    # Not pytest's folder, which is closed to others: munge takes no socket there.
    with tempfile.TemporaryDirectory(prefix="slurm-") as name, contextlib.ExitStack() as daemons:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "state").mkdir()
        key = folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        lines = [f"NodeName={node(i)} Port={_port()} CPUs={cpus} RealMemory=1000" for i in range(nodes)]
        configuration = folder / "slurm.conf"
        configuration.write_text(
            CONFIGURATION.format(host=socket.gethostname(), port=_port(), folder=folder, nodes="\n".join(lines))
        )
        environment = os.environ | {"SLURM_CONF": str(configuration), "PATH": _path()}

        def start(*command: str) -> None:
            daemons.enter_context(_daemon(command, environment, folder / "daemons.log"))

        files = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munge.pid", "seed-file": "munge.seed"}
        start("munged", "--foreground", *(f"--{option}={folder / file}" for option, file in files.items()))
        wait_until((folder / "munge.socket").exists, "munged listens")
        start("slurmctld", "-D")
        for i in range(nodes):
            start("slurmd", "-D", "-N", node(i))
        daemons.callback(_end_jobs, environment)
        try:
            wait_until(
                lambda: (
                    ask(environment, "sinfo", "--noheader", "--Node", "--partition=main", "--format=%T")
                    == "\n".join(["idle"] * nodes)
                ),
                "all nodes are idle",
            )
            yield environment
        except BaseException:
            for log in sorted(folder.glob("*.log")):  # of what pytest shows
                print(f"== {log.name}\n{log.read_text(errors='replace')[-4000:]}")
            raise


def node(number: int) -> str:
    """What a node is called."""
    return f"127.0.0.{number + 1}"


def ask(environment: dict[str, str], *command: str) -> str:
    """What a command of Slurm's prints; "" while the daemons do not answer."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    return done.stdout.strip() if done.returncode == 0 else ""


def wait_until(holds: Callable[[], object], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Waits until something holds.

    Raises:
      TimeoutError: it never does.
    """
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"in {seconds} seconds it never came to this: {what}")
        time.sleep(0.2)


def _path() -> str:
    """Where commands are looked for; a user's path may lack what only root can start."""
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def _port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]


def _end_jobs(environment: dict[str, str]) -> None:
    """Jobs outlive their slurmd."""
    ask(environment, "scancel", "--user=root")
    ask(environment, "scancel", "--user=root", "--signal=KILL")
    with contextlib.suppress(TimeoutError):
        wait_until(lambda: not ask(environment, "squeue", "--noheader"), "the queue is empty", 45)


@contextlib.contextmanager
def _daemon(command: tuple[str, ...], environment: dict[str, str], log: Path) -> Iterator[None]:
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True
        )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
