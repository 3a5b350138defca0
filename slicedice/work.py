"""The worker: `python -m slicedice.work --store STORE [RUN ...]` trains runs, one after the other.

Every launcher starts this. Runs are named by id, as arguments or as lines on standard input, and their
folders say what they are; a run that another process holds, or that has a result, is passed over. However a
run ends, its folder says so, a line "RUN KIND" is printed, and the next one begins.
"""

import argparse
import contextlib
import dataclasses
import logging
import math
import os
import signal
import sys
from collections.abc import Callable, Container, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from slicedice.data import DataError
from slicedice.spec import Execution, RunSpec, program_key, run_name
from slicedice.store import Kind, RunFolder, Store, StoreError, metrics
from slicedice.store.files import NO_ROOM

if TYPE_CHECKING:
    from slicedice.data import TokenStore
    from slicedice.model import Decoder
    from slicedice.training import Program, TrainState

log = logging.getLogger("slicedice.work")

TAIL_STEPS = 50
"""Over which training metrics are averaged for the result (the study's figures 9 to 11)."""

DISK_FULL = 28
"""Exit status of a worker that could not write: nothing else that writes there will fare better."""


class _Stop(Exception):
    """An evaluation was asked to stop."""


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
        """Trains one run to a result or a failure, which is written; None if it was not ours to train."""
        folder = self.store.run(run)
        spec, execution = self.store.read_spec(run), folder.execution()
        with folder.lock() as ours, _log_to(folder):
            if not ours or folder.result():
                return None
            log.info("%s · %s", run_name(spec), run)
            kind = self._attempt(folder, spec, execution)
            while kind is Kind.OUT_OF_MEMORY and (less := lighter(execution, spec)):
                log.warning("out of memory; again with %s", less)
                execution = less
                kind = self._attempt(folder, spec, execution)
            return kind

    def _attempt(self, folder: RunFolder, spec: RunSpec, execution: Execution) -> Kind:
        from slicedice import training

        folder.forget_failure()
        try:
            return self._train(folder, spec, execution)
        except training.Stopped as stopped:
            folder.fail(Kind.PREEMPTED, str(stopped))
            return Kind.PREEMPTED
        except Exception as error:
            if is_disk_full(error):
                raise
            log.exception("the run failed")
            kind = Kind.OUT_OF_MEMORY if is_out_of_memory(error) else Kind.CRASHED
            folder.fail(kind, f"{type(error).__name__}: {error}")
            return kind

    def _train(self, folder: RunFolder, spec: RunSpec, execution: Execution) -> Kind:
        from slicedice import data, evaluation, training
        from slicedice.provenance import provenance

        d = spec.data
        tokens = data.open_store(d.source, d.tokenizer, self.store.data, d.heldout_fraction, d.tokens or 0)
        if folder.begin_on(tokens.fingerprint):
            log.warning("what had been trained was on other text: the run starts over")
        key = program_key(spec, execution)
        if key not in self._programs:
            self._programs[key] = training.Program(spec, execution)
        program = self._programs[key]
        last = spec.budget.steps

        def begin(step: int) -> None:
            writer.begin(step)
            metrics.cut(folder.evaluation_lines, step + 1)

        with (
            contextlib.closing(metrics.Writer(folder.metrics)) as writer,
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
                    report=writer.write,
                    should_stop=self.should_stop,
                    evaluate=lambda state: self._watch(folder, spec, execution, tokens, program, state),
                    evaluate_every=execution.evaluate_every,
                )
            except training.Diverged as diverged:
                kind, steps, losses = Kind.DIVERGED, diverged.step, {}
                log.warning("%s", diverged)
            else:
                kind, steps, model = Kind.DONE, last, program.model(state)
                losses = self._held_out(spec, execution, tokens, model)
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
            if execution.evaluate_every:
                metrics.cut(folder.evaluation_lines, last)
                folder.append_evaluation(last, evaluation.HELD_OUT, losses)
            # The result is there: whatever an evaluation does, the run is done.
            for name, content in self._evaluations(spec, execution, tokens, model):
                if "scores" in content:
                    folder.write_evaluation(name, {**content, "provenance": provenance(tokens.fingerprint)})
                    if execution.evaluate_every:
                        folder.append_evaluation(last, name, content["scores"])
                elif folder.evaluations().get(name) is None:
                    folder.write_evaluation(name, content)
        return kind

    def _held_out(self, spec: RunSpec, execution: Execution, tokens: "TokenStore", model: "Decoder") -> dict[str, Any]:
        from slicedice import evaluation, training

        routing = training.routing_of(spec, execution)
        return evaluation.held_out(model, tokens, spec, routing, batch_size=execution.micro_batch)

    def _watch(
        self,
        folder: RunFolder,
        spec: RunSpec,
        execution: Execution,
        tokens: "TokenStore",
        program: "Program",
        state: "TrainState",
    ) -> None:
        """Evaluates a state in training, and adds the lines that are not there yet of its step."""
        from slicedice import evaluation

        step, model = int(state.step), program.model(state)
        known = {line["name"] for line in metrics.read(folder.evaluation_lines) if line["step"] == step}
        if evaluation.HELD_OUT not in known:
            folder.append_evaluation(step, evaluation.HELD_OUT, self._held_out(spec, execution, tokens, model))
        for name, content in self._evaluations(spec, execution, tokens, model, but=known):
            if "scores" in content:
                folder.append_evaluation(step, name, content["scores"])

    def _evaluations(
        self,
        spec: RunSpec,
        execution: Execution,
        tokens: "TokenStore",
        model: "Decoder",
        but: Container[str] = (),
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Name and content of each evaluation that the run is asked for; of one that fails, why, in the log as well.

        Ends early, with a line in the log, when the worker is asked to stop.
        """
        from slicedice import evaluation, training
        from slicedice.evaluation.scoring import scorers

        window = spec.data.sequence_length
        ways = scorers(model, spec, training.routing_of(spec, execution), window)
        ways = {name: self._stopping(score) for name, score in ways.items()}
        seen: set[str] = set()
        asked = evaluation.Asked.of(execution)
        for kind, name in asked.each():
            try:
                found = evaluation.find(kind, name, asked.data_dir, self.store.tasks)
                if found.name in seen:
                    raise DataError(f"{name} is called {found.name!r}, as another evaluation is. Rename one.")
                name = found.name
                seen.add(name)
                if name in but:
                    continue
                settings = evaluation.Settings(window, window)
                content = found.evaluate(ways, tokens.tokenizer, settings, batch_size=execution.micro_batch)
            except _Stop:
                log.warning("asked to stop: not evaluated on %s; `python -m slicedice.evaluate` does it", name)
                return
            except Exception as error:
                if is_disk_full(error):
                    raise
                log.warning("the evaluation on %s failed: %s", name, error, exc_info=not isinstance(error, DataError))
                content = {"kind": "failed", "reason": f"{error}" or type(error).__name__}
            yield name, content

    def _stopping(self, score: Callable[..., Any]) -> Callable[..., Any]:
        """The same way to score, which raises when the worker is asked to stop."""

        def scored(*batch: Any) -> Any:
            if self.should_stop():
                raise _Stop
            return score(*batch)

        return scored


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device was out of memory, while training or while reading a checkpoint."""
    if "RESOURCE_EXHAUSTED" in str(error):
        return True
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)


