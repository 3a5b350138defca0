"""Counts and FLOPs of small models, added up by hand."""

from fractions import Fraction

import pytest

from slicedice.spec import ExpertSet, LayerSpec, ModelSpec
from slicedice.spec.layer import parse_layer

# One layer's attention: four 8x8 matrices. Its dense FFN: three of 8x24.
ATTENTION, FFN = 256, 576


def _model(layer: LayerSpec) -> ModelSpec:
    return ModelSpec(d_model=8, layers=3, heads=2, d_ff=24, vocab_size=11, layer=layer)


@pytest.mark.parametrize(
    ("experts", "generalist", "wiring", "routers", "total_ffn", "norms"),
    [
        ("dense", "", "parallel", 0, FFN, 4),
        ("n=6 k=2 g=1/2", "", "plain", 6 * 8, 3 * FFN, 4),
        ("n=2 k=1 g=1/2 + n=12 k=2 g=1/4", "", "plain", 14 * 8, 4 * FFN, 4),
        ("n=6 k=2 g=1/4", "1/2", "plain", 6 * 8, 2 * FFN, 4),
        ("n=6 k=2 g=1/4", "1/2", "parallel", 6 * 8, 2 * FFN, 5),
    ],
)
def test_parameters_and_flops(experts, generalist, wiring, routers, total_ffn, norms):
    model = _model(parse_layer(experts, generalist, wiring))
    total = 2 * 11 * 8 + 3 * (ATTENTION + total_ffn + routers + norms * 8) + 8
    assert model.parameters() == total
    assert model.parameters(routers=False) == total - 3 * routers
    assert model.parameters(active=True) == total - 3 * (total_ffn - FFN)
    assert model.non_embedding_parameters() == total - 2 * 11 * 8
    assert model.router_parameters() == 3 * routers
    # 2 FLOPs a weight forward and 4 backward, the head but no look-up; and for scores and for values 2*S*D
    # forward, three times that with the backward pass.
    attention = 3 * 2 * (2 * 5 * 8)
    assert model.flops_per_token(5) == 6 * (3 * (ATTENTION + FFN + routers) + 11 * 8) + 3 * attention


def test_what_a_layer_says_of_itself():
    layer = parse_layer("n=7 k=1 g=1/4 + n=14 k=2 g=1/8", "1/2", "plain")
    assert layer == LayerSpec(
        (ExpertSet(7, 1, Fraction(1, 4)), ExpertSet(14, 2, Fraction(1, 8))), Fraction(1, 2), "plain"
    )
    assert not layer.is_dense
    assert (layer.count, layer.active, layer.granularity) == (21, 3, Fraction(1, 8))
    assert (layer.sparsity, layer.active_width) == (4, 1)
    dense = parse_layer("dense")
    assert dense.is_dense
    assert (dense.count, dense.active, dense.granularity, dense.sparsity, dense.active_width) == (1, 1, 1, 1, 1)
