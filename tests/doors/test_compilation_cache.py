"""Where JAX keeps what it compiled: in the folder that it was told, or else the user's."""

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from slicedice import cache, machine


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Four threads, a cache folder of the test's own, and settings of JAX that are put back."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(machine, "threads", lambda: 4)
    names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


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
