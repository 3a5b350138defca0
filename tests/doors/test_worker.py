"""The worker without its training: what it takes up, and what it makes of every way to end."""

import dataclasses
import errno
import io
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from slicedice import evaluation, training, work, worker
from slicedice.faults import AGAIN, DISK_FULL
from slicedice.store import Attempt, Claim, Kind, RunFolder, RunState, attempt
from slicedice.store.files import BucketError
from slicedice.store.kinds import MOST_FRUITLESS
from slicedice.worker import Worker, lighter
from tests import endings
from tests.doors.bench import MOE, SCORES, Bench

# What Orbax raises when a checkpoint meets a full disk, shortened.
DISK_MESSAGE = (
    'RESOURCE_EXHAUSTED: Error writing "a/0.0" in OCDBT database at local file "x/": Failed writing: "x/d/d90f": '
    "Failed to write 2724714 bytes to file 14: No space left on device [os_error_code='28']"
)


def test_a_run_is_trained_measured_and_written_down(bench: Bench):
    run = bench.add(seed=5)
    bench.during = lambda folder: folder.state().kind is Kind.RUNNING or pytest.fail("it is not locked")
    assert bench.worker.train(run) is Kind.DONE
    folder = bench.store.run(run)
    assert folder.state() == RunState(Kind.DONE, 6)
    result = folder.result()
    assert result is not None
    assert result["train"] == {"loss": 1.5}
    assert result["evaluation"] == {**SCORES, "of": "the model of seed 5"}
    assert (folder.path / "finished.txt").read_text() == "seed 5"
    (tokens,) = (path for path in bench.store.data.glob("[!.]*") if path.is_dir())
    assert f'"{result["provenance"]["data_fingerprint"]}"' in (tokens / "meta.json").read_text()
    assert "training seed 5" in bench.log(run)
    assert folder.attempts()[0].ending()


def test_when_the_result_is_there_all_else_is(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    """Who dies right after it leaves a run that is done, and that nobody trains again."""
    run = bench.add(execution__evaluate_every=2)
    finish, synced = Claim.finish, []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.fstat(file)), sync(file)))

    def finish_and_die(claim: Claim, *result: Any) -> bool:
        metrics = claim.metrics.stat()
        assert (metrics.st_ino, metrics.st_size) in [(status.st_ino, status.st_size) for status in synced]
        finish(claim, *result)
        raise KeyboardInterrupt

    monkeypatch.setattr(Claim, "finish", finish_and_die)
    with pytest.raises(KeyboardInterrupt):
        bench.worker.train(run)
    folder = bench.store.run(run)
    assert folder.state() == RunState(Kind.DONE, 6)
    (line,) = map(json.loads, folder.attempt().evaluation_lines.read_text().splitlines())
    assert line == {"step": 6, "name": "held_out", "scores": {**SCORES, "of": "the model of seed 0"}}


