"""Who trains a run: of many one, the next one when that one is gone, and never one that still gives signs of life."""

import time
from pathlib import Path

import pytest

from slicedice.store import Claim, Kind, RunFolder, RunState, attempt
from slicedice.store import claim as claim_room
from slicedice.store.kinds import MOST_FRUITLESS
from tests.store.attempts import ELSEWHERE, add_checkpoint, beat, begin, elsewhere, make_the_folder_only


def test_of_many_processes_one_gets_each_attempt(folder: RunFolder, agents):
    crowd = [agents() for _ in range(6)]
    for number in range(1, 7):
        start = time.time() + 0.05
        for agent in crowd:
            claim = "claim = folder.claim()\nif claim: claim.__enter__()"
            agent.tell("do", f"while time.time() < {start}: pass\n{claim}")
        for agent in crowd:
            agent.answer()
        got = [agent.ask("claim and claim.number") for agent in crowd]
        assert sorted(got, key=str) == [number] + [None] * 5
        winner = crowd[got.index(number)]
        assert folder.state().kind is Kind.RUNNING
        holder = folder.attempts()[0].holder
        assert holder is not None
        assert holder.pid == winner.process.pid
        add_checkpoint(folder.attempts()[0])  # so that it is not given up as fruitless
        winner.do("claim.fail(Kind.PREEMPTED, 'enough'); claim.__exit__(None, None, None)")


def test_whoever_is_killed_is_followed_at_once_on_its_machine(folder: RunFolder, agents, monkeypatch):
    agent = agents()
    assert agent.begin() == 1
    assert folder.claim() is None
    assert folder.state().kind is Kind.RUNNING
    agent.kill()
    monkeypatch.setattr(attempt.time, "sleep", lambda _: pytest.fail("there is nothing to wait for"))
    while not folder.attempts()[0].is_over():  # killed, and not dead yet
        pass
    assert folder.state() == RunState(Kind.PREEMPTED, 0, "its worker ended without a word")
    assert begin(folder).number == 2


@pytest.mark.parametrize("patient", [False, True])
@pytest.mark.parametrize("ahead", [-1e8, -120.0, 120.0, 1e8])
def test_silence_is_measured_by_the_clock_of_who_waits(folder: RunFolder, clock, patient: bool, ahead: float):
    """However far the holder's clock is off: its last sign may be of a moment ago."""
    elsewhere(folder, at=clock.now + ahead)
    began = clock.now
    assert begin(folder, patient=patient).number == 2
    assert attempt.SILENCE_SECONDS < clock.now - began < attempt.SILENCE_SECONDS + 2


def test_what_seems_alive_is_left_alone_by_who_has_no_patience(folder: RunFolder, clock):
    elsewhere(folder, at=clock.now - 30)
    began = clock.now
    assert folder.claim() is None
    assert clock.now == began
    assert folder.state().kind is Kind.RUNNING


def test_patience_finds_out_about_what_only_seems_alive(folder: RunFolder, clock):
    elsewhere(folder, at=clock.now - 1)
    began = clock.now
    assert begin(folder, patient=True).number == 2
    assert clock.now - began > attempt.SILENCE_SECONDS


# Seconds by which the holder's clock is ahead, at one sign of life after the other.
CLOCKS = {
    "right": [0, 0, 0, 0],
    "long ago": [-1e8, -1e8, -1e8, -1e8],
    "to come": [1e8, 1e8, 1e8, 1e8],
    "going backwards": [1e6, 1e4, -1e4, -1e6],
    "standing still": [-100, -110, -120, -130],
}


@pytest.mark.parametrize("patient", [False, True])
@pytest.mark.parametrize("ahead", CLOCKS.values(), ids=CLOCKS)
def test_no_clock_takes_a_run_from_who_gives_signs_of_life(folder: RunFolder, clock, patient: bool, ahead: list[float]):
    other, began, beats = elsewhere(folder, at=clock.now + ahead[0]), clock.now, [0]

    def meanwhile() -> None:
        if clock.now - began > 59 * len(beats):  # as late as can be
            beat(other, len(beats), clock.now + ahead[min(len(beats), len(ahead) - 1)])
            beats.append(len(beats))

    clock.meanwhile = meanwhile
    for _ in range(4):
        assert folder.claim(patient=patient) is None
        clock.sleep(7)
    assert not patient or len(beats) > 4
    assert not (folder.path / "attempts" / "2").exists()


