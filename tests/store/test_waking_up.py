"""A holder that was stopped until another took its run, and then wakes up."""

import signal
import time

import pytest

from slicedice.store import Kind, RunFolder, RunState, attempt
from tests.store.agents import contents
from tests.store.attempts import begin


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
