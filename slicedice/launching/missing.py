"""How a sweep trains what is missing: prepares text, makes runs' folders, cuts work units and hands them to a launcher."""

from rich.console import Console

from slicedice import evaluation, files, machine
from slicedice.cost import memory
from slicedice.data import TokenStore, prepare
from slicedice.data.tokenizer import padded_vocab_size
from slicedice.grid import Plan
from slicedice.report.progress import Progress
from slicedice.spec import DataSpec, SpecError, run_name
from slicedice.spec.mesh import require_experts
from slicedice.store import Kind, Store


def to_train(plan: Plan, store: Store, *, retry: bool) -> list[str]:
    """Ids of the runs to launch: what is missing or was interrupted, or with `retry` what failed instead."""
    kinds = {id_: store.run(id_).state().kind for id_ in plan.runs}
    if retry:
        return [id_ for id_, kind in kinds.items() if kind.needs_retry]
    return [id_ for id_, kind in kinds.items() if kind in (Kind.MISSING, Kind.PREEMPTED)]


def train_missing(
    plan: Plan, store: Store, launcher: str, max_concurrent: int, *, retry: bool, console: Console
) -> None:
    """Trains what `to_train` names, showing progress until the launcher returns.

    Raises:
      DataError: the text cannot be used, or something to evaluate on is not there; nothing was launched.
      SpecError: the model's vocabulary is smaller than the tokenizer's, or a mesh's expert axis longer than a set.
      LaunchError: the launcher could not go on.
    """
    store.create()
    # Text is tokenised before workers start, so that bad input ends here, in one paragraph.
    texts = {data: _prepare(data, store) for data in {spec.data for spec, _ in plan.runs.values()}}
    for spec, _ in plan.runs.values():
        if spec.model.vocab_size < texts[spec.data].vocab_size:
            has = texts[spec.data].vocab_size
            valid = f"the tokenizer {spec.data.tokenizer!r} has {has} ids: use {padded_vocab_size(has)} or more"
            raise SpecError("model.vocab_size", spec.model.vocab_size, valid)
    stale = [id_ for id_, (spec, _) in plan.runs.items() if _is_stale(store, id_, texts[spec.data].fingerprint)]
    if stale:
        console.print(
            f"{len(stale)} finished runs were trained on other text than there is now. Their results stay; another "
            "--store trains them on the present text.",
            soft_wrap=True,
        )
    _tell_of_evaluations(plan, store, console)
    missing = to_train(plan, store, retry=retry)
    if not missing:
        if retry:
            console.print("There is nothing to retry. Without --retry, what is missing is trained.")
        return
    for id_ in missing:
        spec, execution = plan.runs[id_]
        require_experts(execution.mesh_shape, spec.model.layer, run_name(spec))
    launch = files.function("launch", launcher, "launch")
    for id_ in missing:
        store.run(id_).create(*plan.runs[id_])
    for text in texts.values():
        console.print(text.summary(), highlight=False, soft_wrap=True)
    with Progress(store, plan, missing, console) as progress:
        devices = max(execution.mesh_shape.devices for _, execution in plan.runs.values())
        launch(Job(store, tuple(missing), max_concurrent, _largest(plan), devices, progress.watch))


def _tell_of_evaluations(plan: Plan, store: Store, console: Console) -> None:
    """Says how finished runs gain evaluations that are asked for now.

    Raises:
      DataError: something to evaluate on is not there, which is told now and not after training.
    """
    asked = {}
    for execution in {execution for _, execution in plan.runs.values()}:
        wanted = evaluation.Asked.of(execution)
        evaluation.copy_tasks(wanted, store.tasks)
        asked[execution] = [found.name for found in evaluation.find_all(wanted)]
    lacking = [
        id_
        for id_, (_, execution) in plan.runs.items()
        if set(asked[execution]) - set((folder := store.run(id_)).evaluations()) and folder.state().kind is Kind.DONE
    ]
    if lacking:
        names = ", ".join(dict.fromkeys(name for names in asked.values() for name in names))
        console.print(
            f"{len(lacking)} finished runs were not evaluated on all of {names}. `python -m slicedice.evaluate --run "
            f"{lacking[0]}`, or a pattern of names, with --sets, --tasks and --data_dir does that.",
            highlight=False,
            soft_wrap=True,
        )


def _prepare(data: DataSpec, store: Store) -> TokenStore:
    text = (data.source, data.tokenizer, store.data, data.heldout_fraction, data.tokens or 0)
    return prepare(*text, processes=len(machine.cores()))


def _largest(plan: Plan) -> int:
    """Bytes of the plan's largest run, done or not: what is left must not change how many train at once."""
    return max(memory(spec, execution) for spec, execution in plan.runs.values())


def _is_stale(store: Store, run: str, fingerprint: str) -> bool:
    origin = (store.run(run).result() or {}).get("provenance")
    return isinstance(origin, dict) and origin.get("data_fingerprint", fingerprint) != fingerprint
