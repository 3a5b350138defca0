"""The study's scales, counted: every number is one that the study's tables print, at the precision printed."""

from decimal import ROUND_HALF_UP, Decimal

import pytest

from slicedice import files
from slicedice.spec import RunSpec, moe_layer, resolve
from slicedice.spec.config import override

# active, outside embeddings, steps
SCALES = {
    "10m": ("9.7", "0.11", 191),
    "20m": ("19.9", "0.59", 381),
    "50m": ("52.8", "4.6", 954),
    "80m": ("81.9", "14.5", 1526),
    "110m": ("113.6", "26.9", 2098),
    "200m": ("194.0", "65.6", 3815),
    "300m": ("299.9", "133", 5722),
}
# Total parameters in millions at sparsity 2, 4, ... 256, routers left out.
TOTALS = {
    "10m": "9.8 10.0 10.3 11.0 12.3 15.0 20.3 30.9",
    "20m": "20.3 21.2 23.0 26.5 33.6 47.7 76 133",
    "50m": "56 63 77 105 160 271 492 934",
    "80m": "93 114 158 245 418 765 1458 2846",
    "110m": "134 174 255 416 738 1383 2673 5253",
    "200m": "243 342 538 931 1718 3291 6436 12728",
    "300m": "400 599 998 1795 3390 6580 12959",
}


def _spec(scale: str, **overrides: str) -> RunSpec:
    config = files.load("experiments", scale).get_config()
    return resolve(override(config, overrides, where="a test"))[0]


def _in_millions(parameters: int, like: str) -> str:
    """At the precision of `like`. The study's page was rounded from tenths: 244.469 to 244.5 to 245."""
    millions = Decimal(parameters) / 1_000_000
    if "." not in like:
        millions = millions.quantize(Decimal("0.1"), ROUND_HALF_UP)
    return str(millions.quantize(Decimal(like), ROUND_HALF_UP))


@pytest.mark.parametrize("scale", SCALES)
def test_dense_counts_and_steps(scale: str):
    active, non_embedding, steps = SCALES[scale]
    spec = _spec(scale)
    assert spec.model.layer.is_dense
    assert _in_millions(spec.model.parameters(active=True), active) == active
    assert spec.model.parameters(active=True) == spec.model.parameters()
    assert _in_millions(spec.model.non_embedding_parameters(), non_embedding) == non_embedding
    assert spec.budget.steps == steps
    assert spec.budget.batch_size * spec.data.sequence_length == 1_048_576
    assert (spec.scale, spec.tokens) == (scale, steps * 1_048_576)


@pytest.mark.parametrize("scale", TOTALS)
def test_total_parameters(scale: str):
    active = SCALES[scale][0]
    for i, total in enumerate(TOTALS[scale].split()):
        for g in ("1", "1/4"):  # how finely it is sliced changes nothing but the routers
            model = _spec(scale, **moe_layer(s=2 ** (i + 1), g=g)).model
            assert _in_millions(model.parameters(routers=False), total) == total, f"s = {2 ** (i + 1)}, g = {g}"
            assert _in_millions(model.parameters(active=True, routers=False), active) == active
            k = {"1": 1, "1/4": 4}[g]
            assert model.router_parameters() == model.layers * model.d_model * k * 2 ** (i + 1)


def test_the_studys_training_set_up():
    spec = _spec("80m", **moe_layer(s=8, g="1/4"))
    assert spec.compute_dtype == "bfloat16"
    model, o, r = spec.model, spec.optimizer, spec.router
    assert (model.d_model, model.layers, model.heads, model.d_ff, model.vocab_size) == (336, 8, 7, 1344, 100_352)
    assert (o.b1, o.b2, o.eps, o.weight_decay, o.clip) == (0.9, 0.95, 1e-8, 0.1, 1.0)
    assert (o.learning_rate, o.warmup_steps, o.final_fraction, o.output_z_loss) == (4e-4, 50, 0.1, 1e-5)
    assert (r.z_loss, spec.data.sequence_length, spec.budget.batch_size) == (1e-3, 2048, 512)
    capped = _spec("80m", **moe_layer(s=8, g="1/4"), **{"router.kind": "default"})
    assert capped.router.capacity_factor == 1.2