def is_disk_full(error: BaseException) -> bool:
    """Whether the disk was full; Orbax reports that in errors of its own, by the system's words."""
    if (isinstance(error, OSError) and error.errno in NO_ROOM) or any(os.strerror(n) in str(error) for n in NO_ROOM):
        return True
    return error.__cause__ is not None and is_disk_full(error.__cause__)


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the worker; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m slicedice.work", description=__doc__, allow_abbrev=False)
    parser.add_argument("--store", required=True, help="folder where runs live")
    parser.add_argument("--parent", type=int, help="stop, with a checkpoint, when this process is no longer the parent")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="ids; read from standard input if none is given")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for talkative in ("absl", "jax"):  # Orbax tells every step of a save, JAX of every platform it lacks
        logging.getLogger(talkative).setLevel(logging.WARNING)
    try:
        store = Store(options.store)
        use_compilation_cache(store)
        worker = Worker(store, options.parent)
        signal.signal(signal.SIGTERM, worker.stop)
        for line in options.runs or iter(sys.stdin.readline, ""):
            if worker.should_stop():
                break
            kind: Any = worker.train(line.strip())
            print(line.strip(), kind or "passed_over", flush=True)
    except StoreError as error:
        print(error, file=sys.stderr)
        return 1
    except Exception as error:
        if not is_disk_full(error):
            raise
        print(
            f"The disk of {options.store} is full ({error}). Finished runs are safe; make room, run again.",
            file=sys.stderr,
        )
        return DISK_FULL
    return 0


if __name__ == "__main__":
    sys.exit(main())
