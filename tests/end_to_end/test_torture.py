"""Sweeps under torture: whatever happens to one, its runs end as those of a sweep that nothing happened to."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from tests.end_to_end.disturbances import DISTURBANCES
from tests.end_to_end.machines import SmallDisk
from tests.end_to_end.torture import torture

NO_MOUNT = "no file system can be mounted here, so that no disk is full in a storm: run this as root"


def weather(folder: Path, rounds: int, rng: np.random.Generator) -> None:
    """A storm in which all happens that can be made to happen here, and as often as asked for."""
    disk_can_fill = SmallDisk.can_be(folder / "disk")
    storm = torture(folder, rounds, int(rng.integers(2**32)), disk_can_fill=disk_can_fill)
    kinds = {kind for kind in DISTURBANCES if disk_can_fill or kind != "full_disk"}
    assert set(storm.happened) == kinds
    assert storm.happened.total() == rounds


def test_a_disk_can_be_full_in_a_storm(tmp_path: Path):
    if not SmallDisk.can_be(tmp_path / "disk"):
        pytest.skip(NO_MOUNT)
    with SmallDisk(tmp_path / "disk", 2**20) as disk:
        disk.fill(0)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            (disk.folder / "more").write_bytes(bytes(4096))
        disk.make_room()
        (disk.folder / "more").write_bytes(bytes(4096))


@pytest.mark.torture
def test_each_disturbance_once(tmp_path: Path, rng: np.random.Generator):
    weather(tmp_path, len(DISTURBANCES), rng)


@pytest.mark.torture
def test_two_hundred_disturbances(tmp_path: Path, rng: np.random.Generator):
    weather(tmp_path, 200, rng)
