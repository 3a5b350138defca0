"""Where parameters lie: every mesh axis is used once, by the first logical axis that it divides."""

import math

import pytest

from slicedice.parallel.table import partition

EXPERTS = (("experts", 6), ("d_model", 16), ("width", 8))
DENSE = (("d_model", 48), ("heads", 48))


@pytest.mark.parametrize(
    ("axes", "mesh", "over"),
    [
        (EXPERTS, {"data": 4, "expert": 3}, (("expert",), ("data",), ())),
        (EXPERTS, {"data": 4, "expert": 4}, ((), ("data", "expert"), ())),  # n is not divisible
        (EXPERTS, {"data": 8, "expert": 4}, ((), ("data",), ("expert",))),
        (EXPERTS, {"data": 5, "expert": 2}, (("expert",), (), ())),  # nothing is divisible by 5
        (EXPERTS, {"replica": 2, "data": 2}, ((), ("data",), ())),
        (EXPERTS, {"data": 1, "expert": 1}, ((), (), ())),
        (DENSE, {"data": 16, "expert": 3}, (("data", "expert"), ())),
        (DENSE, {"data": 16, "expert": 4}, (("data",), ())),
        (DENSE, {"data": 32, "expert": 4}, (("expert",), ())),
        ((("vocabulary", 256), ("d_model", 48)), {"data": 16, "expert": 16}, (("data", "expert"), ())),
        ((("vocabulary", 100), ("d_model", 48)), {"data": 16, "expert": 4}, (("expert",), ("data",))),
    ],
)
def test_axes_go_to_the_first_that_they_divide(axes, mesh, over):
    assert partition(axes, mesh) == over
    for (_, size), names in zip(axes, over, strict=True):
        assert size % math.prod(mesh[name] for name in names) == 0