def test_only_the_last_steps_are_averaged(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(worker, "TAIL_STEPS", 2)
    run = bench.add()
    bench.worker.train(run)
    assert (bench.store.run(run).result() or {})["train"] == {"loss": 2.5}


@pytest.mark.parametrize("kind", [Kind.DONE, Kind.DIVERGED])
def test_a_run_with_a_result_is_passed_over(bench: Bench, kind: Kind, capsys: pytest.CaptureFixture[str]):
    run = bench.add()
    endings.finish(bench.store.run(run), kind, {"steps": 3})
    assert bench.worker.train(run) is None
    assert bench.main(run) == 0
    assert capsys.readouterr().out == f"{run} passed_over\n"
    assert bench.calls == []
    assert bench.store.run(run).state() == RunState(kind, 3)


def test_a_run_that_another_process_holds_is_passed_over(bench: Bench):
    run = bench.add()
    folder = bench.store.run(run)
    claim = folder.claim()
    assert claim
    with claim:
        assert bench.worker.train(run) is None
        assert bench.calls == []
        claim.fail(Kind.PREEMPTED, "long ago")
    assert folder.state() == RunState(Kind.PREEMPTED, 0, "long ago")
    assert bench.worker.train(run) is Kind.DONE


def test_a_crash_is_kept_with_its_traceback_and_the_next_run_begins(bench: Bench, capsys: pytest.CaptureFixture[str]):
    first, second = bench.add(), bench.add(**MOE)
    bench.ends = [ValueError("shapes (3,) and (4,)")]
    assert bench.main(first, second) == 0
    assert capsys.readouterr().out == f"{first} crashed\n{second} done\n"
    folder = bench.store.run(first)
    assert folder.state() == RunState(Kind.CRASHED, 4, "ValueError: shapes (3,) and (4,)")
    assert folder.result() is None
    log = bench.log(first)
    assert "Traceback (most recent call last)" in log
    assert "in train" in log
    assert "ValueError: shapes (3,) and (4,)" in log
    # Each run's log is its own.
    assert log.count("training seed 0") == bench.log(second).count("training seed 0") == 1
    assert "ValueError" not in bench.log(second)
    assert folder.attempts()[0].ending()


def forgive(bench: Bench, run: str) -> None:
    bench.store.forgive(run, bench.store.read_spec(run), bench.store.run(run).execution())


def test_a_run_that_crashed_is_trained_anew_once_it_is_forgiven(bench: Bench):
    run = bench.add()
    bench.ends = [ValueError("once")]
    assert bench.worker.train(run) is Kind.CRASHED
    assert bench.worker.train(run) is None
    forgive(bench, run)
    assert bench.worker.train(run) is Kind.DONE
    assert bench.store.run(run).state() == RunState(Kind.DONE, 6)
    assert [number for number, *_ in enumerate(bench.store.run(run).attempts())] == [0, 1]


def test_the_first_failure_of_a_program_pauses_its_other_runs_and_no_others(bench: Bench, capsys):
    failing, same, other = bench.add(), bench.add(seed=1), bench.add(**MOE)
    bench.ends = [ValueError("a bug")]
    assert bench.main(failing, same, other) == 0
    assert capsys.readouterr().out == f"{failing} crashed\n{same} passed_over\n{other} done\n"
    state = bench.store.state(same, bench.store.read_spec(same), bench.store.run(same).execution())
    assert state.kind is Kind.PAUSED
    assert failing in state.reason
    assert "a bug" in state.reason
    forgive(bench, failing)
    assert bench.main(failing, same) == 0
    assert capsys.readouterr().out == f"{failing} done\n{same} done\n"


def test_a_program_that_has_worked_is_not_paused(bench: Bench):
    first, second, third = (bench.add(seed=seed) for seed in range(3))
    bench.ends = [None, ValueError("of this run alone")]
    assert [bench.worker.train(run) for run in (first, second, third)] == [Kind.DONE, Kind.CRASHED, Kind.DONE]


def test_a_cancelled_run_is_passed_over_and_one_that_is_cancelled_in_training_ends(bench: Bench):
    waiting, training_ = bench.add(), bench.add(seed=1)
    bench.store.run(waiting).cancel()
    assert bench.worker.train(waiting) is None
    seen = []

    def during(folder: RunFolder) -> None:
        seen.append(bench.worker.should_leave(bench.claim))
        folder.cancel()
        bench.claim.beat()
        seen.append(bench.worker.should_leave(bench.claim))

    bench.during, bench.ends = during, [training.Stopped("stopped after step 3")]
    assert bench.worker.train(training_) is Kind.CANCELLED
    assert seen == [False, True]
    assert bench.store.run(training_).state().kind is Kind.CANCELLED
    assert not bench.worker.should_stop()


def take_over(folder: RunFolder) -> Claim:
    """What another process does that takes the worker of a run for dead."""
    other = Claim(folder.path, folder.attempts()[0].number + 1)
    assert other.take()
    return other


@pytest.mark.parametrize("finished", [False, True])
def test_who_lost_its_run_makes_no_model_and_no_result(bench: Bench, capsys, finished: bool):
    """And says nothing more where another process logs; it finds out with a sign of life, at its end at the latest."""
    run, others = bench.add(), []

    def during(folder: RunFolder) -> None:
        others.append(take_over(folder))
        if finished:
            assert others[0].finish(Kind.DONE, {"steps": 6})

    bench.during = during
    assert bench.main(run) == 0
    assert capsys.readouterr().out == f"{run} preempted\n"
    folder = bench.store.run(run)
    mine = Attempt(folder.path, 1)
    reason = "another process took it up"
    assert (mine.ending(), mine.was_told) == (RunState(Kind.PREEMPTED, reason=reason), True)
    assert not (folder.path / "finished.txt").exists()
    assert folder.state() == (RunState(Kind.DONE, 6) if finished else RunState(Kind.RUNNING, 4))
    if finished:
        assert (folder.result() or {})["attempt"] == 2


def test_who_lost_its_run_logs_no_more_to_it(bench: Bench):
    run = bench.add()

    def during(folder: RunFolder) -> None:
        take_over(folder)
        logging.getLogger("slicedice.training").warning("it does not know")
        bench.claim.beat()
        logging.getLogger("slicedice.training").warning("it knows")

    bench.during = during
    assert bench.worker.train(run) is Kind.PREEMPTED
    assert "it does not know" in bench.log(run)
    assert "it knows" not in bench.log(run)


def test_who_is_second_by_a_moment_is_preempted(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    """Another attempt is done between the last look and the result."""
    run, finish = bench.add(), Claim.finish

    def finish_second(claim: Claim, *result: Any) -> bool:
        assert finish(take_over(bench.store.run(run)), Kind.DONE, {"steps": 6, "by": "another"})
        return finish(claim, *result)

    monkeypatch.setattr(Claim, "finish", finish_second)
    assert bench.worker.train(run) is Kind.PREEMPTED
    folder = bench.store.run(run)
    assert (folder.result() or {})["by"] == "another"
    assert Attempt(folder.path, 1).ending() == RunState(Kind.PREEMPTED, reason="another attempt finished it")


def test_who_could_give_no_sign_of_life_says_so(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    run = bench.add()

    def away(*_: object) -> None:
        raise OSError(116, "Stale file handle")

    def during(folder: RunFolder) -> None:
        now = time.monotonic() + 2 * attempt.SILENCE_SECONDS
        monkeypatch.setattr("slicedice.store.claim.time.monotonic", lambda: now)
        monkeypatch.setattr("slicedice.store.claim.attempt.attempts", away)

    bench.during, bench.ends = during, [training.Stopped("stopped after step 3")]
    assert bench.worker.train(run) is Kind.PREEMPTED
    monkeypatch.undo()
    assert bench.store.run(run).state().reason == "no sign of life could be given for a minute"


def test_a_later_attempt_goes_on_from_what_earlier_ones_have_of_the_same_text(bench: Bench):
    run = bench.add()
    bench.ends = [training.Stopped("stopped after step 3"), training.Stopped("again"), None]
    for _ in range(3):
        bench.worker.train(run)
    made = {one.number: one.checkpoints for one in bench.store.run(run).attempts()}
    assert bench.earlier == [[], [(made[1], 4)], [(made[2], 4), (made[1], 4)]]


def test_out_of_memory_is_tried_again_with_half_the_micro_batch(bench: Bench):
    run = bench.add(**MOE, router__group=2)
    bench.ends = [RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 42 bytes.")] * 2
    assert bench.worker.train(run) is Kind.DONE
    assert [program.execution.micro_batch for program, _ in bench.calls] == [8, 4, 2]
    assert all(spec == bench.store.read_spec(run) for _, spec in bench.calls)
    assert bench.store.run(run).state() == RunState(Kind.DONE, 6)
    assert bench.store.run(run).attempt().metrics.read_text().count("\n") == 4
    assert "micro_batch=2" in bench.log(run)


def test_out_of_memory_at_a_routing_group_rematerialises_and_then_ends(bench: Bench):
    run = bench.add(**MOE, router__group=4)
    bench.ends = [RuntimeError("RESOURCE_EXHAUSTED: Out of memory")] * 9
    assert bench.worker.train(run) is Kind.OUT_OF_MEMORY
    tried = [(program.execution.micro_batch, program.execution.remat) for program, _ in bench.calls]
    assert tried == [(8, False), (4, False), (4, True)]
    state = bench.store.run(run).state()
    assert state.kind is Kind.OUT_OF_MEMORY
    assert "RESOURCE_EXHAUSTED" in state.reason


def test_out_of_memory_while_reading_a_checkpoint_is_out_of_memory(bench: Bench):
    run = bench.add(**MOE)
    error = training.CheckpointError("the checkpoint cannot be read")
    error.__cause__ = RuntimeError("RESOURCE_EXHAUSTED: Out of memory")
    bench.ends = [error] * 9
    assert bench.worker.train(run) is Kind.OUT_OF_MEMORY


def test_a_model_that_evaluates_to_no_number_has_diverged(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    run = bench.add()
    scores = {"held_out": {name: {**score, "nats": float("nan")} for name, score in SCORES["held_out"].items()}}
    monkeypatch.setattr(evaluation, "held_out", lambda *_, **__: scores)
    assert bench.worker.train(run) is Kind.DIVERGED
    assert bench.store.run(run).state().kind is Kind.DIVERGED


def test_a_crash_after_out_of_memory_is_a_crash(bench: Bench):
    run = bench.add()
    bench.ends = [RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), ValueError("other")]
    assert bench.worker.train(run) is Kind.CRASHED
    assert len(bench.calls) == 2
    assert bench.store.run(run).state().reason == "ValueError: other"


def test_a_run_that_diverges_is_a_result_without_a_loss(bench: Bench, capsys: pytest.CaptureFixture[str]):
    run = bench.add()
    bench.ends = [training.Diverged(3)]
    assert bench.main(run) == 0
    folder = bench.store.run(run)
    assert folder.state() == RunState(Kind.DIVERGED, 3)
    result = folder.result()
    assert result is not None
    assert result["evaluation"] == {}
    assert result["train"] == {"loss": 1.5}
    assert not (folder.path / "finished.txt").exists()
    assert "step 3" in bench.log(run)
    # What launchers read is what the folder says.
    assert capsys.readouterr().out == f"{run} diverged\n"


def test_a_run_that_was_stopped_is_preempted_and_no_other_begins(bench: Bench, capsys: pytest.CaptureFixture[str]):
    first, second = bench.add(), bench.add(seed=1)
    bench.during = lambda folder: os.kill(os.getpid(), signal.SIGTERM)
    bench.ends = [training.Stopped("stopped after step 3")]
    assert bench.main(first, second) == 0
    assert bench.store.run(first).attempts()[0].was_told
    assert capsys.readouterr().out == f"{first} preempted\n"
    assert bench.store.run(first).state() == RunState(Kind.PREEMPTED, 4, "stopped after step 3")
    assert bench.store.run(second).state() == RunState(Kind.MISSING)


def test_a_worker_stops_when_its_launcher_is_gone(bench: Bench):
    assert not Worker(bench.store).should_stop()
    assert not Worker(bench.store, os.getppid()).should_stop()
    assert Worker(bench.store, os.getppid() + 1).should_stop()
    worker = Worker(bench.store, os.getppid())
    worker.stop(signal.SIGTERM, None)
    assert worker.should_stop()


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), ValueError(DISK_MESSAGE)],
    ids=["of the system", "of a checkpoint"],
)
def test_a_full_disk_ends_the_worker_and_blames_no_run(bench: Bench, capsys, error: Exception):
    first, second = bench.add(), bench.add(seed=1)
    bench.ends = [error] * 9
    assert bench.main(first, second) == DISK_FULL
    assert len(bench.calls) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert str(bench.store.root) in said.err
    assert "full" in said.err
    state = bench.store.run(first).state()
    assert state.kind is Kind.PREEMPTED
    assert bench.store.run(first).result() is None
    assert bench.store.run(first).attempts()[0].ending()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="writes to /dev/full")
