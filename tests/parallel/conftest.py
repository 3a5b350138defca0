"""Runs on meshes of the eight devices that this machine's CPU is taken for."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from slicedice.training import Hyper, Program, TrainState

# Whatever could be lost between devices is there and has a weight that shows.
RUN = {
    "router.group": 1,
    "router.alpha": 0.3,
    "router.gamma": 1e-3,
    "router.z_loss": 0.2,
    "optimizer.learning_rate": 3e-3,
    "optimizer.output_z_loss": 0.1,
    "budget.batch_size": 16,
    "budget.tokens": 20 * 16 * 16,
    "execution.expert_slack": 8.0,  # room for all: at these sizes a device may be sent twice the mean
}

LAYERS = {
    "dense": {"model.experts": "dense"},
    "homogeneous": {"model.experts": "n=8 g=1/2"},
    "dropping": {"model.experts": "n=8 g=1/2", "router.kind": "default", "router.capacity_factor": 1.0},
    "indivisible": {"model.experts": "n=6 g=1/4"},
    "heterogeneous": {"model.experts": "n=8 k=2 g=1/4 + n=16 k=4 g=1/8"},
    "generalist": {"model.experts": "n=7 k=3 g=1/4", "model.generalist": "1/4"},
    "dropping heterogeneous": {
        "model.experts": "n=8 k=2 g=1/4 + n=16 k=4 g=1/8",
        "router.kind": "default",
        "router.capacity_factor": 1.0,
    },
    "dropping generalist": {
        "model.experts": "n=7 k=3 g=1/4",
        "model.generalist": "1/4",
        "router.kind": "default",
        "router.capacity_factor": 1.0,
    },
}


class Trained(NamedTuple):
    """The state after the first step, and every step's parameters and metrics."""

    first: TrainState
    params: list[nnx.State]
    metrics: list[dict[str, float]]


@pytest.fixture(scope="session")
def programs(tiny) -> Callable[..., Program]:
    """The program of a layer on a mesh."""

    def of(layer: str, mesh: str = "", compute_dtype: str = "float32", **execution: Any) -> Program:
        settings = {f"execution.{name}": value for name, value in execution.items()}
        settings |= {"execution.mesh": mesh, "compute_dtype": compute_dtype}
        return Program(*tiny({**RUN, **LAYERS[layer], **settings}))

    return of


@pytest.fixture(scope="session")
def trained(programs) -> Callable[..., Trained]:
    """Twenty steps of a layer on a mesh, on random text."""

    def train(layer: str, mesh: str = "", **execution: Any) -> Trained:
        program = programs(layer, mesh, **execution)
        state, first, params, metrics = program.init(jnp.uint32(0)), None, [], []
        for step in range(20):
            rows = np.random.default_rng(step).integers(0, 256, (16, 17)).astype(np.int32)
            batch = program.place(rows.__getitem__)
            state, found = program.step(state, batch, Hyper.of(program.spec))
            metrics.append({name: value.item() for name, value in found.items()})
            params.append(jax.tree.map(np.asarray, state.params))
            first = first or jax.tree.map(np.asarray, state)
        assert first is not None
        return Trained(first, params, metrics)

    return train


@pytest.fixture(scope="session")
def alone(trained) -> Callable[[str], Trained]:
    """The same on one device."""
    known: dict[str, Trained] = {}

    def train(layer: str) -> Trained:
        if layer not in known:
            known[layer] = trained(layer)
        return known[layer]

    return train
