"""Stands in for `gcloud compute tpus queued-resources`: keeps resources in a folder, and what it was called with.

The folder is the environment variable FAKE_GCLOUD's. `plan.json` there says what is to happen, by the name of a
resource: `states`, for each time it is created, the states that it is listed in, one after the other, the last one
from then on; `install` and `work`, what commands of that kind end with, one after the other and then 0, each a status,
or one with a state that the resource is in from then on; `fail`, by verb, whether it fails the first time, the second
and so on. A worker waits for the file `hold-NAME` to go.
"""

import fcntl
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

folder = Path(os.environ.get("FAKE_GCLOUD", "."))


def take(kind: str, name: str) -> Any:
    """The next thing planned of a kind; None if nothing is left."""
    counter = folder / f"count-{kind}-{name}"
    taken = int(counter.read_text()) if counter.exists() else 0
    counter.write_text(str(taken + 1))
    planned = json.loads((folder / "plan.json").read_text()).get(kind, {}).get(name, [])
    return planned[taken] if taken < len(planned) else None


def state_of(path: Path) -> str:
    """The state that a resource is listed in this time."""
    states = json.loads(path.read_text())
    if len(states) > 1:
        path.write_text(json.dumps(states[1:]))
    return states[0]


def main() -> int:
    """Does what is asked; several that are called at once do so one after the other."""
    lock = (folder / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    with (folder / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps(sys.argv[1:]) + "\n")
    assert sys.argv[1:4] == ["compute", "tpus", "queued-resources"]
    verb, words = sys.argv[4], [word for word in sys.argv[5:] if not word.startswith("--")]
    flags: dict[str, str] = {}
    for word in sys.argv[5:]:
        if word.startswith("--"):
            flag, _, value = word[2:].partition("=")
            flags[flag] = value
    if take("fail", verb):
        print("ERROR: the network is away", file=sys.stderr)
        return 1
    here = folder / "resources"
    here.mkdir(exist_ok=True)
    if verb == "list":
        found = [(f"projects/p/locations/{flags['zone']}/queuedResources/{path.name}", path) for path in here.iterdir()]
        if flags["format"] == "json":
            print(json.dumps([{"name": name, "state": {"state": state_of(path)}} for name, path in found]))
            return 0
        pattern = flags["filter"].removeprefix("name ~ ").strip(chr(34))
        print("\n".join(state_of(path) for name, path in found if re.search(pattern, name)), end="")
        return 0
    path = here / words[0]
    if verb == "create":
        if path.exists():
            return 1
        path.write_text(json.dumps(take("states", path.name) or ["WAITING_FOR_RESOURCES", "ACTIVE"]))
        return 0
    if not path.exists():
        print(f"ERROR: NOT_FOUND: {path.name}", file=sys.stderr)
        return 1
    if verb == "delete":
        path.unlink()
        return 0
    assert verb == "ssh"
    if "pkill" in flags["command"]:
        (folder / f"hold-{path.name}").unlink(missing_ok=True)
        return 0
    is_work = "slicedice.work" in flags["command"]
    ended = take("work" if is_work else "install", path.name)
    fcntl.flock(lock, fcntl.LOCK_UN)
    while is_work and (folder / f"hold-{path.name}").exists():
        time.sleep(0.01)
    fcntl.flock(lock, fcntl.LOCK_EX)
    status, state = ended if isinstance(ended, list) else (ended or 0, "")
    if state == "gone":
        path.unlink(missing_ok=True)
    elif state:
        path.write_text(json.dumps([state]))
    print(f"output of {path.name}")
    return status


if __name__ == "__main__":
    sys.exit(main())
