"""The verb `plan` of the sweep door: what would be trained, on what, and what it costs."""

import argparse
import json
import math
from dataclasses import replace
from typing import Any

from rich.console import Console

from slicedice import files, machine
from slicedice.cost import RATES, checking
from slicedice.cost.topology import Topology, parse_topology
from slicedice.data.tokenizer import find_tokenizer
from slicedice.grid import Plan
from slicedice.launching import load_launcher
from slicedice.launching.missing import How, make_job, to_train
from slicedice.planning import Planned, Where, compile_runs, measured_rate, plan_runs
from slicedice.report.results import settings
from slicedice.report.tables import plan_table, show
from slicedice.spec import run_name
from slicedice.spec.errors import SpecError, require
from slicedice.store import Store

NO_LIBTPU = (
    "The TPU's compiler is not here: `pip install --editable '.[tpu]' --constraint constraints.txt` brings it (the "
    "package libtpu, for Linux on x86), and no TPU is needed. What follows is by arithmetic alone."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the verb."""
    p = parser.add_argument_group("plan, and where to run")
    p.add_argument("--device", choices=sorted(RATES), help="plan hours for one of this device")
    p.add_argument("--topology", help='plan for a pod or machine, as in "v5p:4x4x4" or "h100:8"; or run on it')
    p.add_argument("--mfu", type=float, help="share of the peak to plan with; else what this store's runs reached")
    p.add_argument("--price", type=float, help="of one device for an hour")
    p.add_argument("--fit", action="store_true", help="choose micro-batch and rematerialisation too, not only the mesh")
    p.add_argument("--compile", action="store_true", help="ask the TPU's compiler what every program takes")


def plan_verb(plan: Plan, store: Store, options: argparse.Namespace, console: Console) -> int:
    """Prints the plan; returns 0, or 1 if a run does not fit, or was to be compiled and was not."""
    missing = set(to_train(plan, store, retry=False, launcher=options.launcher))
    told, _, status = _tell_plan(plan, missing, store, options, console)
    if options.json:
        print(json.dumps(told))
    return status


def dry_run(plan: Plan, store: Store, how: How, options: argparse.Namespace, console: Console) -> int:
    """Prints the plan, and word for word what would be submitted; returns as `plan_verb` does.

    Raises:
      SpecError, LaunchError: the launcher cannot take these runs.
    """
    launcher = load_launcher(how.launcher, how.settings)
    missing = to_train(plan, store, retry=how.retry, launcher=how.launcher)
    told, planned, status = _tell_plan(plan, set(missing), store, options, console)
    job = make_job(_as_planned(plan, planned), store, missing, how, launcher)
    rendered = launcher.render(job) if missing else {}
    if options.json:
        print(json.dumps({**told, "launch": job.name, "units": [unit.runs for unit in job.units], "files": rendered}))
    for name, text in {} if options.json else rendered.items():
        _tell(console, f"\n{store.launch_folder(job.name) / name}:")
        _tell(console, text)
    return status


def _tell_plan(
    plan: Plan, missing: set[str], store: Store, options: argparse.Namespace, console: Console
) -> tuple[dict[str, Any], dict[str, Planned], int]:
    """Prints the plan unless JSON is asked for; returns what that would be, the plan, and the exit status."""
    there, origin = where(store, options)
    for tokenizer in {spec.data.tokenizer for spec, _ in plan.runs.values()}:
        find_tokenizer(tokenizer)
    planned = _planned(plan, there, missing, options, console)
    total = _total(planned, missing, there)
    if options.json:
        varied = settings(plan.runs)
        runs = [_run(id_, one, there, missing, varied[id_]) for id_, one in planned.items()]
        total["runs"] = runs
    else:
        show(plan_table(planned, settings(plan.runs), there, missing), console)
        for line in [_said(total, there, origin), *_compared(planned), *_misfits(planned, missing, there)]:
            console.print(line, soft_wrap=True, highlight=False)
    unchecked = options.compile and any(planned[id_].fits is None for id_ in missing)
    return total, planned, 1 if total["misfits"] or unchecked else 0


def executed_on(plan: Plan, store: Store, options: argparse.Namespace, console: Console) -> Plan:
    """The same runs as a plan for `--topology`, with `--fit` and `--compile`, has them executed.

    Raises:
      SpecError: the topology is not for these runs, or this machine, where they are to be trained, is not that.
    """
    there, _ = where(store, options)
    missing = set(to_train(plan, store, retry=options.verb == "retry", launcher=options.launcher))
    # Another launcher trains on what it finds elsewhere.
    trains_here = missing and files.label("launch", options.launcher) == "local"
    if there.topology and trains_here and (line := _standing_in(there.topology)):
        _tell(console, line)
    planned = _planned(plan, there, missing, options, console)
    for line in _misfits(planned, missing, there):
        console.print(line, soft_wrap=True, highlight=False)
    return _as_planned(plan, planned)


def _as_planned(plan: Plan, planned: dict[str, Planned]) -> Plan:
    return replace(plan, runs={id_: (one.spec, one.execution) for id_, one in planned.items()})


def _standing_in(topology: Topology) -> str:
    """A line on what trains in place of a topology's devices; "" if they are here, as far as can be known.

    JAX alone could count the devices of a TPU slice, whose hosts each see their own: workers do that.
    """
    count, here, gpus = topology.devices, machine.accelerator(), len(machine.gpus())
    if here is None:
        stand = "device stands" if count == 1 else "devices stand"
        return f"There is no {topology.device} here: {count} simulated CPU {stand} in."
    same = here == topology.device if machine.is_known() else RATES[here].is_tpu == topology.rate.is_tpu
    valid = f"the devices here count as {here}: run on those, or simulate others with JAX_PLATFORMS=cpu"
    require(same, "--topology", str(topology), valid)
    valid = f"{gpus} GPUs are here: use {topology.device}:{gpus} or less, or simulate more with JAX_PLATFORMS=cpu"
    require(topology.rate.is_tpu or count <= gpus, "--topology", str(topology), valid)
    return ""


def _planned(
    plan: Plan, where: Where, missing: set[str], options: argparse.Namespace, console: Console
) -> dict[str, Planned]:
    """Runs by id, those that are missing with what the compiler says if it was to be asked and is here.

    Raises:
      SpecError: as `plan_runs` does, with the scales if nobody named them.
    """
    try:
        planned = plan_runs(plan, where, missing, search=options.fit)
    except SpecError as error:
        if options.scale or error.field != "--topology":
            raise
        scales = ", ".join(dict.fromkeys(spec.scale for spec, _ in plan.runs.values()))
        valid = f"{error.valid}; or name a --scale, without which these are runs of {scales}"
        raise SpecError(error.field, str(where.topology), valid) from error
    if options.compile and checking.has_compiler():
        to_compile = {id_: one for id_, one in planned.items() if id_ in missing}
        planned |= compile_runs(plan, to_compile, where, search=options.fit, tell=lambda line: _tell(console, line))
    elif options.compile:
        console.print(NO_LIBTPU, soft_wrap=True)
    return planned


def where(store: Store, options: argparse.Namespace) -> tuple[Where, str]:
    """What the flags say to plan for, and where its utilization is from, in words.

    Raises:
      SpecError: flags contradict each other, or name what there is not.
    """
    priced = options.price is None or 0 <= options.price < math.inf
    require(priced, "--price", options.price, "use a price from 0, and a finite one")
    require(
        options.mfu is None or 0 < options.mfu <= 1, "--mfu", options.mfu, "use a share of the peak over 0, up to 1"
    )
    topology = None if options.topology is None else parse_topology("--topology", options.topology)
    both = topology is None or not options.device
    require(both, "--device", options.device, f"--topology {topology} names the device")
    require(topology is not None or not options.fit, "--fit", True, "say on what with --topology")
    require(topology is not None or not options.compile, "--compile", True, "say for what with --topology")
    tpu = topology is None or topology.rate.is_tpu or not options.compile
    require(tpu, "--compile", True, f"{topology} has no compiler that does without its devices: TPUs have")
    device = topology.device if topology else options.device or machine.accelerator() or "cpu"
    rate, origin = measured_rate(store, device, options.mfu)
    return Where(device, rate, topology, options.price), origin


def _tell(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, highlight=False)


def _total(planned: dict[str, Planned], missing: set[str], where: Where) -> dict[str, Any]:
    left = [planned[id_] for id_ in missing]
    device_hours = sum(one.cost.device_hours for one in left)
    return {
        "device": where.device,
        "topology": str(where.topology) if where.topology else None,
        "devices": max((one.cost.devices for one in left), default=1),
        "utilization": where.rate.utilization,
        "count": len(planned),
        "to_train": len(left),
        "flops": sum(one.cost.flops for one in left),
        "hours": sum(one.cost.seconds for one in left) / 3600,
        "device_hours": device_hours,
        "price": None if where.price is None else where.price * device_hours,
        "misfits": sum(not fits(one, where) for one in left),
    }


def fits(one: Planned, where: Where) -> bool:
    """Whether a run fits: by the compiler if it was asked, else by arithmetic."""
    if one.fits is not None:
        return one.fits
    return not where.rate.memory or one.cost.bytes <= where.rate.memory


def _run(id_: str, one: Planned, where: Where, missing: set[str], varied: str) -> dict[str, Any]:
    answer = one.answer or {}
    compiled = {f"compiled_{name}": answer[name] for name in ("bytes", "traffic", "seconds") if name in answer}
    verdict = {"fits": one.fits, **compiled} if one.fits is not None else {}
    return {
        "id": id_,
        "name": run_name(one.spec),
        "settings": varied,
        "to_train": id_ in missing,
        "mesh": one.execution.mesh,
        "micro_batch": one.execution.micro_batch,
        "remat": one.execution.remat,
        **one.cost.as_dict(),
        "price": None if where.price is None else where.price * one.cost.device_hours,
        **verdict,
        **({"error": answer["error"]} if "error" in answer else {}),
    }


def _said(total: dict[str, Any], where: Where, origin: str) -> str:
    cost = f", {total['device_hours']:,.0f} device-hours" if total["devices"] > 1 else ""
    devices = where.topology or ("one " if total["devices"] == 1 else f"up to {total['devices']} ") + where.device
    price = f", {total['price']:,.2f} at {where.price:g} an hour" if total["price"] is not None else ""
    return (
        f"{total['to_train']} of {total['count']} runs to train: {total['flops']:.2e} FLOPs, {total['hours']:,.2f} "
        f"hours one after the other on {devices}{cost}{price}; {origin}."
    )


def _compared(planned: dict[str, Planned]) -> list[str]:
    """How far arithmetic is from the compiler, of the programs that it was asked about."""
    checked = [one for one in planned.values() if one.answer and one.fits]
    pairs = {
        "memory": [(one.cost.bytes, one.answer["bytes"]) for one in checked if one.answer],
        "traffic": [(sum(one.cost.traffic.values()), one.answer["traffic"]) for one in checked if one.answer],
    }
    shares = {what: [own / compiled for own, compiled in both if compiled] for what, both in pairs.items()}
    said = [f"{what} is {min(those):.2f} to {max(those):.2f}" for what, those in shares.items() if those]
    return [f"By arithmetic, {' and '.join(said)} of what the compiler says."] if said else []


def _misfits(planned: dict[str, Planned], missing: set[str], where: Where) -> list[str]:
    lines = []
    for id_ in planned:
        one = planned[id_]
        if id_ in missing and not fits(one, where):
            size = (one.answer or {}).get("bytes") or one.cost.bytes
            lines.append(
                f"{run_name(one.spec)} does not fit: {size / 2**30:,.1f} GiB of {where.rate.memory / 2**30:,.1f} GiB a "
                f"device with micro-batch {one.execution.micro_batch}{', remat' if one.execution.remat else ''}, mesh "
                f"{one.execution.mesh or 'of one device'}."
            )
    return lines[:20] + ([f"Nor do {len(lines) - 20} more."] if len(lines) > 20 else [])
