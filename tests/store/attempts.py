"""Attempts of this process and of others, as tests need them."""

import json
from pathlib import Path

from slicedice.store import Attempt, Claim, RunFolder

ELSEWHERE = {"host": "elsewhere", "machine": "another-boot", "pid": 1, "started": 5}


def begin(folder: RunFolder, **options) -> Claim:
    """The attempt that this process makes now."""
    claim = folder.claim(**options)
    assert claim is not None
    return claim


def elsewhere(folder: RunFolder, number: int = 1, at: float = 0.0) -> Attempt:
    """An attempt of a process on another machine, whose only sign of life is its claim."""
    path = folder.path / "attempts" / str(number)
    path.mkdir(parents=True)
    (path / "claim.json").write_text(json.dumps({"holder": ELSEWHERE, "count": 0, "at": at}))
    return Attempt(folder.path, number)


def make_the_folder_only(path: Path, _: object) -> bool:
    """As `create`, on a full disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    raise OSError("the disk is full")


def beat(one: Attempt, count: int, at: float) -> None:
    (one.path / "beat.json").write_text(json.dumps({"count": count, "at": at, "step": 3, "seconds_per_step": 0.5}))


def add_checkpoint(one: Attempt, step: int = 3) -> None:
    (one.checkpoints / "training" / str(step)).mkdir(parents=True)
