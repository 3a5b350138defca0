"""What is particular to the native kernels: where they cannot be compiled, the next best takes their place."""

import logging
import platform
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slicedice.kernels import choose, grouped_matmul, native, reference
from tests.kernels.contract import check, draw, kept, magnitudes

pytestmark = pytest.mark.skipif(jax.default_backend() != "cpu", reason="needs the CPU")
NEEDS_COMPILER = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler"
)


@pytest.fixture
def forgetful(tmp_path, monkeypatch):
    """An empty cache folder, nothing remembered from before or after this test, and sources that compile at once.

    They have the functions' names, and none is called: how the library is made and kept is all that is asked.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = tmp_path / "native_nothing.cc"
    source.write_text("\n".join(f'extern "C" void Slicedice{name}() {{}}' for name in native.NAMES))
    monkeypatch.setattr(native, "SOURCES", (source,))
    # JAX takes a kernel of one name once in a process.
    monkeypatch.setattr(jax.ffi, "register_ffi_target", lambda *args, **kwargs: None)

    def forget():
        for function in (native.available, native._key):
            function.cache_clear()

    forget()
    yield forget
    forget()


def _assert_blocks_take_its_place() -> None:
    assert not native.available()
    assert choose() == "blocks"
    out = grouped_matmul(jnp.ones((3, 2)), jnp.ones((2, 2, 4)), jnp.array([1, 2]))
    np.testing.assert_array_equal(out, 2.0)
    with pytest.raises(ValueError, match=r"implementation = 'native' needs the CPU and a C\+\+ compiler"):
        choose("native")


@pytest.mark.usefixtures("forgetful")
def test_without_a_compiler(monkeypatch):
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    _assert_blocks_take_its_place()


@NEEDS_COMPILER
@pytest.mark.usefixtures("forgetful")
def test_a_compiler_that_fails_is_quoted(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, "--no-such-flag"))
    with caplog.at_level(logging.WARNING, "slicedice"):
        _assert_blocks_take_its_place()
    assert "no-such-flag" in caplog.text
    assert not kept(tmp_path), "nothing is left of the attempt"


def _assert_right(*arrays: Any) -> None:
    """A product and both gradients, with matrices as they are and transposed."""
    for transpose_rhs in (False, True):

        def product(lhs, rhs, sizes=arrays[2], transpose_rhs=transpose_rhs):
            matrices = rhs.swapaxes(1, 2) if transpose_rhs else rhs
            return grouped_matmul(lhs, matrices, sizes, transpose_rhs=transpose_rhs, implementation="native")

        out, pull = jax.vjp(product, *arrays[:2])
        want, scale = reference.grouped_matmul(*arrays), magnitudes(reference.grouped_matmul, *arrays)
        check(reference.Gradients(out, *pull(arrays[3])), want, scale, arrays[2])


ROWS = [1, 2, 7, 0, 8, 9, 12, 16, 17, 32, 33, 64, 65, 130]
"""Rows of groups on both sides of where the product changes its way."""


@NEEDS_COMPILER
@pytest.mark.parametrize(("k", "n"), [(83, 197), (300, 64), (64, 300), (1, 17), (257, 1)])
def test_every_way_to_a_product(k: int, n: int, rng):
    _assert_right(*draw(rng, sum(ROWS) + 3, k, n, ROWS))


@pytest.mark.long
@NEEDS_COMPILER
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="needs an x86 processor")
def test_without_avx512(monkeypatch, tmp_path, rng):
    """Vectors of eight, as most laptops have them, in a library of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, "-mno-avx512f"))
    with_default = native._key()
    native.available.cache_clear()
    native._key.cache_clear()
    try:
        assert native._key() != with_default
        assert native.available()
        _assert_right(*draw(rng, sum(ROWS) + 3, 83, 197, ROWS))
    finally:
        native.available.cache_clear()
        native._key.cache_clear()


@NEEDS_COMPILER
def test_results_that_no_cache_holds(rng):
    """Over 32 MiB, of rows and of matrices, which are written in another way."""
    _assert_right(*draw(rng, 16, 300, 600, [2, 0, 5, *[0] * 50, 3]))
    _assert_right(*draw(rng, 30_000, 3, 300, [29_000, 0, 900]))


@NEEDS_COMPILER
@pytest.mark.parametrize("sizes", [[-5, 10, 0], [5, 10, 0], [2**31 - 1, 5, 5], [0, 0, 9]])
def test_traced_sizes_that_do_not_fit_are_refused(sizes):
    """They cannot be seen when the call is traced, and would be read and written out of bounds."""

    def product(lhs, rhs, sizes):
        return grouped_matmul(lhs, rhs, sizes, implementation="native").sum()

    arrays = jnp.ones((8, 2)), jnp.ones((3, 2, 4)), jnp.array(sizes)
    for function in (product, jax.grad(product, (0, 1))):
        with pytest.raises(jax.errors.JaxRuntimeError, match="sum to at most M = 8"):
            jax.block_until_ready(jax.jit(function)(*arrays))


@NEEDS_COMPILER
def test_a_library_is_compiled_once_for_all_processes(forgetful, monkeypatch, tmp_path):
    assert native.available()
    (library,) = kept(tmp_path)
    written = library.stat().st_mtime_ns
    forgetful()
    assert native.available()
    assert [path.stat().st_mtime_ns for path in kept(tmp_path)] == [written]
    # With other flags it is another library.
    forgetful()
    monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, "-g"))
    assert native._key() not in library.name


@NEEDS_COMPILER
@pytest.mark.usefixtures("forgetful")
def test_a_damaged_library_is_compiled_anew(tmp_path):
    """As a power cut or a full disk may leave it."""
    library = tmp_path / "slicedice" / f"native-{native._key()}.so"
    library.parent.mkdir()
    library.write_bytes(b"")
    assert native.available()
    assert library.stat().st_size > 0


@NEEDS_COMPILER
@pytest.mark.usefixtures("forgetful")
def test_processes_that_want_it_at_once_wait_for_the_first(monkeypatch, tmp_path):
    """The lock is held by a file that is opened, so that threads are as good as processes."""
    compile_one, compiled, both = native._compile, [], threading.Barrier(2, timeout=60)

    def compile_slowly(compiler, folder):
        compiled.append(folder)
        time.sleep(1)  # for the other to come by
        return compile_one(compiler, folder)

    def want(_):
        both.wait()
        return native._functions(str(shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")))

    monkeypatch.setattr(native, "_compile", compile_slowly)
    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(want, range(2)))
    assert len(compiled) == 1


@NEEDS_COMPILER
@pytest.mark.usefixtures("forgetful")
def test_without_a_folder_to_keep_it_in(monkeypatch, tmp_path, caplog):
    """Where the home folder cannot be written or there is none, every process compiles for itself."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.INFO, "slicedice"):
        assert native.available()
    assert "are compiled by every process, since they cannot be kept" in caplog.text


@NEEDS_COMPILER
@pytest.mark.usefixtures("forgetful")
def test_a_compiler_that_takes_too_long(monkeypatch, caplog):
    monkeypatch.setattr(native, "COMPILE_SECONDS", 0.01)
    with caplog.at_level(logging.WARNING, "slicedice"):
        _assert_blocks_take_its_place()
    assert "timed out after 0.01 seconds" in caplog.text
