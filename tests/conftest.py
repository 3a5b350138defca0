"""What rooms' tests share: fresh random draws that can be repeated, specs of tiny runs, an end to what Orbax leaves."""

import gc
import os
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from slicedice import machine
from slicedice.spec import Execution, RunSpec, resolve, study_config
from slicedice.spec.config import override

machine.settle_platform()

# Pallas' interpreters have threads that wait for each other while they hold threads of XLA's pool, which has one for
# each core unless told otherwise before the first array is made: too few wait forever.
os.environ.setdefault("NPROC", "32")

# Read, as the platform, when JAX is imported, which must come after this.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")

SEED = "SLICEDICE_TEST_SEED"

TINY = {
    "scale": "tiny",
    "compute_dtype": "float32",
    "model.d_model": 16,
    "model.layers": 2,
    "model.heads": 2,
    "model.vocab_size": 256,
    "router.group": 0,
    "data.sequence_length": 16,
    "optimizer.warmup_steps": 2,
    "budget.tokens": 6 * 8 * 16,
    "budget.batch_size": 8,
    "execution.micro_batch": 0,
}
"""Six steps of the smallest run in which every part does something."""


@pytest.fixture(scope="session", autouse=True)
def nothing_compiled_is_kept() -> None:
    """Some tests call doors that have JAX keep compiled programs for all of a user's processes, which it then would do
    for all tests after them: what one wrote, others would read. Processes that tests start do keep them.
    """
    import jax  # not before what it reads is set above

    jax.config.update("jax_enable_compilation_cache", False)


@pytest.fixture
def rng() -> np.random.Generator:
    """Random draws that differ every time; the environment variable SLICEDICE_TEST_SEED repeats them."""
    seed = int(os.environ.get(SEED) or secrets.randbits(32))
    print(f"repeat with {SEED}={seed}")
    return np.random.default_rng(seed)


@pytest.fixture(scope="session")
def tiny() -> Callable[..., tuple[RunSpec, Execution]]:
    """Resolves a tiny run with the given fields replaced."""

    def resolved(overrides: dict[str, Any] | None = None) -> tuple[RunSpec, Execution]:
        return resolve(override(study_config(), {**TINY, **(overrides or {})}, where="a test"))

    return resolved


@pytest.fixture
def abandoned_reads():
    """Orbax abandons its other reads when one fails. They end here, and are collected, and complain.

    Elsewhere they could do so while pytest has a module parsed, which Python 3.11 ends with a SystemError.
    """
    yield
    time.sleep(0.3)
    gc.collect()


@pytest.fixture(params=["native", "plain"])
def with_and_without_a_compiler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs a test by kernels in C++, if they can be made here, and by XLA alone."""
    import jax

    from slicedice.kernels import is_native, native

    if request.param == "native":
        if not is_native():
            pytest.skip("needs the CPU and a C++ compiler")
        yield
        return
    monkeypatch.setattr(native, "available", lambda: False)
    jax.clear_caches()  # a function that was traced with one is not traced again
    yield
    jax.clear_caches()
