"""Attempts after the first: what they go on from, and which failures count."""

import contextlib
import json
import shutil
import time

import pytest

from slicedice.store import Attempt, Kind, RunFolder, RunState, attempt, metrics
from tests.store.agents import contents
from tests.store.attempts import add_checkpoint, begin, elsewhere
from tests.store.clocks import Clock


@pytest.mark.parametrize("begun_anew", [False, True])
def test_who_trains_in_a_folder_that_was_cleared_is_lost(folder: RunFolder, begun_anew: bool):
    """Attempts count from 1 again: the number alone would say that it is still this process's."""
    claim = begin(folder)
    claim.beat()
    assert not claim.is_lost
    shutil.rmtree(folder.path / "attempts")
    if begun_anew:
        elsewhere(folder)
    before = contents(folder.path)
    claim.beat()
    assert claim.is_lost
    assert claim.loss == "its folder was cleared"
    assert contents(folder.path) == before


def test_several_attempts_later_it_is_lost_too(folder: RunFolder):
    claim = begin(folder)
    elsewhere(folder, 3)
    claim.beat()
    assert claim.is_lost


def test_earlier_attempts_on_the_same_text_are_gone_on_from(folder: RunFolder):
    for text in ("a", "b", "a", None):
        with begin(folder) as claim:
            if text:
                claim.begin_on(text)
            add_checkpoint(claim)
    with begin(folder) as claim:
        assert [one.number for one in claim.begin_on("a")] == [3, 1]
        assert [one.number for one in claim.begin_on("b")] == [2]
        assert claim.begin_on("c") == []
        assert claim.fingerprint == "c"
        (claim.path / "data.json").write_text('{"fingerprint": 3}')
        assert claim.fingerprint is None
    assert [one.fingerprint for one in folder.attempts()] == [None, None, "a", "b", "a"]


def test_taking_over_copies_the_first_lines_to_the_byte(folder: RunFolder):
    steps = b"".join(b'{"step": %d,  "loss": 1e-0%d}\n' % (i, i) for i in range(5))
    torn = steps + b'{"step": 5, "lo'
    lines = [b'{"step": 2, "name": "a", "scores": {}}\n', b'{"step": 3,"name": "b", "scores": {}}\n']
    later = b'{"step": 4, "name": "a", "scores": {}}\n'
    with begin(folder) as first:
        first.metrics.write_bytes(torn)
        first.evaluation_lines.write_bytes(b"".join(lines) + later)
    with begin(folder) as claim:
        for count in (5, 3, 1, 0):
            claim.take_over(first, count)
            assert claim.metrics.read_bytes() == b"".join(steps.splitlines(keepends=True)[:count])
        claim.take_over(first, 3)  # an evaluation of step 3 is one of the state after three steps
        assert claim.evaluation_lines.read_bytes() == b"".join(lines)
        assert first.metrics.read_bytes() == torn
        assert claim.steps == 3


def test_nobody_takes_over_from_who_died_half_way_through_taking_over(folder: RunFolder, monkeypatch):
    """Who has the metrics of a step counts as having all of it."""
    with begin(folder) as first:
        first.metrics.write_text("".join(f'{{"step": {step}}}\n' for step in range(3)))
        first.append_evaluation(2, "a", {})
    copy, copied = metrics.copy, []

    def copy_one_file(*arguments) -> None:
        if copied:
            raise KeyboardInterrupt
        copied.append(copy(*arguments))

    monkeypatch.setattr(metrics, "copy", copy_one_file)
    with pytest.raises(KeyboardInterrupt), begin(folder) as claim:
        claim.take_over(first, 3)
    source = next(one for one in folder.attempts() if one.steps >= 3)
    assert source.evaluation_lines.read_bytes() == first.evaluation_lines.read_bytes()


def test_what_is_written_after_taking_over_follows_what_was_taken(folder: RunFolder):
    """The writer is there first, as in a worker: taking over replaces the file that it writes to."""
    with begin(folder) as first:
        first.metrics.write_text("".join(f'{{"step": {step}}}\n' for step in range(5)))
    with begin(folder) as claim, contextlib.closing(claim.record()) as writer:
        claim.take_over(first, 3)
        writer.begin(3)
        for step in (3, 4, 5, 6):
            writer.write({"step": step, "new": 1})
        lines = [json.loads(line) for line in claim.metrics.read_text().splitlines()]
        assert [line["step"] for line in lines] == list(range(7))
        assert [line.get("new") for line in lines] == [None] * 3 + [1] * 4
        assert claim.steps == 7


def test_failures_are_counted_by_kind(folder: RunFolder):
    assert folder.failures() == {}
    for kind in (Kind.PREEMPTED, Kind.CRASHED, Kind.OUT_OF_MEMORY, Kind.CRASHED, Kind.CANCELLED):
        with begin(folder) as claim:
            claim.fail(kind, "because")
        folder.forgive()
    elsewhere(folder, 6)  # it said nothing, and is silent
    assert folder.failures() == {Kind.PREEMPTED: 2, Kind.CRASHED: 2, Kind.OUT_OF_MEMORY: 1, Kind.CANCELLED: 1}
    elsewhere(folder, 7, at=time.time())
    assert folder.failures()[Kind.PREEMPTED] == 2, "one that is made has not failed"
    Attempt(folder.path, 7).end_for_it(Kind.DONE, "")
    assert sum(folder.failures().values()) == 6


