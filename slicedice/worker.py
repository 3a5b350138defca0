"""Trains runs of a store in this process: each a claim on it, an attempt, and a result or a failure on record."""

import contextlib
import dataclasses
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from slicedice import ahead, copies
from slicedice.evaluating import Evaluator
from slicedice.faults import LostPeerError, is_bucket_gone, is_lost_peer, is_out_of_memory, wait_for_all
from slicedice.programs import Programs
from slicedice.run_log import log_to
from slicedice.spec import Execution, RunSpec, run_name
from slicedice.store import Attempt, Claim, Kind, Onlooker, RunFolder, Store, StoreError, metrics
from slicedice.store.files import is_disk_full
from slicedice.writers import RunWriter

if TYPE_CHECKING:
    from slicedice.training import Lane, Program, TrainState

log = logging.getLogger("slicedice.work")

TAIL_STEPS = 50
"""Over which training metrics are averaged for the result (the study's figures 9 to 11)."""


class Worker:
    """Trains runs of one store in this process. Programs are kept, so that seeds share them.

    gone: runs whose folders were removed or damaged: the others are trained all the same.
    """

    def __init__(self, store: Store, parent: int | None = None):
        self.store, self.parent = store, parent
        self._stop = False
        self._programs = Programs(store, self.is_free)
        self._ahead = ahead.Ahead()
        self.gone: set[str] = set()

    def stop(self, *_: object) -> None:
        """Asks for a checkpoint and an end after the step that runs."""
        self._stop = True

    def should_stop(self) -> bool:
        """Whether a signal came, or the launcher that started this process is gone."""
        return self._stop or (self.parent is not None and os.getppid() != self.parent)

    def should_leave(self, claim: Claim | Onlooker) -> bool:
        """Whether to stop, or to leave the run that is trained: it was cancelled, or another process took it up."""
        return self.should_stop() or claim.is_lost or claim.is_cancelled

    def is_settled(self, run: str) -> bool:
        """Whether no worker has anything more to do for a run."""
        return self._kind(run).is_settled

    def is_free(self, run: str) -> bool:
        """Whether a run is to be trained, and nobody seems to train it."""
        kind = self._kind(run)
        return kind.is_open and kind is not Kind.RUNNING

    def _kind(self, run: str) -> Kind:
        return self.store.state(run, self.store.read_spec(run), self.store.run(run).execution()).kind

    def train_all(
        self, runs: Sequence[str], then: Sequence[str] = (), *, patient: bool = False
    ) -> Iterator[tuple[str, Kind | None]]:
        """Trains runs, those of one program at once where that pays; yields each with how it ended, None if not here.

        Once told to stop, it ends when it has yielded all that were trained at once.

        Args:
          runs: ids, in the order to train them in.
          then: ids that may come after these. They are not trained, but may be compiled for.
          patient: see `train`.
        """
        from slicedice.parallel import processes

        left = list(runs)
        while left:
            together, lanes = ([left[0]], None) if self.is_gone(left[0]) else self._programs.together(left)
            left = [run for run in left if run not in together]
            if (left or then) and ahead.pays():
                self._ahead.begin(partial(self._programs.compile_next, together[0], [*left, *then]))
            if lanes:
                works = [partial(self.train, run, patient=patient) for run in together]
                ended = lanes.train(works)
                if lanes.ran_out:
                    self._programs.narrow(lanes)
                yield from zip(together, ended, strict=True)
            else:
                yield from ((run, None if run in self.gone else self.train(run, patient=patient)) for run in together)
            if processes.greatest(self.should_stop()):
                return

    def is_gone(self, run: str) -> bool:
        """Whether the folder of a run was removed or damaged, which is told."""
        from slicedice.parallel import processes

        gone = run in self.gone
        if not gone:
            try:
                self.store.read_spec(run)
            except StoreError as error:
                print(error, file=sys.stderr)
                gone = True
        if processes.greatest(gone):  # of all processes of a run, since they see it one after another
            self.gone.add(run)
        return run in self.gone

    def train(self, run: str, lane: "Lane | None" = None, *, patient: bool = False) -> Kind | None:
        """Trains one run to a result or a failure, which is written; None if it was not ours to train.

        Of several processes, all train it or none does: if one was told to stop, or has no hold of it, they pass it by.

        Args:
          run: its id.
          lane: takes its steps together with others'.
          patient: whether to wait and see if another process that seems to train it does.

        Raises:
          LostPeerError: the run has several processes, and cannot go on with those that are left.
        """
        import jax

        from slicedice.parallel import processes

        folder, spec = self.store.run(run), self.store.read_spec(run)
        execution = folder.execution()
        mine = None
        if processes.leads() and not self.should_stop() and self.store.state(run, spec, execution).kind.is_open:
            mine = folder.claim(patient=patient, stop=self.should_stop)
        if processes.greatest(self.should_stop()):
            if mine:
                mine.fail(Kind.PREEMPTED, "told to stop before it began", told=True)
            return None
        number = processes.greatest(mine.number if mine else 0)
        if not number:
            return None
        with mine or Onlooker(folder.path, number) as claim, log_to(folder.log_of(jax.process_index()), claim):
            log.info("%s · %s, attempt %d", run_name(spec), run, number)
            kind, reason = self._attempt(claim, folder, spec, execution, lane)
            if kind is Kind.OUT_OF_MEMORY and lane:
                log.warning("out of memory beside others; again alone")
                lane.leave()
                kind, reason = self._attempt(claim, folder, spec, execution)
            if kind is Kind.OUT_OF_MEMORY and self._ahead.wait(self.should_stop):  # some compilers time kernels there
                log.warning("out of memory, perhaps since the next program was compiled; again without that")
                kind, reason = self._attempt(claim, folder, spec, execution)
            while kind is Kind.OUT_OF_MEMORY and (less := lighter(execution, spec)):
                log.warning("out of memory; again with %s", less)
                wait_for_all(f"{run} with {less}", kind)
                execution = less
                kind, reason = self._attempt(claim, folder, spec, execution)
            if not kind.has_result:
                claim.fail(kind, reason, told=kind is Kind.PREEMPTED)
        if processes.leads():
            self.store.note_ending(run)
        return kind

    def _attempt(
        self,
        claim: Claim | Onlooker,
        folder: RunFolder,
        spec: RunSpec,
        execution: Execution,
        lane: "Lane | None" = None,
    ) -> tuple[Kind, str]:
        """How it ended, and why; the caller writes that if it is no result, and last."""
        import jax

        from slicedice import training

        try:
            with contextlib.closing(RunWriter(spec, execution, self.store)) as shown:
                program = lane or self._programs.program(spec, execution)
                return self._train(claim, folder, spec, execution, program, shown), ""
        except training.Stopped as stopped:
            kind = Kind.CANCELLED if claim.is_cancelled else Kind.PREEMPTED
            return kind, claim.loss or str(stopped)
        except Exception as error:
            if is_disk_full(error):
                raise
            log.exception("the run failed")
            kind = Kind.OUT_OF_MEMORY if is_out_of_memory(error) else Kind.CRASHED
            bucket_gone = is_bucket_gone(error)  # which is not the run's fault, and passes
            if bucket_gone:
                kind = Kind.PREEMPTED
            alone = jax.process_count() == 1
            if not alone and is_lost_peer(error):
                kind = Kind.PREEMPTED
            reason = f"{type(error).__name__}: {error}"
            if kind is Kind.PREEMPTED:
                claim.fail(kind, reason, told=bucket_gone)
                raise LostPeerError(f"{folder.path.name} {kind}") from error
            if kind is Kind.CRASHED and not alone:
                claim.fail(kind, reason)
                wait_for_all(f"the end of {folder.path.name}", kind)
            return kind, reason

    def _train(
        self,
        claim: Claim | Onlooker,
        folder: RunFolder,
        spec: RunSpec,
        execution: Execution,
        program: "Program | Lane",
        shown: RunWriter,
    ) -> Kind:
        from slicedice import evaluation, training
        from slicedice.parallel import processes
        from slicedice.provenance import provenance

        d = spec.data
        tokens = copies.open_tokens(self.store, d.source, d.tokenizer, d.heldout_fraction, d.tokens or 0)
        earlier = claim.begin_on(tokens.fingerprint)
        if claim.number > 1 and not earlier:
            log.warning("nothing was trained on this text before: the run starts over")
        processes.greatest(0)  # until the first process has looked
        evaluator = Evaluator(spec, execution, tokens, copies.tasks(self.store), self.should_stop)
        last = spec.budget.steps

        def begin(step: int) -> None:
            shown.begin(step, (claim, *earlier))
            source: Attempt = next((other for other in (claim, *earlier) if other.steps >= step), claim)
            if source is not claim:
                claim.take_over(source, step)
            writer.begin(step)
            claim.cut_evaluations(step + 1)

        def report(values: metrics.Metrics) -> None:
            writer.write(values)
            claim.progress(int(values["step"]) + 1, writer.seconds_per_step())
            shown.step(values)

        def evaluated(step: int, name: str, scores: dict[str, Any]) -> None:
            if execution.evaluate_every:
                claim.append_evaluation(step, name, scores)
            shown.evaluation(step, name, scores)

        # What an earlier attempt has no metrics of cannot be gone on from.
        places = [(other.checkpoints, other.steps) for other in earlier]
        with (
            contextlib.closing(claim.record()) as writer,
            contextlib.closing(training.Checkpoints(claim.checkpoints, places, claim.publish)) as checkpoints,
        ):
            try:
                state = training.train(
                    program,
                    spec,
                    tokens,
                    checkpoints,
                    checkpoint_seconds=execution.checkpoint_seconds,
                    begin=begin,
                    report=report,
                    should_stop=partial(self.should_leave, claim),
                    evaluate=lambda state: _watch(claim, evaluator, program, state, evaluated),
                    evaluate_every=execution.evaluate_every,
                )
            except training.Diverged as diverged:
                kind, steps, losses = Kind.DIVERGED, diverged.step, {}
                log.warning("%s", diverged)
            else:
                kind, steps, model = Kind.DONE, last, program.model(state)
                losses = evaluator.held_out(model)
                if not math.isfinite(losses["held_out"]["macro"]["nats"]):  # the last step was one too many
                    kind = Kind.DIVERGED
                _require_hold(claim)
                checkpoints.save_model(state)
            # All that a finished run has comes before its result: whoever dies after that is not made up for.
            if kind is Kind.DONE:
                claim.cut_evaluations(last)
                evaluated(last, evaluation.HELD_OUT, losses)
            writer.sync()
            seconds = writer.seconds_per_step()
            _require_hold(claim)
            won = claim.finish(
                kind,
                {
                    "steps": steps,
                    "train": metrics.tail_means(claim.metrics, TAIL_STEPS),
                    "evaluation": losses,
                    "execution": dataclasses.asdict(execution),
                    "seconds_per_step": seconds and seconds / program.width,
                    "lanes": program.width,
                    "compilation": self._programs.compiled(),
                    "provenance": provenance(tokens.fingerprint),
                },
            )
            if processes.greatest(not won):
                raise training.Stopped("another attempt finished it")
            checkpoints.drop_training_state()
        if kind is Kind.DONE:  # whatever another evaluation does
            for name, content in evaluator.others(model):
                if not claim.writes:
                    continue
                if "scores" in content:
                    folder.write_evaluation(name, {**content, "provenance": provenance(tokens.fingerprint)})
                    evaluated(last, name, content["scores"])
                elif folder.evaluations().get(name) is None:
                    folder.write_evaluation(name, content)
        return kind