def test_who_waits_can_be_told_to_stop(folder: RunFolder, clock):
    elsewhere(folder)
    asked = []
    assert folder.claim(patient=True, stop=lambda: bool(asked.append(None)) or len(asked) > 3) is None
    assert len(asked) == 4
    assert [one.number for one in folder.attempts()] == [1]


@pytest.mark.parametrize("kind", [Kind.CRASHED, Kind.OUT_OF_MEMORY, Kind.CANCELLED])
def test_what_fails_while_somebody_waits_is_not_begun_again(folder: RunFolder, clock, kind: Kind):
    """A worker that waits for a run's holder to end would otherwise train a failure over."""
    other = elsewhere(folder)

    def meanwhile() -> None:
        if kind is Kind.CANCELLED:
            folder.cancel()
        other.end_for_it(kind, "because")

    clock.meanwhile = meanwhile
    assert folder.claim(patient=True) is None
    assert [one.number for one in folder.attempts()] == [1]
    assert folder.state().kind is kind


def test_what_is_preempted_while_somebody_waits_is_begun_at_once(folder: RunFolder, clock):
    other, began = elsewhere(folder), clock.now
    clock.meanwhile = lambda: other.end_for_it(Kind.PREEMPTED, "told to stop")
    assert begin(folder, patient=True).number == 2
    assert clock.now - began <= 1


def test_a_holder_of_another_machine_lives_as_long_as_it_beats(folder: RunFolder, agents, monkeypatch):
    """With processes and clocks as they are, and less silence."""
    monkeypatch.setattr(attempt, "SILENCE_SECONDS", 2.0)
    agent = agents(machine="another-boot", silence=2.0)
    assert agent.begin() == 1
    for _ in range(3):
        assert folder.claim(patient=True) is None
    assert not agent.ask("claim.is_lost")
    agent.kill()
    agent.process.wait()
    holder = folder.attempts()[0].holder
    assert holder is not None
    assert not holder.is_gone(), "nobody can know"
    assert begin(folder, patient=True).number == 2


def test_a_run_that_is_finished_while_it_is_claimed_is_left(folder: RunFolder, monkeypatch: pytest.MonkeyPatch):
    take = Claim.take

    def slowly(self: Claim) -> bool:
        Claim(folder.path, 1).finish(Kind.DONE, {"steps": 6})
        return take(self)

    add_checkpoint(elsewhere(folder))
    folder.attempts()[0].end_for_it(Kind.PREEMPTED, "it only seemed so")
    monkeypatch.setattr(Claim, "take", slowly)
    assert folder.claim() is None
    assert folder.state() == RunState(Kind.DONE, 6)
    assert folder.attempt().number == 1


def test_an_attempt_that_nobody_claimed_is_the_next_ones(folder: RunFolder, clock, monkeypatch):
    """Whoever made its folder died then, or found the disk full. No minute is lost, and no failure counted."""
    with begin(folder) as claim:
        add_checkpoint(claim)
    began = clock.now
    with monkeypatch.context() as patch:
        patch.setattr(claim_room, "create", make_the_folder_only)
        for _ in range(MOST_FRUITLESS + 1):
            with pytest.raises(OSError, match="full"):
                folder.claim()
    assert [one.number for one in folder.attempts()] == [2, 1]
    assert folder.state().kind is Kind.PREEMPTED
    assert begin(folder).number == 2
    assert clock.now == began


def test_an_attempt_is_whose_claim_is_first(folder: RunFolder, monkeypatch):
    """Also where both found the same folder without one."""
    (folder.path / "attempts" / "1").mkdir(parents=True)
    create = claim_room.create

    def come_late(path: Path, content: dict) -> bool:
        return create(path, {"holder": ELSEWHERE, "count": 0, "at": time.time()}) and create(path, content)

    monkeypatch.setattr(claim_room, "create", come_late)
    assert folder.claim() is None
    (one,) = folder.attempts()
    assert one.holder is not None
    assert one.holder.host == "elsewhere"
