"""Runs on meshes of the eight devices that this machine's CPU is taken for."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


COUNTED = "load_imbalance", "dropped_share", "dead_experts"
"""Metrics that change when a token goes to another expert, or another is dropped, and by nothing else."""


class Trained(NamedTuple):
    """Every step's state and metrics."""

    states: list[TrainState]
    metrics: list[dict[str, float]]

    def counts(self, step: int) -> dict[str, float]:
        """Those of `COUNTED` that there are."""
        return {name: value for name, value in self.metrics[step].items() if name in COUNTED}


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
    """Twenty steps of a layer on a mesh, on random text.

    Beside a run on one device, it goes on from that one's state after each step that a token went another way in.
    """

    def train(layer: str, mesh: str = "", beside: Trained | None = None, **execution: Any) -> Trained:
        program = programs(layer, mesh, **execution)
        state, made = program.init(jnp.uint32(0)), Trained([], [])
        for step in range(20):
            rows = np.random.default_rng(step).integers(0, 256, (16, 17)).astype(np.int32)
            batch = program.place(rows.__getitem__)
            state, found = program.step(state, batch, Hyper.of(program.spec))
            made.metrics.append({name: value.item() for name, value in found.items()})
            made.states.append(jax.tree.map(np.asarray, state))
            if beside and made.counts(step) != beside.counts(step):
                where = jax.tree.map(lambda leaf: leaf.sharding, program.like)
                state = jax.device_put(beside.states[step], where)
        return made

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
