"""What a recipe takes from a store: all its runs, cells as the law sees them, and what they were trained with."""

import contextlib
from collections.abc import Iterable
from typing import Any

from slicedice.files import FileError
from slicedice.grid import Plan, departures, load_config
from slicedice.report.claims.evidence import Evidence, arm
from slicedice.report.recipe.candidates import active_parameters
from slicedice.report.recipe.law import NOISE, Observation, Point
from slicedice.report.results import Results, read_results
from slicedice.spec import Execution, RunSpec
from slicedice.store import Store, StoreError

UNKNOWN = Execution(micro_batch=1, remat=False, unroll=1, implementation="", checkpoint_seconds=0.0)
"""How a run was executed does not matter to a reader."""


def read_store(store: Store) -> tuple[dict[str, RunSpec], Results]:
    """The specs of all runs by id, and their results, whose notes name the folders that cannot be read."""
    specs = {}
    for id_ in store.ids():
        with contextlib.suppress(StoreError):  # what is no run is a stray, which the results name
            specs[id_] = store.read_spec(id_)
    return specs, read_results(Plan({id_: (spec, UNKNOWN) for id_, spec in specs.items()}), store)


def observe(evidence: Evidence, specs: dict[str, RunSpec]) -> list[Observation]:
    """The law's view of one scale and budget: its homogeneous layers of one routing, and its dense model."""
    dense = evidence.dense()
    cells = evidence.main + ([dense] if dense else [])
    return [Observation(point_of(specs[cell.ids[0]]), cell.mean, len(cell.values), cell.ids) for cell in cells]


def point_of(spec: RunSpec) -> Point:
    """Where a run of one expert set, or a dense one, lies in the law."""
    layer = spec.model.layer
    # k*g = 1: what is active does not depend on the layer.
    size = active_parameters(spec.model)
    return Point(size, spec.tokens, float(layer.sparsity), float(layer.granularity), layer.is_dense)


def known_noise(scales: Iterable[Evidence]) -> tuple[float, int]:
    """The noise of one run in nats and its degrees of freedom, as known from seeds, over all scales."""
    known = [(e.scale, e.tokens, cell.noise) for e in scales for cell in e.main if cell.noise]
    noises = {(scale, tokens): noise for scale, tokens, noise in known}.values()
    freedom = sum(noise.freedom for noise in noises)
    if not freedom:
        return NOISE
    # No more freedom than the prior has: what the law's form misses comes on top of what seeds do.
    return (sum(n.deviation**2 * n.freedom for n in noises) / freedom) ** 0.5, min(freedom, NOISE[1])


def settings(scale: str, evidence: Iterable[Evidence], specs: dict[str, RunSpec], template: RunSpec) -> dict[str, Any]:
    """Fields of the scale's config that make its runs like those of the store.

    Args:
      scale: name or path of an experiment.
      evidence: of the store. specs: by id.
      template: whose text a scale without runs is to be trained on.

    Raises:
      FileError: there is no experiment of this name.
    """
    here = [specs[e.main[0].ids[0]] for e in evidence if e.scale == load_config(scale).scale and e.main]
    if here:
        return departures(here[0], scale)
    try:
        text = departures(template, template.scale)
    except FileError:  # the template is of an experiment that is not here
        text = {f"data.{name}": getattr(template.data, name) for name in ("source", "tokenizer")}
    return {name: value for name, value in text.items() if name.startswith("data.") or name == "model.vocab_size"}


def law_routing(evidence: Iterable[Evidence]) -> dict[str, Any]:
    """The router's fields that the law's layers were trained with; the study's where there are none."""
    cells = [cell for e in evidence for cell in e.main]
    if not cells:
        return {"router.kind": "dropless", "router.alpha": 1e-2, "router.gamma": 0.0}
    kind, alpha, gamma, *_ = arm(cells[0])
    return {"router.kind": kind, "router.alpha": alpha, "router.gamma": gamma}
