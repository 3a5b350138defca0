"""Which execution `--fit` prefers."""

import pytest

from slicedice.cost.fitting import FIRST_MARGIN, candidates
from slicedice.cost.footprint import memory
from slicedice.cost.topology import parse_topology
from slicedice.grid import load_config
from slicedice.spec import resolve
from slicedice.spec.config import override


@pytest.mark.parametrize("pod", ["h100:1", "a100:1"])
def test_of_equally_fast_executions_the_largest_that_fits(pod):
    topology = parse_topology("topology", pod)
    room = FIRST_MARGIN * topology.rate.memory
    spec, execution = resolve(load_config("10m"))
    found = candidates(spec, execution, topology, search=True)
    best = found[0]
    sizes = {one.micro_batch: memory(spec, one) for one in found if not one.remat}
    assert not best.remat
    assert best.micro_batch == max(size for size, taken in sizes.items() if taken <= room)
    assert best.micro_batch < spec.budget.batch_size, "else nothing was left to choose"


def test_what_does_not_fit_comes_last_and_the_smallest_first():
    topology = parse_topology("topology", "v5e:2x2")
    changes = {"model.experts": "n=512 g=1/4"}
    spec, execution = resolve(override(load_config("300m"), changes, where="a test"))
    found = candidates(spec, execution, topology, search=True)
    sizes = [memory(spec, one, topology.rate) for one in found]
    assert sizes[0] > topology.rate.memory
    assert sizes == sorted(sizes)
