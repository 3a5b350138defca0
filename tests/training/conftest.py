"""One tiny program that the tests of this room share, since compiling it takes longer than all of them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slicedice.data import TokenStore, prepare
from slicedice.spec import RunSpec, program_key
from slicedice.training import Program, TrainState

# Every loss has a weight that shows, capacity drops tokens, and no gradient is clipped.
RUN = {
    "model.experts": "n=4 k=2 g=1/2",
    "router.kind": "default",
    "router.capacity_factor": 1.0,
    "router.alpha": 0.3,
    "router.gamma": 0.01,
    "router.z_loss": 0.2,
    "router.group": 2,
    "optimizer.clip": 1e9,
    "optimizer.output_z_loss": 0.1,
}


@pytest.fixture(scope="session")
def run(tiny) -> Callable[..., RunSpec]:
    """The spec of the shared program's run, with fields replaced."""
    return lambda overrides=None: tiny({**RUN, **(overrides or {})})[0]


@pytest.fixture(scope="session")
def program(tiny) -> Callable[..., Program]:
    """The program of `run(overrides)`, compiled once in the session."""
    programs: dict[str, Program] = {}

    def of(overrides: dict[str, Any] | None = None) -> Program:
        spec, execution = tiny({**RUN, **(overrides or {})})
        return programs.setdefault(program_key(spec, execution), Program(spec, execution))

    return of


@pytest.fixture
def start(program, rng: np.random.Generator) -> TrainState:
    """A fresh initial state with embeddings and routers of unit scale, so that no two experts nearly tie."""

    def leaf(path, x):
        name = jax.tree_util.keystr(path)
        return 50 * x if "embedding" in name or "router" in name else x

    state = program().init(jnp.uint32(rng.integers(2**32)))
    return state._replace(params=jax.tree.map_with_path(leaf, state.params))


@pytest.fixture
def batch(program, rng: np.random.Generator) -> jnp.ndarray:
    rows = rng.integers(0, 256, (8, 17)).astype(np.int32)
    return program().place(rows.__getitem__)


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """A store of 200 documents of letters."""
    folder, draw = tmp_path_factory.mktemp("text"), np.random.default_rng(0)
    for i in range(200):
        (folder / f"{i}.txt").write_text("".join(draw.choice(list("abcdefgh \n"), 60)) + str(i))
    return prepare(str(folder), "bytes", folder / "stores")