def _require_hold(claim: Claim | Onlooker) -> None:
    """Looks whether the run is still to be finished here, by all processes alike.

    Raises:
      Stopped: it is another process's, or may be.
    """
    from slicedice import training
    from slicedice.parallel import processes

    claim.beat()
    if processes.greatest(claim.is_lost):
        raise training.Stopped("the first process lost it")


def _watch(
    claim: Claim | Onlooker,
    evaluator: Evaluator,
    program: "Program | Lane",
    state: "TrainState",
    evaluated: Callable[[int, str, dict[str, Any]], None],
) -> None:
    """Evaluates a state in training, and hands over the scores that have no line yet of its step."""
    from slicedice import evaluation
    from slicedice.parallel import processes

    step, model = int(state.step), program.model(state)
    known = {line["name"] for line in metrics.read(claim.evaluation_lines) if line["step"] == step}
    if not claim.writes:
        known = set()
    if not processes.greatest(evaluation.HELD_OUT in known):
        evaluated(step, evaluation.HELD_OUT, evaluator.held_out(model))
    for name, content in evaluator.others(model, but=known):
        if "scores" in content:
            evaluated(step, name, content["scores"])


def lighter(execution: Execution, spec: RunSpec) -> Execution | None:
    """The same run in less memory: the next smaller micro-batch, or if that cuts a routing group, rematerialised.

    None if it is both already.
    """
    whole, unit = execution.micro_batch, spec.router.group or 1
    smaller = (whole // parts for parts in range(2, whole + 1) if whole % parts == 0 and whole // parts % unit == 0)
    for micro_batch in smaller:
        return dataclasses.replace(execution, micro_batch=micro_batch)
    return None if execution.remat else dataclasses.replace(execution, remat=True)