def test_a_worker_whose_words_go_to_the_full_disk_as_well_says_so_by_its_status(bench: Bench, monkeypatch):
    bench.ends = [OSError(errno.ENOSPC, "No space left on device")]
    with open("/dev/full", "wb", buffering=0) as full:
        monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(full, write_through=True))
        assert bench.main(bench.add()) == DISK_FULL


def test_a_bucket_that_is_gone_is_no_fault_of_the_run_however_often(bench: Bench, capsys: pytest.CaptureFixture[str]):
    run = bench.add()
    bench.ends = [BucketError(errno.EIO, "the service does not answer")] * (MOST_FRUITLESS + 1)
    for _ in range(MOST_FRUITLESS + 1):
        assert bench.main(run) == AGAIN
        assert bench.store.run(run).state().kind is Kind.PREEMPTED
    assert bench.main(run) == 0


def test_another_system_error_is_a_crash(bench: Bench):
    run = bench.add()
    bench.ends = [PermissionError(errno.EACCES, "Permission denied", "x")]
    assert bench.worker.train(run) is Kind.CRASHED


def test_ctrl_c_leaves_a_run_that_goes_on(bench: Bench):
    run = bench.add()
    bench.ends = [KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        bench.worker.train(run)
    assert bench.store.run(run).state().kind is Kind.PREEMPTED
    assert bench.store.run(run).attempts()[0].ending()


def test_a_retry_that_dies_without_a_word_is_not_the_old_failure(bench: Bench):
    run = bench.add()
    bench.ends = [ValueError("long ago"), KeyboardInterrupt()]
    assert bench.worker.train(run) is Kind.CRASHED
    forgive(bench, run)
    with pytest.raises(KeyboardInterrupt):
        bench.worker.train(run)
    # It goes on with the same command, and no one has to ask for a retry again.
    assert bench.store.run(run).state().kind is Kind.PREEMPTED


def test_runs_are_read_from_standard_input(bench: Bench, monkeypatch, capsys: pytest.CaptureFixture[str]):
    first, second = bench.add(), bench.add(seed=1)
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{first}\n{second}\n"))
    assert bench.main() == 0
    assert capsys.readouterr().out == f"{first} done\n{second} done\n"


def test_seeds_share_a_program_and_other_runs_do_not(bench: Bench):
    for run in (bench.add(seed=0), bench.add(seed=1), bench.add(optimizer__learning_rate=0.5), bench.add(**MOE)):
        bench.worker.train(run)
    zero, one, rate, other = (program for program, _ in bench.calls)
    assert zero is one is rate
    assert other is not zero
    assert [program.spec.seed for program, _ in bench.calls] == [0, 0, 0, 0]
    assert [spec.seed for _, spec in bench.calls] == [0, 1, 0, 0]


def test_the_workers_log_goes_to_the_run_only_while_it_trains(bench: Bench):
    handlers = list(logging.getLogger().handlers)
    run = bench.add()
    bench.ends = [ValueError("x")]
    bench.worker.train(run)
    assert logging.getLogger().handlers == handlers
    forgive(bench, run)
    bench.worker.train(run)
    # A second attempt is written behind the first.
    assert bench.log(run).count("training seed 0") == 2


@pytest.mark.parametrize("damage", ["no run", "torn spec"])
def test_a_run_that_cannot_be_read_is_told(bench: Bench, capsys: pytest.CaptureFixture[str], damage: str):
    run = bench.add()
    path = bench.store.run(run).path / "spec.json"
    if damage == "torn spec":
        path.write_text(path.read_text()[:50])
    else:
        run = "0123456789ab"
    assert bench.main(run) == 1
    said = capsys.readouterr()
    assert run in said.err
    assert ("puts the run's folder aside" in said.err) is (damage == "torn spec")
    assert "Traceback" not in said.err
    assert bench.calls == []


def test_a_folder_that_is_no_store_is_refused(texts: Path, capsys: pytest.CaptureFixture[str]):
    assert work.main(["--store", str(texts), "0123456789ab"]) == 1
    assert str(texts) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("micro_batch", "group", "half"), [(8, 4, 4), (8, 1, 4), (8, 8, None), (4, 4, None), (1, 1, None), (2, 2, None)]
)
def test_halves_are_whole_and_cut_no_routing_group(tiny, micro_batch: int, group: int, half: int | None):
    spec, execution = tiny({"model.experts": "n=4 g=1/2", "router.group": group, "execution.micro_batch": micro_batch})
    change = {"remat": True} if half is None else {"micro_batch": half}
    assert lighter(execution, spec) == dataclasses.replace(execution, **change)
    assert lighter(dataclasses.replace(execution, micro_batch=group, remat=True), spec) is None


def test_a_micro_batch_shrinks_by_the_least_factor_that_keeps_groups_whole(tiny):
    point = {"model.experts": "n=4 g=1/2", "budget.batch_size": 24, "execution.micro_batch": 24}
    for group, smaller in ((8, 8), (4, 12), (12, 12), (3, 12)):
        spec, execution = tiny({**point, "router.group": group})
        assert lighter(execution, spec) == dataclasses.replace(execution, micro_batch=smaller)


def test_odd_micro_batches_have_no_half(tiny):
    spec, execution = tiny({"budget.batch_size": 6, "execution.micro_batch": 6})
    tried = []
    while execution := lighter(execution, spec):
        tried.append((execution.micro_batch, execution.remat))
    assert tried == [(3, False), (1, False), (1, True)]
