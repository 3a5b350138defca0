"""Sweeps under torture: whatever happens to one, its runs end as those of a sweep that nothing happened to."""

import errno
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from slicedice.store.files import create
from slicedice.store.holder import Holder
from tests.end_to_end.crew import Crew
from tests.end_to_end.disturbances import DISTURBANCES
from tests.end_to_end.machines import Command, SmallDisk
from tests.end_to_end.torture import no_longer_than, torture
from tests.end_to_end.watching import LINES_AFTER_LOSS, Broken, Watch

NO_MOUNT = "no file system can be mounted here, so that no disk is full in a storm: run this as root"

on_linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds workers in /proc")


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


@on_linux
def test_a_storm_that_hangs_ends_with_what_everybody_is_at(tmp_path: Path):
    crew = Crew(tmp_path, tmp_path / "store", random.Random(0), print)
    sweep = Command(["-c", "import time; print('well', flush=True); time.sleep(600)"], crew.machines[0], tmp_path)
    crew.sweeps.append(sweep)
    try:
        while not sweep.said():
            time.sleep(0.01)
        sweep.send(signal.SIGSTOP)
        with pytest.raises(Broken) as broken, no_longer_than(0.1, crew.report):
            sweep.process.wait()
    finally:
        crew.end()
    told = str(broken.value)
    assert f"{sweep.process.pid} ('T', " in told
    assert 'File "<string>", line 1 in <module>' in told
    assert "well" in told.splitlines()


@on_linux
@pytest.mark.parametrize(("at_loss", "after"), [(0, 30), (40, 40)])
def test_who_has_lost_its_run_may_still_copy_what_it_goes_on_from_and_trains_no_more(
    tmp_path: Path, at_loss: int, after: int
):
    """It was frozen, and wakes up before its first step or after some."""
    run, said, us = tmp_path / "0123456789ab", tmp_path / "said", Holder.here()
    elsewhere = Holder("elsewhere", "another-boot", 1, 5)
    for number, holder in enumerate((elsewhere, us, elsewhere), 1):
        claim = {"holder": holder.as_dict(), "count": 0, "at": 0.0}
        assert create(run / "attempts" / str(number) / "claim.json", claim)
    checkpoints = ((30, f"{run}/attempts/1"), (900, f"{tmp_path}/ba9876543210/attempts/1"))
    gone_on = (f"{us.pid} INFO goes on from the checkpoint of step {step} in {of}/x\n" for step, of in checkpoints)
    said.write_text("".join(gone_on))
    watch, metrics = Watch(tmp_path, 100, said), run / "attempts" / "2" / "metrics.jsonl"

    def look_at(lines: int) -> None:
        metrics.write_text("{}\n" * lines)
        watch.look()

    look_at(at_loss)
    look_at(after + LINES_AFTER_LOSS)
    with pytest.raises(Broken, match=f"has trained {LINES_AFTER_LOSS + 1} steps since"):
        look_at(after + LINES_AFTER_LOSS + 1)


@pytest.mark.long
@on_linux
def test_each_disturbance_once(tmp_path: Path, rng: np.random.Generator):
    weather(tmp_path, len(DISTURBANCES), rng)


@on_linux
@pytest.mark.torture
def test_two_hundred_disturbances(tmp_path: Path, rng: np.random.Generator):
    weather(tmp_path, 200, rng)
