"""What is particular to the native kernels: where they cannot be compiled, the next best takes their place."""

import logging

import jax
import jax.numpy as jnp
import pytest

from slicedice.kernels import choose, grouped_matmul, native

pytestmark = pytest.mark.skipif(jax.default_backend() != "cpu", reason="needs the CPU")


@pytest.fixture
def forgetful(tmp_path, monkeypatch):
    """An empty cache folder, and nothing remembered from before or after this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for function in (native.available, native._key, choose):
        function.cache_clear()
    yield
    for function in (native.available, native._key, choose):
        function.cache_clear()


def _uses_blocks() -> None:
    assert not native.available()
    assert choose() == "blocks"
    out = grouped_matmul(jnp.ones((3, 2)), jnp.ones((2, 2, 4)), jnp.array([1, 2]))
    assert (out == 2).all()
    with pytest.raises(ValueError, match="implementation = 'native' needs the CPU and a C\\+\\+ compiler"):
        choose("native")


@pytest.mark.usefixtures("forgetful")
def test_without_a_compiler(monkeypatch):
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    _uses_blocks()


@pytest.mark.usefixtures("forgetful")
def test_a_compiler_that_fails_is_quoted(monkeypatch, caplog, tmp_path):
    if not native.available():
        pytest.skip("there is no compiler to fail")
    native.available.cache_clear()
    native._key.cache_clear()
    monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, "--no-such-flag"))
    with caplog.at_level(logging.WARNING, "slicedice"):
        _uses_blocks()
    assert "no-such-flag" in caplog.text
    left = [path.name for path in (tmp_path / "slicedice").iterdir()]
    assert len(left) == 1, "the library that was compiled first, and nothing of the failed attempt"


@pytest.mark.usefixtures("forgetful")
def test_a_library_is_compiled_once_for_all_processes(monkeypatch, tmp_path):
    if not native.available():
        pytest.skip("there is no compiler")
    (library,) = (tmp_path / "slicedice").iterdir()
    written = library.stat().st_mtime_ns
    native.available.cache_clear()
    assert native.available()
    assert library.stat().st_mtime_ns == written
    # Another version of the source, or of the flags, is another library.
    native._key.cache_clear()
    monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, "-g"))
    assert native._key() not in library.name
