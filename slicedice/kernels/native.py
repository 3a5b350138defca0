"""Grouped matmul in C++ for CPUs, compiled on first use by the machine's own compiler; optional.

`available` says whether it can be used here. Where there is no compiler, "blocks" does the same, slower, in
plain XLA. The library is kept in the user's cache folder, named by all that it depends on, so that a change
of code, flags, jaxlib or processor makes a new one.
"""

import contextlib
import ctypes
import functools
import hashlib
import logging
import platform
import shutil
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from slicedice import cache
from slicedice.kernels.groups import Groups
from slicedice.kernels.varying import vary_as

log = logging.getLogger(__name__)

SOURCES = tuple(Path(__file__).with_name(name) for name in ("native.cc", "native_product.h"))
FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-Wno-psabi")

COMPILE_SECONDS = 300
"""After which compiling has failed; an idle core takes ten."""

NEEDS_ZEROS = False


@functools.cache
def available() -> bool:
    """Compiles and registers the kernels if that has not been done; False, and a line in the log, if it fails."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        log.warning("no C++ compiler: grouped matmuls on CPU take several times as long")
        return False
    try:
        functions = _functions(compiler)
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        lines = str(error.stderr if isinstance(error, subprocess.CalledProcessError) else error).splitlines()
        said = "\n".join([line for line in lines if "error" in line] or lines)
        log.warning("the native grouped matmul cannot be made here, others take several times as long: %s", said)
        return False
    for name, function in functions.items():
        jax.ffi.register_ffi_target(_target(name), jax.ffi.pycapsule(function), platform="cpu")
    return True


def gmm(lhs: Array, rhs: Array, groups: Groups, *, transpose_rhs: bool, dtype: np.dtype) -> Array:
    """[M, K], [G, K, N] -> [M, N]; with `transpose_rhs`, of [G, N, K]."""
    width = rhs.shape[1 if transpose_rhs else 2]
    return _call("Gmm", ((lhs.shape[0], width),), (lhs, rhs), groups, transpose_rhs=transpose_rhs)[0].astype(dtype)


def tgmm(lhs: Array, rhs: Array, groups: Groups, *, dtype: np.dtype) -> Array:
    """[M, K], [M, N] -> [G, K, N]."""
    return _call("Tgmm", ((groups.sizes.shape[0], lhs.shape[1], rhs.shape[1]),), (lhs, rhs), groups)[0].astype(dtype)


def ffn(rows: Array, gate: Array, up: Array, down: Array, groups: Groups):
    """[M, D] -> [M, D]; saves the products with gate and up, [M, F] each, in float32."""
    shapes = rows.shape, *((rows.shape[0], gate.shape[2]),) * 2
    out, *saved = _call("Ffn", shapes, (rows, gate, up, down), groups)
    return out.astype(rows.dtype), tuple(saved)


def ffn_backward(rows: Array, gate: Array, up: Array, down: Array, groups: Groups, saved, grad: Array):
    """Gradients of rows, gate, up and down."""
    hidden = (rows.shape[0], gate.shape[2])
    shapes = rows.shape, hidden, hidden, hidden
    drows, dgate, dup, values = _call("FfnRows", shapes, (grad, *saved, gate, up, down), groups)
    outer = ((rows, dgate, gate), (rows, dup, up), (values, grad, down))
    return drows.astype(rows.dtype), *(tgmm(a, b, groups, dtype=w.dtype) for a, b, w in outer)


def row_alignment(rows: int, groups: int) -> int:
    """Groups may begin anywhere."""
    del rows, groups
    return 1


def _call(name: str, shapes: tuple[tuple[int, ...], ...], arrays: tuple[Array, ...], groups: Groups, **attributes):
    call = jax.ffi.ffi_call(_target(name), [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes])
    starts = groups.starts(arrays[0].shape[0])
    results = call(*(x.astype(jnp.float32) for x in arrays), starts, groups.sizes, **attributes)
    return [vary_as(x, *arrays) for x in results]


@functools.cache
def _key() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        processor = platform.processor()
    parts = (*(source.read_text() for source in SOURCES), *FLAGS, version("jaxlib"), platform.machine(), processor)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _target(name: str) -> str:
    # With the key in its name, a compiled program never meets another version of the kernel.
    return f"slicedice_{name.lower()}_{_key()}"


def _functions(compiler: str) -> dict[str, Any]:
    """The library's functions by name; it is kept in the user's cache folder, where there can be one."""
    try:
        return _kept(compiler, cache.folder() / f"native-{_key()}.so")
    except (OSError, RuntimeError) as error:  # Runtime: no home folder
        log.info("the native grouped matmul is compiled by every process, since it cannot be kept: %s", error)
        with tempfile.TemporaryDirectory() as folder:
            return _load(_compile(compiler, Path(folder)))


def _kept(compiler: str, library: Path) -> dict[str, Any]:
    """The functions of this library, compiled by the first process that wants it."""

    def found() -> dict[str, Any] | None:
        with contextlib.suppress(OSError, AttributeError):  # none yet, or damaged, as a power cut may leave it
            return _load(library)

    functions = found()
    if functions:
        return functions
    with cache.alone(library):
        functions = found()
        if functions:
            return functions
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            _compile(compiler, Path(folder)).replace(library)  # at once, for processes that look for it now
        return _load(library)


def _load(path: Path) -> dict[str, Any]:
    library = ctypes.CDLL(str(path))
    return {name: getattr(library, f"Slicedice{name}") for name in ("Gmm", "Tgmm", "Ffn", "FfnRows")}


def _compile(compiler: str, folder: Path) -> Path:
    log.info("compiling the native grouped matmul, which takes ten seconds or so")
    library = folder / "native.so"
    command = [compiler, *FLAGS, f"-I{jax.ffi.include_dir()}", str(SOURCES[0]), "-o", str(library)]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMPILE_SECONDS)
    return library
