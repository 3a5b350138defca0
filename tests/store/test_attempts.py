"""Who trains a run: of many one, the next one when that one is gone, and never one that still gives signs of life."""

import contextlib
import json
import shutil
import signal
import time
from pathlib import Path

import pytest

from slicedice.store import Attempt, Claim, Kind, RunFolder, RunState, attempt, metrics
from slicedice.store import claim as claim_room
from slicedice.store.kinds import MOST_FRUITLESS
from tests.store.agents import contents
from tests.store.clocks import Clock

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


class Stopped:
    """A holder on another machine that was stopped until another process took its run, and then woke up."""

    def __init__(self, folder: RunFolder, agents, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(attempt, "SILENCE_SECONDS", 1.0)
        self.agent = agents(machine="another-boot")
        assert self.agent.begin() == 1
        self.agent.do("claim.begin_on('text'); writer = claim.record(); writer.write({'step': 0, 'loss': 1.0})")
        self.agent.process.send_signal(signal.SIGSTOP)
        self.claim = begin(folder, patient=True)
        monkeypatch.setattr(attempt, "SILENCE_SECONDS", 60.0)
        assert self.claim.number == 2
        (earlier,) = self.claim.begin_on("text")
        self.claim.take_over(earlier, 1)
        self.before = contents(folder.path)
        self.agent.process.send_signal(signal.SIGCONT)


@pytest.fixture
def stopped(folder: RunFolder, agents, monkeypatch) -> Stopped:
    return Stopped(folder, agents, monkeypatch)


def test_who_wakes_up_finds_that_its_run_is_lost(stopped: Stopped):
    deadline = time.monotonic() + 30
    while not stopped.agent.ask("claim.is_lost"):
        assert time.monotonic() < deadline
    # It says no more of itself, so that none takes its attempt for one that is made.
    signs = stopped.agent.ask("claim.signs.count")
    stopped.agent.do("claim.beat()")
    assert stopped.agent.ask("claim.signs.count") == signs


def test_who_wakes_up_disturbs_nobody(folder: RunFolder, stopped: Stopped):
    stopped.agent.do(
        "writer.write({'step': 1, 'loss': 666.0}); claim.append_evaluation(1, 'x', {}); claim.cut_evaluations(1)\n"
        "claim.begin_on('another text'); claim.progress(9, 9.0); claim.beat(); (claim.checkpoints / 'training/9').mkdir"
        "(parents=True)\nclaim.fail(Kind.CRASHED, 'all went wrong'); claim.__exit__(None, OSError(), None)"
    )
    after = contents(folder.path)
    changed = {name for name in {**stopped.before, **after} if after.get(name) != stopped.before.get(name)}
    assert changed
    assert {name.rpartition("/")[0] for name in changed} == {"attempts/1"}
    assert folder.state() == RunState(Kind.RUNNING, 1)
    with stopped.claim as claim:
        assert not claim.is_lost
        claim.finish(Kind.DONE, {"steps": 6})
    assert folder.state() == RunState(Kind.DONE, 6)


def test_who_wakes_up_and_finishes_first_has_the_result(folder: RunFolder, stopped: Stopped):
    """Both trained the same run, and whoever is there first has it whole."""
    stopped.agent.do("claim.finish(Kind.DONE, {'steps': 6, 'by': 'who woke up'})")
    result = folder.result()
    assert result is not None
    assert (result["attempt"], result["by"], folder.attempt().number) == (1, "who woke up", 1)
    with stopped.claim as claim:
        assert not claim.finish(Kind.DIVERGED, {"steps": 4, "by": "who took over"})
        claim.fail(Kind.PREEMPTED, claim.loss, told=True)
    assert folder.result() == result
    assert folder.attempts()[0].ending() == RunState(Kind.PREEMPTED, reason="another attempt finished it")
    assert folder.claim() is None


def test_who_took_over_hears_that_who_woke_up_has_finished(folder: RunFolder, stopped: Stopped):
    stopped.claim.beat()
    assert not stopped.claim.is_lost
    stopped.agent.do("claim.finish(Kind.DONE, {'steps': 6})")
    stopped.claim.beat()
    assert stopped.claim.is_taken
    assert stopped.claim.loss == "another attempt finished it"


@pytest.mark.parametrize("text", ["", "{", '{"schema": 0, "kind": "done", "steps": 6, "attempt": 7}'])
def test_a_damaged_result_takes_no_run_away(folder: RunFolder, text: str):
    claim = begin(folder)
    (folder.path / "result.json").write_text(text)
    claim.beat()
    assert not claim.is_lost
    assert claim.finish(Kind.DONE, {"steps": 6})
    claim.beat()
    assert not claim.is_lost, "its own result"
    assert folder.state() == RunState(Kind.DONE, 6)


def test_who_wakes_up_and_finishes_second_leaves_the_result(folder: RunFolder, stopped: Stopped):
    with stopped.claim as claim:
        claim.finish(Kind.DONE, {"steps": 6, "by": "who took over"})
    result = folder.result()
    stopped.agent.do("claim.finish(Kind.DONE, {'steps': 6, 'by': 'who woke up'}); claim.__exit__(None, None, None)")
    assert result is not None
    assert folder.result() == result
    assert (result["by"], folder.attempt().number) == ("who took over", 2)


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
