"""Gathering in two stages is gathering, and no stage has all devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slicedice.parallel.collectives import all_gather, psum_scatter
from slicedice.parallel.mesh import make_mesh

SHAPES = [
    {"replica": 1, "data": 8, "expert": 1},
    {"replica": 1, "data": 1, "expert": 6},
    {"replica": 2, "data": 4, "expert": 1},
    {"replica": 1, "data": 2, "expert": 4},
    {"replica": 1, "data": 1, "expert": 5},  # a prime number has but one stage
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("axis", [0, 1])
def test_they_are_those_of_jax(shape: dict[str, int], axis: int, rng: np.random.Generator):
    name = "data" if shape["data"] > shape["expert"] else "expert"
    mesh = make_mesh(shape, jax.devices())
    assert mesh is not None
    x = jnp.asarray(rng.standard_normal((60 * 8, 60 * 8)), jnp.float32)
    spec = jax.sharding.PartitionSpec(*[None] * axis, mesh.axis_names)

    def ours(x):
        whole = all_gather(x, name, axis)
        return whole, psum_scatter(whole * jax.lax.axis_index(name), name, axis)

    def theirs(x):
        whole = jax.lax.all_gather(x, name, axis=axis, tiled=True)
        weighted = whole * jax.lax.axis_index(name)
        return whole, jax.lax.psum_scatter(weighted, name, scatter_dimension=axis, tiled=True)

    done = [
        jax.jit(jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))
        for function in (ours, theirs)
    ]
    for got, want in zip(*(function(x) for function in done), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)
    text = done[0].lower(x).compile().as_text() or ""
    stages = 2 if shape[name] in (8, 6) or shape["replica"] > 1 else 1
    for kind in ("all-gather", "reduce-scatter"):
        assert len(re.findall(rf" {kind}\(", text)) == stages
