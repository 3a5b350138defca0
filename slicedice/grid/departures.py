"""What a run sets otherwise than its scale's config, beside its layer and seed."""

from typing import Any

from slicedice.grid.enumerate import load_config
from slicedice.spec import RunSpec, resolve
from slicedice.spec.config import ACTIVE_WIDTH, override
from slicedice.spec.identity import differences


def departures(spec: RunSpec, scale: str) -> dict[str, Any]:
    """The fields of the scale's config that the run sets otherwise, with its values.

    Args:
      spec: the run.
      scale: name or path of its scale's experiment.

    Raises:
      FileError: there is no such experiment.
    """
    layer = spec.model.layer
    fields = {"model.experts": " + ".join(map(str, layer.experts)) or "dense"}
    if layer.generalist and not layer.is_dense:
        fields |= {"model.generalist": str(layer.generalist), "model.wiring": layer.wiring or ""}
    if layer.active_width != 1:
        fields |= {"model.waive": ACTIVE_WIDTH}
    usual, _ = resolve(override(load_config(scale), fields, where="the store"))
    changed = differences(spec, usual).items()
    found = {name: one for name, (one, _) in changed if name not in ("seed", "scale") and one is not None}
    if "budget.steps" in found:
        del found["budget.steps"]
        found["budget.tokens"] = spec.tokens
    return found
