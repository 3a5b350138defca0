"""How a sweep trains what is missing: text is prepared, folders are made, work units cut and handed to a launcher."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from rich.console import Console

from slicedice import copies, evaluation, machine
from slicedice.cost import cost
from slicedice.data import TokenStore
from slicedice.data.tokenizer import padded_vocab_size
from slicedice.grid import Plan
from slicedice.launching.cores import Measure, largest, measured_speed, workers_that_pay
from slicedice.launching.loading import load_launcher
from slicedice.launching.protocol import Attended, Job, Launcher, LaunchError, LeftoverError, WorkUnit
from slicedice.launching.queue import REFUSED, queue
from slicedice.launching.units import work_units
from slicedice.planning import Where
from slicedice.report.progress import Progress
from slicedice.spec import DataSpec, SpecError, run_name
from slicedice.spec.mesh import require_experts
from slicedice.store import Kind, Launch, Store, StoreError
from slicedice.store.files import each, write_whole
from slicedice.store.launches import write_launch
from slicedice.writers import require_installed


@dataclass(frozen=True)
class How:
    """How a sweep is to train.

    label: what to call it, as launches are named by it.
    where: what it is planned for, which says how long runs take.
    launcher, settings: see `load_launcher`.
    max_concurrent: work units at once; 0 leaves it to the launcher.
    unit_hours: how long a work unit may take, by the plan.
    retry: to train what failed, instead of what is missing.
    """

    label: str
    where: Where
    launcher: str = "local"
    settings: Mapping[str, str] = field(default_factory=dict)
    max_concurrent: int = 0
    unit_hours: float = 4.0
    retry: bool = False


def to_train(plan: Plan, store: Store, *, retry: bool, launcher: str = "") -> list[str]:
    """Ids of the runs to launch: what is missing or was interrupted, or with `retry` what failed instead.

    What a cluster's engine has in its queue is neither. A unit that runs has passed what failed: it is launched again,
    and trained by whoever comes first, once. `launcher` is as `queue` takes it.
    """
    kinds = {id_: state.kind for id_, (state, _) in store.look(plan.runs).items()}
    if retry:
        failed = [id_ for id_, kind in kinds.items() if kind.needs_retry]
        waiting = queue(store, failed, launcher).to_begin
        return [id_ for id_ in failed if id_ not in waiting]
    missing = [id_ for id_, kind in kinds.items() if kind.is_to_train]
    waiting = queue(store, [id_ for id_ in missing if kinds[id_] is not Kind.CANCELLED], launcher).on_clusters
    return [id_ for id_ in missing if id_ not in waiting or kinds[id_] is Kind.CANCELLED]


def train_missing(plan: Plan, store: Store, how: How, console: Console) -> bool:
    """Trains what `to_train` names, or hands it to a cluster's engine.

    Returns:
      Whether what was launched has ended; False if it is an engine's now.

    Raises:
      DataError: the text cannot be used, or something to evaluate on is not there; nothing was launched.
      FileError: there is no such launcher.
      SpecError: the model's vocabulary is smaller than the tokenizer's, a mesh's expert axis longer than a set, or a
        setting of the launcher is not right.
      LaunchError: the launcher could not go on.
    """
    launcher = load_launcher(how.launcher, how.settings)
    if isinstance(launcher, Attended):  # others train where something else may be installed
        for writers in sorted({execution.writers for _, execution in plan.runs.values()}):
            require_installed(writers)
    store.create()
    # Text is tokenised before workers start, so that bad input ends here, in one paragraph.
    texts = {data: _prepare(data, store) for data in {spec.data for spec, _ in plan.runs.values()}}
    for spec, _ in plan.runs.values():
        if spec.model.vocab_size < texts[spec.data].vocab_size:
            has = texts[spec.data].vocab_size
            valid = f"the tokenizer {spec.data.tokenizer!r} has {has} ids: use {padded_vocab_size(has)} or more"
            raise SpecError("model.vocab_size", spec.model.vocab_size, valid)
    looks = store.look(plan.runs)
    results = {id_: result for id_, (_, result) in looks.items()}
    failed = [id_ for id_, (state, _) in looks.items() if how.retry and state.kind.needs_retry]
    stale = [id_ for id_, (spec, _) in plan.runs.items() if _is_stale(results[id_], texts[spec.data].fingerprint)]
    if stale:
        console.print(
            f"{len(stale)} finished runs were trained on other text than there is now. Their results stay; another "
            "--store trains them on the present text.",
            soft_wrap=True,
        )
    _tell_of_evaluations(plan, store, console)
    missing = to_train(plan, store, retry=how.retry, launcher=how.launcher)
    if not missing and not failed:
        left = [id_ for id_, (state, _) in store.look(plan.runs).items() if state.kind.is_to_train]
        if how.retry:
            console.print("There is nothing to retry. The verb run trains what is missing.")
        elif left:
            console.print(
                f"All {len(left)} runs that are left are in an engine's queue; the verb status tells of them."
            )
        return not left
    tell = partial(console.print, highlight=False, soft_wrap=True)
    job = make_job(plan, store, missing, how, launcher, tell, measured_speed) if missing else None
    rendered = launcher.render(job) if job else {}
    begun = failed if how.retry else missing
    settled = [id_ for id_ in missing if looks[id_][0].kind.is_settled]
    marks = each(lambda id_: store.marks(id_, *plan.runs[id_]), settled, store.root)
    each(lambda id_: store.run(id_).create(*plan.runs[id_]), begun, store.root)
    if how.retry:
        each(lambda id_: store.forgive(id_, *plan.runs[id_]), begun, store.root)
    if waiting := len(set(begun) - set(missing)):
        console.print(f"{waiting} runs are tried again by work units that wait in an engine's queue.")
    if job is None:
        return False
    for text in texts.values():
        console.print(text.summary(), highlight=False, soft_wrap=True)
    launch = Launch(
        job.name, store.launch_folder(job.name), how.launcher, how.settings, tuple(unit.runs for unit in job.units)
    )
    try:
        write_launch(launch, rendered)
        _submit(launcher, job, launch, rendered)
    except StoreError:  # another sweep began at the same moment: what is marked now, it has marked
        raise
    except BaseException:  # so that what failed or was cancelled is told of as before
        each(store.put_back, marks, store.root)
        raise
    if isinstance(launcher, Attended):
        with Progress(store, plan, missing, console) as progress:
            launcher.attend(replace(job, watch=progress.watch))
        return True
    console.print(
        f"{len(missing)} runs in {len(job.units)} work units are submitted as {job.name}. What was submitted is in "
        f"{launch.folder}; `sweep status --watch` with the same --grid and --scale shows how they fare.",
        highlight=False,
        soft_wrap=True,
    )
    return False


def _submit(launcher: Launcher, job: Job, launch: Launch, rendered: Mapping[str, str]) -> None:
    """Hands a job over, and puts on record what the engine calls its units; what nobody would know of is taken back."""
    try:
        made = replace(launch, handles=tuple(launcher.submit(job, rendered)))
    except LaunchError as error:
        if not isinstance(error, LeftoverError):
            with contextlib.suppress(OSError):  # the disk is full, and that is not what has to be told
                write_whole(launch.folder / REFUSED, f"{error}\n")
        raise
    try:
        write_launch(made, {})
    except BaseException:
        launcher.cancel(made, range(len(made.units)))
        raise


def make_job(
    plan: Plan,
    store: Store,
    missing: Sequence[str],
    how: How,
    launcher: Launcher,
    tell: Callable[[str], None] = lambda line: None,
    measure: Measure | None = None,
) -> Job:
    """What a launcher is to do: work units of a program each, or for this machine, where workers keep programs, runs.

    Args:
      plan: all runs.
      store: where they live.
      missing: ids of those to train.
      how: to train them; where it does not say how many at once, on this machine's cores as many as pay.
      launcher: whose job it is.
      tell, measure: see `workers_that_pay`; without them, nothing is measured.

    Raises:
      SpecError: on the mesh of a run some devices would have no expert.
    """
    runs, at_once = {id_: plan.runs[id_] for id_ in missing}, how.max_concurrent
    for spec, execution in runs.values():
        require_experts(execution.mesh_shape, spec.model.layer, run_name(spec))
    if isinstance(launcher, Attended):
        units = tuple(WorkUnit((id_,), execution.mesh_shape.devices) for id_, (_, execution) in runs.items())
        at_once = at_once or workers_that_pay(plan, tell, measure)
    else:
        seconds = {id_: cost(*run, how.where.rate).seconds for id_, run in runs.items()}
        units = work_units(runs, seconds, 3600 * how.unit_hours)
    # Of all runs of the plan, done or not: what is left must not change how many train at once.
    size, devices = largest(plan)
    return Job(store.next_launch(how.label), store, units, at_once, size, devices, how.where.topology)


def _tell_of_evaluations(plan: Plan, store: Store, console: Console) -> None:
    """Says how finished runs gain evaluations that are asked for now.

    Raises:
      DataError: something to evaluate on is not there, which is told now and not after training.
    """
    asked = {}
    for execution in {execution for _, execution in plan.runs.values()}:
        wanted = evaluation.Asked.of(execution)
        tasks = copies.tasks(store)
        evaluation.copy_tasks(wanted, tasks)
        copies.publish_tasks(store, tasks)
        asked[execution] = [found.name for found in evaluation.find_all(wanted)]
    some = [id_ for id_, (_, execution) in plan.runs.items() if asked[execution]]
    kinds = {id_: state.kind for id_, (state, _) in store.look({id_: plan.runs[id_] for id_ in some}).items()}
    done = [id_ for id_ in some if kinds[id_] is Kind.DONE]
    found = each(lambda id_: store.run(id_).evaluations(), done, store.root)
    lacking = [id_ for id_, own in zip(done, found, strict=True) if set(asked[plan.runs[id_][1]]) - set(own)]
    if lacking:
        names = ", ".join(dict.fromkeys(name for names in asked.values() for name in names))
        console.print(
            f"{len(lacking)} finished runs were not evaluated on all of {names}. `python -m slicedice.evaluate --run "
            f"{lacking[0]}`, or a pattern of names, with --sets, --tasks and --data_dir does that.",
            highlight=False,
            soft_wrap=True,
        )


def _prepare(data: DataSpec, store: Store) -> TokenStore:
    text = (data.source, data.tokenizer, data.heldout_fraction, data.tokens or 0)
    return copies.prepare_tokens(store, *text, processes=len(machine.cores()))


def _is_stale(result: Mapping[str, Any] | None, fingerprint: str) -> bool:
    origin = (result or {}).get("provenance")
    return isinstance(origin, dict) and origin.get("data_fingerprint", fingerprint) != fingerprint
