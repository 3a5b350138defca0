"""The worker: `python -m slicedice.work --store STORE [RUN ...]` trains runs, one after the other.

Every launcher starts this. Runs are named by id, as arguments or as lines on standard input, and their
folders say what they are; a run that another process holds, or that has a result, is passed over. However a
run ends, its folder says so, a line "RUN KIND" is printed, and the next one begins.

Several processes train one run when each is started with --processes, as on a pod's hosts: with the same store and the
same runs as arguments. All see the same files; the first one writes them.
"""

import argparse
import contextlib
import dataclasses
import logging
import math
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from slicedice.evaluating import Evaluator
from slicedice.spec import Execution, RunSpec, SpecError, program_key, run_name
from slicedice.spec.errors import require
from slicedice.store import Kind, RunFolder, Store, StoreError, metrics
from slicedice.store.files import is_disk_full
from slicedice.store.run import Onlooker
from slicedice.writers import RunWriter

if TYPE_CHECKING:
    from slicedice.training import Program, TrainState

log = logging.getLogger("slicedice.work")

TAIL_STEPS = 50
"""Over which training metrics are averaged for the result (the study's figures 9 to 11)."""

DISK_FULL = 28
"""Exit status of a worker that could not write: nothing else that writes there will fare better."""

LOST_PEER = 75
"""Exit status of a process whose run cannot go on without the others: to be started again with them."""

OTHERS_SECONDS = 60
"""How long a process that failed waits for the others to fail alike."""

LOST_PEER_WORDS = "Gloo", "heartbeat", "oordination service", "UNAVAILABLE", "DEADLINE_EXCEEDED"


class LostPeerError(RuntimeError):
    """Of several processes on a run, one was lost or failed by itself; `status` is what this one ends with."""

    def __init__(self, message: str, status: int = LOST_PEER):
        super().__init__(message)
        self.status = status