def preempt(folder: RunFolder, said: bool, checkpoint: str = "", told: bool = False) -> None:
    """An attempt that is interrupted; with what Orbax has made of a checkpoint."""
    if said:
        with begin(folder) as claim:
            claim.fail(Kind.PREEMPTED, "a signal", told=told)
    else:
        claim = elsewhere(folder, folder.attempts()[0].number + 1 if folder.attempts() else 1)
    if checkpoint:
        (claim.checkpoints / "training" / checkpoint).mkdir(parents=True)


@pytest.mark.parametrize("said", [False, True])
def test_a_run_that_gets_nowhere_five_times_has_crashed(folder: RunFolder, said: bool):
    for count in range(1, 5):
        preempt(folder, said, checkpoint="3.orbax-checkpoint-tmp")  # half a checkpoint is none
        assert folder.state().kind is Kind.PREEMPTED, count
    preempt(folder, said)
    state = folder.state()
    assert state.kind is Kind.CRASHED
    assert "preempted 5 times in a row without a checkpoint" in state.reason
    assert ("a signal" if said else "without a word") in state.reason
    assert folder.claim() is None
    folder.forgive()
    assert folder.state().kind is Kind.MISSING
    for _ in range(4):  # it has five more
        preempt(folder, said)
        assert folder.state().kind is Kind.PREEMPTED
    preempt(folder, said)
    assert folder.state().kind is Kind.CRASHED


def test_who_is_told_to_stop_gets_nowhere_through_no_fault_of_the_run(folder: RunFolder, monkeypatch):
    """As where an engine preempts it before its first step, again and again; deaths in between still count."""
    monkeypatch.setattr(attempt, "time", Clock())  # or else a minute is waited for each who died without a word
    for said, told in [(True, True)] * 9 + [(True, False), (True, True), (False, False)] * 2 + [(True, True)] * 5:
        preempt(folder, said, told=told)
        assert folder.state().kind is Kind.PREEMPTED
    assert folder.failures() == {Kind.PREEMPTED: 20}
    preempt(folder, False)
    assert folder.state().kind is Kind.CRASHED


def test_a_checkpoint_in_between_begins_the_count_anew(folder: RunFolder):
    for checkpoint in ("", "", "", "", "4", "", "", "", ""):
        preempt(folder, True, checkpoint)
        assert folder.state().kind is Kind.PREEMPTED
    preempt(folder, True)
    assert folder.state().kind is Kind.CRASHED


@pytest.mark.parametrize("kind", [Kind.CRASHED, Kind.OUT_OF_MEMORY])
def test_what_failed_goes_on_when_it_is_forgiven(folder: RunFolder, kind: Kind):
    with begin(folder) as claim:
        claim.metrics.write_text('{"step": 0}\n{"step": 1}\n')
        claim.fail(kind, "because")
    assert folder.state() == RunState(kind, 2, "because")
    assert folder.claim() is None
    folder.forgive()
    assert folder.state() == RunState(Kind.PREEMPTED, 2)
    with begin(folder) as claim:
        assert claim.number == 2
        claim.fail(kind, "again")
    assert folder.state() == RunState(kind, 2, "again"), "what comes later is not forgiven"


@pytest.mark.parametrize("text", ["", "[]", '{"attempts": "many"}', '{"attempts": null}', "{}"])
def test_damaged_forgiveness_is_none(folder: RunFolder, text: str):
    with begin(folder) as claim:
        claim.fail(Kind.CRASHED, "because")
    (folder.path / "forgiven.json").write_text(text)
    assert folder.state() == RunState(Kind.CRASHED, 0, "because")


def test_who_trains_a_run_hears_that_it_is_cancelled(folder: RunFolder, tiny):
    with begin(folder) as claim:
        claim.beat()
        assert not claim.is_cancelled
        folder.cancel()
        assert folder.state().kind is Kind.RUNNING
        claim.beat()
        assert claim.is_cancelled
        assert not claim.is_lost
        claim.fail(Kind.CANCELLED, "told to")
    assert folder.state().kind is Kind.CANCELLED
    assert folder.claim() is None
    folder.create(*tiny())
    assert folder.state() == RunState(Kind.PREEMPTED, 0, "it was cancelled before")
    assert begin(folder).number == 2


def test_what_is_cancelled_before_it_begins_is_begun_when_it_is_made_again(folder: RunFolder, tiny):
    folder.cancel()
    assert folder.state() == RunState(Kind.CANCELLED, 0, "somebody cancelled it")
    assert folder.claim() is None
    folder.create(*tiny())
    assert folder.state() == RunState(Kind.MISSING)
    assert begin(folder).number == 1
