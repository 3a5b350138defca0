"""Where JAX keeps what it compiled, and that it does, however fast that was."""

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from slicedice import cache, machine


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Four threads, a cache folder of the test's own, and settings of JAX that are put back.

    JAX opens a folder when it first compiles, and no other until its cache is reset.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(machine, "threads", lambda: 4)
    names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    reset_cache()


@pytest.mark.usefixtures("told")
@pytest.mark.parametrize("folder", ["", "/a/folder", "gs://bucket/compiled"])
@pytest.mark.parametrize(("accelerator", "own"), [(True, ""), (False, "/4-threads")])
def test_a_folder_that_jax_is_told_is_kept(folder: str, accelerator: bool, own: str, tmp_path: Path, monkeypatch):
    """On CPU, what is compiled for other threads lies beside it, however often this is asked for."""
    monkeypatch.setattr(machine, "has_accelerator", lambda: accelerator)
    if folder:
        jax.config.update("jax_compilation_cache_dir", folder)
    for _ in range(2):
        cache.use_compilation_cache()
        want = folder or f"{tmp_path}/slicedice/compilation"
        assert jax.config.jax_compilation_cache_dir == want + own  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.usefixtures("told")
def test_what_compiles_at_once_is_kept(tmp_path: Path):
    """A small model's step takes less than half a second where processors are fast."""
    cache.use_compilation_cache()
    jax.jit(lambda x: x * 3 + 1).lower(jax.ShapeDtypeStruct((), "float32")).compile()
    assert list(tmp_path.rglob("*-cache"))