class Worker:
    """Trains runs of one store in this process. Programs are kept, so that seeds share them."""

    def __init__(self, store: Store, parent: int | None = None):
        self.store, self.parent = store, parent
        self._stop = False
        self._programs: dict[str, Program] = {}

    def stop(self, *_: object) -> None:
        """Asks for a checkpoint and an end after the step that runs."""
        self._stop = True

    def should_stop(self) -> bool:
        """Whether a signal came, or the launcher that started this process is gone."""
        return self._stop or (self.parent is not None and os.getppid() != self.parent)

    def train(self, run: str) -> Kind | None:
        """Trains one run to a result or a failure, which is written; None if it was not ours to train.

        Of several processes, all train it or none does: if one was told to stop, or has no hold of it, they pass it by.

        Raises:
          LostPeerError: the run has several processes, and cannot go on with those that are left.
        """
        import jax

        from slicedice.parallel import processes

        folder, spec = self.store.run(run), self.store.read_spec(run)
        if not processes.leads():
            folder = Onlooker(folder, jax.process_index())
        execution = folder.execution()
        with folder.lock() as ours, _log_to(folder):
            stops = processes.greatest(self.should_stop())
            if stops or not processes.greatest(ours and not folder.result()):
                return None
            log.info("%s · %s", run_name(spec), run)
            kind = self._attempt(folder, spec, execution)
            while kind is Kind.OUT_OF_MEMORY and (less := lighter(execution, spec)):
                log.warning("out of memory; again with %s", less)
                _wait_for_all(f"{run} with {less}", kind)
                execution = less
                kind = self._attempt(folder, spec, execution)
            return kind

    def _attempt(self, folder: RunFolder, spec: RunSpec, execution: Execution) -> Kind:
        import jax

        from slicedice import training

        folder.forget_failure()
        try:
            with contextlib.closing(RunWriter(spec, execution, folder, self.store)) as shown:
                return self._train(folder, spec, execution, shown)
        except training.Stopped as stopped:
            folder.fail(Kind.PREEMPTED, str(stopped))
            return Kind.PREEMPTED
        except Exception as error:
            if is_disk_full(error):
                raise
            log.exception("the run failed")
            kind = Kind.OUT_OF_MEMORY if is_out_of_memory(error) else Kind.CRASHED
            alone = jax.process_count() == 1
            if not alone and is_lost_peer(error):
                kind = Kind.PREEMPTED
            folder.fail(kind, f"{type(error).__name__}: {error}")
            if kind is Kind.PREEMPTED:
                raise LostPeerError(f"{folder.path.name} {kind}") from error
            if kind is Kind.CRASHED:
                _wait_for_all(f"the end of {folder.path.name}", kind)
            return kind

    def _train(self, folder: RunFolder, spec: RunSpec, execution: Execution, shown: RunWriter) -> Kind:
        from slicedice import data, evaluation, training
        from slicedice.parallel import processes
        from slicedice.provenance import provenance

        d = spec.data
        tokens = data.open_store(d.source, d.tokenizer, self.store.data, d.heldout_fraction, d.tokens or 0)
        if folder.begin_on(tokens.fingerprint):
            log.warning("what had been trained was on other text: the run starts over")
        processes.greatest(0)  # until the first process has looked
        key = program_key(spec, execution)
        if key not in self._programs:
            self._programs[key] = training.Program(spec, execution)
        program = self._programs[key]
        evaluator = Evaluator(spec, execution, tokens, self.store.tasks, self.should_stop)
        last = spec.budget.steps

        def begin(step: int) -> None:
            shown.begin(step)
            writer.begin(step)
            folder.cut_evaluations(step + 1)

        def report(values: metrics.Metrics) -> None:
            writer.write(values)
            shown.step(values)

        def evaluated(step: int, name: str, scores: dict[str, Any]) -> None:
            if execution.evaluate_every:
                folder.append_evaluation(step, name, scores)
            shown.evaluation(step, name, scores)

        with (
            contextlib.closing(folder.record()) as writer,
            contextlib.closing(training.Checkpoints(folder.checkpoints)) as checkpoints,
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
                    should_stop=self.should_stop,
                    evaluate=lambda state: _watch(folder, evaluator, program, state, evaluated),
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
                checkpoints.save_model(state)
            folder.finish(
                kind,
                {
                    "steps": steps,
                    "train": metrics.tail_means(folder.metrics, TAIL_STEPS),
                    "evaluation": losses,
                    "execution": dataclasses.asdict(execution),
                    "seconds_per_step": writer.seconds_per_step(),
                    "provenance": provenance(tokens.fingerprint),
                },
            )
            checkpoints.drop_training_state()
        if kind is Kind.DONE:
            folder.cut_evaluations(last)
            evaluated(last, evaluation.HELD_OUT, losses)
            # The result is there: whatever an evaluation does, the run is done.
            for name, content in evaluator.others(model):
                if "scores" in content:
                    folder.write_evaluation(name, {**content, "provenance": provenance(tokens.fingerprint)})
                    evaluated(last, name, content["scores"])
                elif folder.evaluations().get(name) is None:
                    folder.write_evaluation(name, content)
        return kind


def _watch(
    folder: RunFolder,
    evaluator: Evaluator,
    program: "Program",
    state: "TrainState",
    evaluated: Callable[[int, str, dict[str, Any]], None],
) -> None:
    """Evaluates a state in training, and hands over the scores that have no line yet of its step."""
    from slicedice import evaluation
    from slicedice.parallel import processes

    step, model = int(state.step), program.model(state)
    known = {line["name"] for line in metrics.read(folder.evaluation_lines) if line["step"] == step}
    if not processes.leads():
        known = set()
    if not processes.greatest(evaluation.HELD_OUT in known):
        evaluated(step, evaluation.HELD_OUT, evaluator.held_out(model))
    for name, content in evaluator.others(model, but=known):
        if "scores" in content:
            evaluated(step, name, content["scores"])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device was out of memory, while training or while reading a checkpoint."""
    if "RESOURCE_EXHAUSTED" in str(error):
        return True
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)


def is_lost_peer(error: BaseException) -> bool:
    """Whether another process of the run is gone, by the words of those who notice: Gloo, and JAX's coordination."""
    if any(word in str(error) for word in LOST_PEER_WORDS):
        return True
    return error.__cause__ is not None and is_lost_peer(error.__cause__)


def _wait_for_all(what: str, kind: Kind) -> None:
    """Waits until every process has failed alike, and comes to `what`, which no two waits may share.

    Raises:
      LostPeerError: one has not, in a minute. It waits for what this one will not send any more.
    """
    import jax
    from orbax.checkpoint import multihost

    if jax.process_count() > 1:
        try:
            # No collective: a process that has memory enough waits in one of the step's.
            multihost.get_barrier_sync_fn()(key=what, timeout_ms=1000 * OTHERS_SECONDS)
        except Exception as error:
            # To start again alone would not help.
            raise LostPeerError(f"{kind} in this process alone", 1) from error


def lighter(execution: Execution, spec: RunSpec) -> Execution | None:
    """The same run in less memory: the next smaller micro-batch, or if that cuts a routing group, rematerialised.

    None if it is both already.
    """
    whole, unit = execution.micro_batch, spec.router.group or 1
    smaller = (whole // parts for parts in range(2, whole + 1) if whole % parts == 0 and whole // parts % unit == 0)
    for micro_batch in smaller:
        return dataclasses.replace(execution, micro_batch=micro_batch)
    return None if execution.remat else dataclasses.replace(execution, remat=True)


@contextlib.contextmanager
def _log_to(folder: RunFolder) -> Iterator[None]:
    """Sends what is logged meanwhile to the run's log as well."""
    handler = logging.FileHandler(folder.log)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


def use_compilation_cache(store: Store) -> None:
    """Lets all processes that use `store` share compiled programs."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(store.compilation_cache.absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _join(options: argparse.Namespace) -> None:
    """Joins the other processes, if there are to be any."""
    named = (options.process is not None, options.coordinator is not None)
    require(options.processes >= 0, "--processes", options.processes, "use a number from 0")
    require(
        named == ((True, True) if options.processes > 1 else (False, False)),
        "--processes",
        options.processes,
        "more than one take --process and --coordinator as well, and 0 or 1 neither",
    )
    if options.processes == 1:
        return
    require(
        bool(options.runs), "--processes", options.processes, "name the runs as arguments, the same in each process"
    )
    if options.processes > 1:
        last = options.processes - 1
        require(0 <= options.process <= last, "--process", options.process, f"use a number from 0 to {last}")
        address = re.fullmatch(r".+:\d+", options.coordinator)
        require(bool(address), "--coordinator", options.coordinator, "write HOST:PORT, of the first process")
    from slicedice.parallel import processes

    try:
        processes.join(options.coordinator, options.processes or None, options.process)
    except ValueError as error:
        valid = f"JAX does not find out here ({error}): say how many there are, with --process and --coordinator"
        require(options.processes > 0, "--processes", options.processes, valid)
        raise


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the worker; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m slicedice.work", description=__doc__, allow_abbrev=False)
    parser.add_argument("--store", required=True, help="folder where runs live")
    parser.add_argument("--parent", type=int, help="stop, with a checkpoint, when this process is no longer the parent")
    parser.add_argument("--processes", type=int, default=1, help="how many train each run together; 0: as JAX finds")
    parser.add_argument("--process", type=int, help="which of them this is, from 0")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="of the first of them")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="ids; read from standard input if none is given")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for talkative in ("absl", "jax"):  # Orbax tells every step of a save, JAX of every platform it lacks
        logging.getLogger(talkative).setLevel(logging.WARNING)
    try:
        _join(options)
    except SpecError as error:
        print(error, file=sys.stderr)
        return 1
    try:
        store = Store(options.store)
        use_compilation_cache(store)
        worker = Worker(store, options.parent)
        signal.signal(signal.SIGTERM, worker.stop)
        for line in options.runs or iter(sys.stdin.readline, ""):
            if options.processes == 1 and worker.should_stop():  # several decide together, in `train`
                break
            kind: Any = worker.train(line.strip())
            print(line.strip(), kind or "passed_over", flush=True)
    except (StoreError, SpecError) as error:
        print(error, file=sys.stderr)
        return _leave(1, options)
    except LostPeerError as error:
        print(error, flush=True)
        return _leave(error.status, options)
    except Exception as error:
        if is_disk_full(error):
            print(
                f"The disk of {options.store} is full ({error}). Finished runs are safe; make room, run again.",
                file=sys.stderr,
            )
            return _leave(DISK_FULL, options)
        if options.processes == 1:
            raise
        traceback.print_exc()
        return _leave(1, options)
    return 0


def _leave(status: int, options: argparse.Namespace) -> int:
    """The status; but of several processes, one that fails ends at once: the ordinary way out waits for the others."""
    if options.processes != 1:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
