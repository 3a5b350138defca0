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
def nothing_is_compiled_twice(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What tests of this process compile is kept in a folder of theirs, for those after them that compile the same.

    Nothing of an earlier session is read, nor of the user's, where doors would have it kept. Nor do processes of
    pytest-xdist share a folder: JAX writes in place, and half a program might be read. Processes that tests start keep
    what they compile for the user.
    """
    import jax  # not before what it reads is set above

    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


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
