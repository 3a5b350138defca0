"""An engine that does nothing with what it is given, as a launcher of a desk."""

import json

CLUSTER = '''
"""An engine that keeps what it is given in a file, and does nothing with it."""

import json
from dataclasses import dataclass
from pathlib import Path

from slicedice.launching import LaunchError, Phase

QUEUE = Path(__file__).parent / "queue.json"


@dataclass(frozen=True)
class Cluster:
    partition: str = "any"

    def render(self, job):
        return {f"unit-{i}.sh": job.command(i) + f" # {self.partition}" for i, _ in enumerate(job.units)}

    def submit(self, job, rendered):
        for name, text in rendered.items():
            assert (job.store.launch_folder(job.name) / name).read_text() == text
        QUEUE.write_text(json.dumps(["queued"] * len(job.units)))
        return [f"job{i}" for i, _ in enumerate(job.units)]

    def poll(self, launch):
        if not QUEUE.exists():
            raise LaunchError("the engine is on holiday")
        return [Phase(phase) for phase in json.loads(QUEUE.read_text())]

    def cancel(self, launch, units):
        phases = json.loads(QUEUE.read_text())
        QUEUE.write_text(json.dumps(["ended" if i in units else phase for i, phase in enumerate(phases)]))

    def logs(self, launch, unit):
        return f"{launch.handles[unit]} says hello"


def get_launcher():
    return Cluster()
'''


def submit(desk, *arguments: str):
    return desk.sweep(*arguments, launcher="cluster")


def kinds(desk, *arguments: str) -> dict[str, str]:
    """States by name, as the verb status tells them."""
    said = desk.sweep("status", "--json", *arguments, launcher="cluster")
    assert said.status == 0
    return {run["name"]: run["state"] for run in json.loads(said.out)["runs"]}


class Engine:
    """A launcher of its own, with the file of its queue."""

    def __init__(self, desk, name: str, **replaced: str):
        text = CLUSTER.replace("queue.json", f"{name}.json")
        for old, new in replaced.items():
            assert f"def {old}(" in text
            head, body = text.split(f"    def {old}(")
            text = f"{head}    def {old}({body.partition(chr(10))[0]}\n        {new}\n{body.partition(chr(10))[2]}"
        desk.write(f"launch/{name}.py", text)
        self.queue = desk.folder / "launch" / f"{name}.json"

    @property
    def phases(self) -> list[str]:
        return json.loads(self.queue.read_text())


ASKS = "with Path(__file__).with_name('asked').open('a') as file: file.write('x')"
