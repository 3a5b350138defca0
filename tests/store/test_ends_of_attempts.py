"""What attempts leave: signs of life and their ends, whole or damaged."""

import json

import pytest

from slicedice.store import Attempt, Kind, RunFolder, RunState, attempt
from tests.store.attempts import begin, elsewhere

# What JSON may hold where a number or a holder should be, and torn files.
DAMAGED = [
    "",
    "{",
    "[]",
    "null",
    "\x00" * 9,
    "{}",
    '{"holder": 5}',
    '{"holder": [1, 2]}',
    '{"holder": {"host": "a"}, "count": {}, "at": 1}',
    '{"holder": {"host": "a", "machine": "b", "pid": 1e999, "started": 1}, "count": 1e999, "at": 1}',
    '{"holder": {"host": "a", "machine": "b", "pid": "x", "started": 1}, "count": "many", "at": 1}',
    '{"count": 3, "at": null}',
    '{"count": 3, "at": NaN, "step": "x", "seconds_per_step": []}',
    "[" * 100_000,
]


@pytest.mark.parametrize("name", ["claim", "beat"])
@pytest.mark.parametrize("text", DAMAGED)
def test_damaged_signs_of_life_are_waited_for_and_then_given_up(folder: RunFolder, clock, name: str, text: str):
    one = elsewhere(folder)
    (one.path / f"{name}.json").write_text(text)
    assert folder.state().kind is Kind.PREEMPTED
    began = clock.now
    assert begin(folder).number == 2
    assert clock.now - began > attempt.SILENCE_SECONDS


@pytest.mark.parametrize("text", DAMAGED)
def test_signs_that_cannot_be_read_are_none_and_step_and_speed_are_numbers(folder: RunFolder, text: str):
    one = elsewhere(folder)
    for name in ("claim", "beat"):
        (one.path / f"{name}.json").write_text(text)
    assert one.holder is None
    assert (one.signs.step, one.signs.seconds_per_step) == (None, None)
    assert not one.seems_alive()


def test_signs_tell_how_far_it_is(folder: RunFolder):
    with begin(folder) as claim:
        assert (claim.signs.step, claim.signs.seconds_per_step) == (None, None)
        first = claim.signs
        claim.progress(7, 0.25)
        claim.beat()
        now = Attempt(folder.path, 1).signs
        assert (now.step, now.seconds_per_step) == (7, 0.25)
        assert now.count > first.count
        assert now.at >= first.at
        assert folder.state().kind is Kind.RUNNING


@pytest.mark.parametrize(
    "text",
    ["", '{"kind": "cra', "[]", "{}", '{"kind": "tired"}', '{"kind": ["crashed"]}', '{"kind": {}}', '{"reason": "x"}'],
)
def test_a_damaged_end_is_a_crash_that_waits_to_be_retried(folder: RunFolder, text: str):
    # The attempt ended somehow: taken for one that was only interrupted, the run would be trained and fail over again.
    one = elsewhere(folder)
    (one.path / "end.json").write_text(text)
    assert one.ending() == RunState(Kind.CRASHED, 0, "its end.json is damaged")
    assert folder.state() == RunState(Kind.CRASHED, 0, "its end.json is damaged")
    assert folder.claim() is None
    folder.forgive()
    assert begin(folder).number == 2


def test_an_end_that_comes_while_one_looks_is_not_damaged(folder: RunFolder, monkeypatch):
    one, read = elsewhere(folder), attempt.read_json

    def read_just_before(path):
        content = read(path)
        one.end_for_it(Kind.PREEMPTED, "told to stop")
        return content

    monkeypatch.setattr(attempt, "read_json", read_just_before)
    assert one.ending() in (None, RunState(Kind.PREEMPTED, 0, "told to stop"))
    assert folder.state().kind.is_open


@pytest.mark.parametrize("kind", [Kind.RUNNING, Kind.MISSING, Kind.QUEUED, Kind.PAUSED])
def test_an_end_is_a_failure_or_a_result(folder: RunFolder, kind: Kind):
    one = elsewhere(folder)
    (one.path / "end.json").write_text(json.dumps({"kind": kind, "reason": "x"}))
    assert folder.state() == RunState(Kind.CRASHED, 0, "its end.json is damaged")


def test_an_end_does_not_make_a_result(folder: RunFolder):
    one = elsewhere(folder)
    (one.path / "end.json").write_text(json.dumps({"kind": "done", "reason": ""}))
    assert folder.state() == RunState(Kind.MISSING, 0, "its result.json is gone")
    assert begin(folder).number == 2


def test_what_leaves_without_a_word_was_preempted(folder: RunFolder):
    with pytest.raises(KeyboardInterrupt), begin(folder):
        raise KeyboardInterrupt
    assert folder.state() == RunState(Kind.PREEMPTED, 0, "its worker ended: KeyboardInterrupt()")
    with begin(folder):
        pass
    assert folder.state() == RunState(Kind.PREEMPTED, 0, "it was let go of")
    with begin(folder) as claim:
        claim.fail(Kind.CRASHED, "because")
    assert folder.state() == RunState(Kind.CRASHED, 0, "because")
    assert folder.failures() == {Kind.PREEMPTED: 2, Kind.CRASHED: 1}


def test_an_end_is_there_whole_or_not_at_all(folder: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog):
    """A disk that was full when a run was to fail leaves one that was interrupted, not one that crashed."""
    claim = begin(folder)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("slicedice.store.files.os.fsync", full)
    claim.fail(Kind.PREEMPTED, "because")
    monkeypatch.undo()
    assert "no room" in caplog.text
    assert [path.name for path in claim.path.iterdir()] == ["claim.json"]


def test_what_its_parent_says_of_its_end_is_no_more_than_it_said_itself(folder: RunFolder):
    claim = begin(folder)
    claim.fail(Kind.OUT_OF_MEMORY, "by its own words")
    Attempt(folder.path, 1).end_for_it(Kind.CRASHED, "by its parent's")
    assert folder.state() == RunState(Kind.OUT_OF_MEMORY, 0, "by its own words")


def test_a_sign_of_life_that_cannot_be_given_is_not_the_end(folder: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog):
    """A network that is away for a moment; away for long, others may have taken the run."""
    now = 100.0
    monkeypatch.setattr("slicedice.store.claim.time.monotonic", lambda: now)
    claim = begin(folder)

    def away(*_: object, **__: object) -> None:
        raise OSError(116, "Stale file handle")

    for what in ("attempt.attempts", "write_json"):
        with monkeypatch.context() as patched:
            patched.setattr(f"slicedice.store.claim.{what}", away)
            claim.beat()
    assert caplog.text.count("no sign of life could be given") == 2
    now += attempt.SILENCE_SECONDS - 1
    assert not claim.is_lost
    now += 2
    assert claim.is_lost
    assert (claim.is_taken, claim.loss) == (False, "no sign of life could be given for a minute")
    claim.beat()
    assert not claim.is_lost
    elsewhere(folder, 2)
    claim.beat()
    assert (claim.is_taken, claim.loss) == (True, "another process took it up")
