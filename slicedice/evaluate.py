"""Evaluates finished runs: `python -m slicedice.evaluate --run ID [--sets a,b] [--tasks c,d] [--data_dir DIR]`.

On sets of whole documents, a folder of text or the study's by name; on multiple choice; or, with neither, on the run's
held-out text once more. What is found is printed and kept in the run's folder, where reports read it. A run that was
evaluated on the same text with the same settings is passed over.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from typing import Any

from slicedice import cache, copies, evaluation, machine
from slicedice.commandline import door
from slicedice.data import DataError, TokenStore
from slicedice.evaluation import HELD_OUT, Settings
from slicedice.report.tables import lines_table, plain_console, show
from slicedice.spec import RunSpec, run_name
from slicedice.spec.config import BYTES, EVALUATION_SETS, EVALUATION_TASKS, listed
from slicedice.spec.errors import require
from slicedice.store import Kind, Store, StoreError

SAME = 1e-5
"""Nats by which two evaluations of the same may differ: devices and batch sizes sum in other orders."""


TITLES = {
    HELD_OUT: "Held-out text",
    "documents": "Whole documents",
    "tasks": "Multiple choice",
}
MEANS = {
    "nats": "nats",
    "bits_per_byte": "bits/byte",
    "accuracy": "accuracy",
    "accuracy_normalised": "by length",
    "truncated": "truncated",
}
"""Headings of measures."""

COUNTS = ("targets", "documents", "questions", "skipped")


@door
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    p = argparse.ArgumentParser(
        prog="python -m slicedice.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument("--run", required=True, help="id, the beginning of one, name, or a pattern of names or ids")
    p.add_argument(
        "--sets",
        default="",
        help=f"paths of files or folders of text, paloma, or of its sets {', '.join(EVALUATION_SETS)}",
    )
    p.add_argument("--tasks", default="", help=f"some of {', '.join(EVALUATION_TASKS)}")
    p.add_argument("--data_dir", default="", help="folder of sets and tasks that are named")
    p.add_argument("--window", type=int, default=0, help="tokens that the model sees at once; 0 for as in training")
    p.add_argument("--stride", type=int, default=0, help="tokens between windows of a document; 0 for the window")
    p.add_argument("--store", default="runs", help="folder where runs live (default: %(default)s)")
    p.add_argument("--again", action="store_true", help="evaluate also what was evaluated with the same settings")
    p.add_argument("--json", action="store_true", help="print JSON")
    options = p.parse_args(arguments)
    require(options.window >= 0, "--window", options.window, "use a number of tokens, or 0")
    require(options.stride >= 0, "--stride", options.stride, "use a number of tokens, or 0")
    machine.settle_platform()
    store = Store(options.store)
    sets, tasks = listed("--sets", options.sets), listed("--tasks", options.tasks, among=EVALUATION_TASKS)
    evaluations = evaluation.find_all(evaluation.Asked(sets, tasks, options.data_dir))
    found = _matching(store, options.run)
    reports, refused = [], list(found.values())
    for id_ in (id_ for id_, refusal in found.items() if not refusal):
        try:
            run = _Run(store, id_)
            window = options.window or run.spec.data.sequence_length
            stride = options.stride or window
            require(stride <= window, "--stride", options.stride, f"use a number up to the window, {window}")
            reports += run.evaluate(evaluations, Settings(window, stride), again=options.again)
        except (DataError, StoreError) as error:
            if len(found) == 1:
                raise
            refused.append(str(error))  # the others go on
    if options.json:
        print(json.dumps(reports))
    else:
        _tell(reports)
    for refusal in filter(None, refused):
        print(refusal, file=sys.stderr)
    return 1 if any(refused) else 0


def _matching(store: Store, pattern: str) -> dict[str, str]:
    """The ids of runs, each with why it cannot be evaluated; "" if it can.

    Raises:
      StoreError: there is none that can.
    """
    ids = store.matching(pattern)
    if not ids:
        raise StoreError(
            f"There is no run {pattern!r} in {store.root}. Names and ids are what `python -m slicedice.sweep status` "
            "lists."
        )
    found = {}
    for id_ in ids:
        state = store.run(id_).state()
        because = f" ({state.reason})" if state.reason else ""
        refusal = f"The run {id_} has no finished model: it is {state.kind} after {state.steps} steps{because}."
        found[id_] = "" if state.kind is Kind.DONE else refusal
    if all(found.values()):
        raise StoreError(" ".join(found.values()))
    return found


class _Run:
    """A finished run with its model.

    Raises:
      StoreError: its model cannot be read.
      DataError: its token store is gone, or its tokenizer has more ids than its model.
    """

    def __init__(self, store: Store, id_: str):
        self._store, self.folder = store, store.run(id_)
        self.spec = store.read_spec(id_)
        self.title = f"{run_name(self.spec)} · {id_}"
        self._result: dict[str, Any] = self.folder.result() or {}
        self.tokens, self.is_same_text = _tokens(store, self.spec, self._result)
        if self.tokens.vocab_size > self.spec.model.vocab_size:
            raise DataError(
                f"{self.title} cannot be evaluated: its tokenizer has {self.tokens.vocab_size} ids, and its model "
                f"knows {self.spec.model.vocab_size}."
            )
        # As it was trained in the end, which may be in less memory than it was to be.
        execution = self._result.get("execution") or {}
        self._batch_size = int(execution.get("micro_batch") or self.folder.execution().micro_batch)

    def _model(self) -> Any:
        import jax
        from flax import nnx

        from slicedice.model import Decoder
        from slicedice.moe import RouterBias
        from slicedice.training import CheckpointError, Checkpoints

        shapes = nnx.eval_shape(
            lambda: Decoder(self.spec.model, compute_dtype=self.spec.compute_dtype, key=jax.random.key(0))
        )
        graphdef, params, bias = nnx.split(shapes, nnx.Param, RouterBias)
        checkpoints = Checkpoints(self.folder.attempt().checkpoints)
        try:
            return nnx.merge(graphdef, *checkpoints.restore_model((params, bias)))
        except CheckpointError as error:
            raise StoreError(str(error)) from error
        finally:
            checkpoints.close()

    def evaluate(
        self, evaluations: list[evaluation.Evaluation], settings: Settings, *, again: bool
    ) -> list[dict[str, Any]]:
        """Evaluates on what was not yet evaluated on, and writes it; without any, on the held-out text.

        Returns:
          For each what is in its file, with `run`, `name` and `status`.
        """
        stored = self.folder.evaluations()
        told = {e.name: self._known(e, stored.get(e.name), settings) for e in evaluations if not again}
        left = [e for e in evaluations if not told.get(e.name)]
        if evaluations and not left:
            return [content for content in told.values() if content]
        from slicedice import training
        from slicedice.evaluation.scoring import scorers
        from slicedice.provenance import provenance

        cache.use_compilation_cache()
        model, routing = self._model(), training.routing_of(self.spec)
        origin = provenance(self.tokens.fingerprint)
        if not evaluations:
            return [self._held_out(model, routing, origin)]
        ways = scorers(model, self.spec, routing, settings.window)
        for own in left:
            content = own.evaluate(ways, self.tokens.tokenizer, settings, batch_size=self._batch_size)
            content |= {"provenance": origin}
            self.folder.write_evaluation(own.name, content)
            told[own.name] = self._report(own.name, content, "evaluated")
        return [content for e in evaluations if (content := told[e.name])]

    def _known(
        self, own: evaluation.Evaluation, stored: dict[str, Any] | None, settings: Settings
    ) -> dict[str, Any] | None:
        """What is stored of an evaluation, if it was on the same text with the same settings."""
        if not stored or "scores" not in stored or stored.get("settings") != own.settings(settings):
            return None
        return (
            self._report(own.name, stored, "evaluated before; --again does it again")
            if stored.get("fingerprint") == own.fingerprint()
            else None
        )

    def _held_out(self, model: Any, routing: Any, origin: dict[str, Any]) -> dict[str, Any]:
        if not self.is_same_text:
            raise DataError(
                f"{self.title} was trained on other text than {self.spec.data.source} holds now, and that is not in "
                "the store any more: there is no held-out text to evaluate on. --sets and --tasks do without."
            )
        scores = evaluation.held_out(model, self.tokens, self.spec, routing, batch_size=self._batch_size)
        window = self.spec.data.sequence_length
        content: dict[str, Any] = {
            "kind": HELD_OUT,
            "settings": {"window": window, "tokens": self.spec.evaluation.tokens},
            "scores": {"as_trained" if name == HELD_OUT else name: own for name, own in scores.items()},
            "fingerprint": self.tokens.fingerprint,
            "provenance": origin,
        }
        self.folder.write_evaluation(HELD_OUT, content)
        before = (self._result.get("evaluation") or {}).get(HELD_OUT, {}).get("macro", {}).get("nats", math.nan)
        apart = scores[HELD_OUT]["macro"]["nats"] - before
        same = abs(apart) <= SAME
        status = "as it was after training" if same else f"{apart:+.6f} nats apart from what it was after training"
        return self._report(HELD_OUT, content, status)

    def _report(self, name: str, content: dict[str, Any], status: str) -> dict[str, Any]:
        return {"run": self.folder.path.name, "title": self.title, **content, "name": name, "status": status}


def _tokens(store: Store, spec: RunSpec, result: dict[str, Any]) -> tuple[TokenStore, bool]:
    """The token store that a run was trained on, without its text; and whether it is that, or of later text.

    Raises:
      DataError: there is none.
    """
    d, trained_on = spec.data, (result.get("provenance") or {}).get("data_fingerprint", "")
    refusal = None
    try:
        tokens = copies.open_tokens(store, d.source, d.tokenizer, d.heldout_fraction, d.tokens or 0)
        if tokens.fingerprint == trained_on:
            return tokens, True
    except DataError as error:
        tokens, refusal = None, error
    if other := copies.find_tokens(store, trained_on):
        return other, True
    if tokens is None or d.tokenizer != BYTES:
        raise refusal or DataError(
            f"{run_name(spec)} was trained on tokens of {d.source} that are not in {store.data} any more, and "
            f"{d.tokenizer} may be another tokenizer now."
        )
    return tokens, False


def _tell(reports: list[dict[str, Any]]) -> None:
    console = plain_console()
    for kind in dict.fromkeys(report["kind"] for report in reports):
        lines = [
            {
                "run": report["title"],
                "evaluation": report["name"],
                "of": part,
                "routing": way.replace("_", " ") if len(report["scores"]) > 1 else "",
                **_numbers(score),
            }
            for report in reports
            if report["kind"] == kind
            for way, scores in report["scores"].items()
            for part, score in scores.items()
        ]
        show(lines_table(TITLES[kind], lines), console)
    told: dict[str, list[str]] = {}
    for report in reports:
        for sentence in (report["status"], *remarks(report)):
            told.setdefault(f"{report['name']}: {sentence}", []).append(report["run"])
    for sentence, runs in told.items():
        some = ", ".join(runs[:5]) + (f" and {len(runs) - 5} more" if len(runs) > 5 else "")
        console.print(f"{sentence} ({some})", highlight=False, soft_wrap=True)


def _numbers(score: dict[str, Any]) -> dict[str, str]:
    told = {short: f"{score[name]:.4f}" for name, short in MEANS.items() if name in score}
    return told | {name: f"{score[name]:,}" for name in COUNTS if name in score}


def remarks(report: dict[str, Any]) -> list[str]:
    """Sentences on what is missing from an evaluation, and on what could not be used."""
    told = []
    if missing := report.get("missing"):
        some = ", ".join(missing[:11]) + (f" and {len(missing) - 11} more" if len(missing) > 11 else "")
        told.append(f"a mean without {some}, which there is nothing to score of")
    problems = report.get("problems") or {"counts": {}, "named": {}}
    for kind, count in problems["counts"].items():
        first = problems["named"].get(kind, [""])[0]
        told.append(f"{count} passed over, {kind}; the first: {first}")
    return told


if __name__ == "__main__":
    sys.exit(main())
