"""Kernels in C++ for CPUs: experts, attention, norms, SwiGLU, routing, AdamW; compiled on first use, and optional.

The machine's own compiler makes them. `available` says whether they can be used here; where there is no compiler,
"blocks" and plain XLA do the same, slower. The library is kept in the user's cache folder, named by all that it depends
on, so that a change of code, flags, jaxlib or processor makes a new one.
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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from slicedice import cache, machine
from slicedice.kernels.groups import Groups
from slicedice.kernels.varying import vary_as

log = logging.getLogger(__name__)

_HERE = Path(__file__).parent
SOURCES = tuple(
    _HERE / f"native{name}.cc"
    for name in ("", "_adamw", "_attention", "_choice", "_gated", "_layer", "_norm", "_product")
)
HEADERS = tuple(_HERE / f"native_{name}.h" for name in ("math", "pool", "product"))
FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-fno-math-errno", "-Wno-psabi")

NAMES = (
    *("Gmm", "Tgmm", "Ffn", "FfnRows", "Layer", "LayerBackward"),
    *("Softmax", "SoftmaxBackward", "Select", "SelectBackward", "Sorted"),
    *("Attend", "AttendBackward", "Norm", "NormBackward", "Gated", "GatedBackward"),
    *("SumOfSquares", "AdamW"),
)
"""Of the library's functions, each after `Slicedice`."""

COMPILE_SECONDS = 300
"""After which compiling has failed; an idle core takes ten."""

NEEDS_ZEROS = False


@functools.cache
def available() -> bool:
    """Compiles and registers the kernels if that has not been done; False, and a line in the log, if it fails."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        log.warning("no C++ compiler: steps on CPU take up to twice as long")
        return False
    try:
        functions = _functions(compiler)
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        lines = str(error.stderr if isinstance(error, subprocess.CalledProcessError) else error).splitlines()
        said = "\n".join([line for line in lines if "error" in line] or lines)
        log.warning("kernels in C++ cannot be made here, so that steps take up to twice as long: %s", said)
        return False
    for name, function in functions.items():
        jax.ffi.register_ffi_target(_target(name), jax.ffi.pycapsule(function), platform="cpu")
    return True


def gmm(lhs: Array, rhs: Array, groups: Groups, *, transpose_rhs: bool, dtype: np.dtype) -> Array:
    """[M, K], [G, K, N] -> [M, N]; with `transpose_rhs`, of [G, N, K]."""
    width = rhs.shape[1 if transpose_rhs else 2]
    (out,) = _call("Gmm", ((lhs.shape[0], width),), (lhs, rhs, *_places(lhs, groups)), transpose_rhs=transpose_rhs)
    return out.astype(dtype)


def tgmm(lhs: Array, rhs: Array, groups: Groups, *, dtype: np.dtype) -> Array:
    """[M, K], [M, N] -> [G, K, N]."""
    shape = groups.sizes.shape[0], lhs.shape[1], rhs.shape[1]
    return _call("Tgmm", (shape,), (lhs, rhs, *_places(lhs, groups)))[0].astype(dtype)


def ffn(rows: Array, gate: Array, up: Array, down: Array, groups: Groups):
    """[M, D] -> [M, D]; saves the products with gate and up, [M, F] each, in float32."""
    shapes = rows.shape, *((rows.shape[0], gate.shape[2]),) * 2
    out, *saved = _call("Ffn", shapes, (rows, gate, up, down, *_places(rows, groups)))
    return out.astype(rows.dtype), tuple(saved)


def ffn_backward(rows: Array, gate: Array, up: Array, down: Array, groups: Groups, saved, grad: Array):
    """Gradients of rows, gate, up and down."""
    hidden = (rows.shape[0], gate.shape[2])
    shapes = rows.shape, hidden, hidden, hidden
    drows, dgate, dup, values = _call("FfnRows", shapes, (grad, *saved, gate, up, down, *_places(rows, groups)))
    outer = ((rows, dgate, gate), (rows, dup, up), (values, grad, down))
    return drows.astype(rows.dtype), *(tgmm(a, b, groups, dtype=w.dtype) for a, b, w in outer)


def _places(rows: Array, groups: Groups) -> tuple[Array, Array]:
    return groups.starts(rows.shape[0]), groups.sizes


def row_alignment(rows: int, groups: int) -> int:
    """Groups may begin anywhere."""
    del rows, groups
    return 1


def attend(query: Array, key: Array, value: Array) -> tuple[Array, Array]:
    """Causal softmax attention of [B, S, H, C], and the logarithm of each row's sum of exponentials, [B, H, S]."""
    batch, positions, heads, _ = query.shape
    out, log_sums = _call("Attend", (query.shape, (batch, heads, positions)), (query, key, value), "broadcast_all")
    return out.astype(query.dtype), log_sums


def attend_backward(query: Array, key: Array, value: Array, out: Array, log_sums: Array, grad: Array) -> list[Array]:
    """Gradients of query, key and value."""
    arrays = query, key, value, out, log_sums, grad
    results = _call("AttendBackward", (query.shape,) * 3, arrays, "broadcast_all")
    return [x.astype(like.dtype) for x, like in zip(results, arrays, strict=False)]


def gated(a: Array, b: Array) -> Array:
    """silu(a) * b of arrays of one shape."""
    return _call("Gated", (a.shape,), (a, b), "broadcast_all")[0].astype(a.dtype)


def gated_backward(a: Array, b: Array, grad: Array) -> tuple[Array, Array]:
    """Gradients of a and b."""
    da, db = _call("GatedBackward", (a.shape, b.shape), (a, b, grad), "broadcast_all")
    return da.astype(a.dtype), db.astype(b.dtype)


def norm(x: Array, gain: Array, turns: tuple[Array, Array], eps: float) -> Array:
    """RMSNorm of [B, S, D] with gains [D], then RoPE.

    Args:
      x: of any leading axes where nothing is turned.
      gain: factors after the norm.
      turns: cosines and sines [S, C/2] of the angles by which pairs of each head of width C are turned; with no
        columns, none are.
      eps: added to the mean of squares.
    """
    return _call("Norm", (x.shape,), (x, gain, *turns), "sequential", eps=np.float32(eps))[0].astype(x.dtype)


def norm_backward(x: Array, gain: Array, turns: tuple[Array, Array], eps: float, grad: Array) -> tuple[Array, Array]:
    """Gradients of x and gain."""
    arrays = x, gain, *turns, grad
    dx, dgain = _call("NormBackward", (x.shape, gain.shape), arrays, "sequential", eps=np.float32(eps))
    return dx.astype(x.dtype), dgain


def sum_of_squares(arrays: Sequence[Array]) -> Array:
    """Over all arrays, in one pass."""
    return _call("SumOfSquares", ((),), tuple(arrays), "sequential")[0]


def adamw(
    numbers: Array,
    params: list[Array],
    means: list[Array],
    squares: list[Array],
    grads: list[Array],
    *,
    b1: float,
    b2: float,
    eps: float,
) -> tuple[list[Array], list[Array], list[Array]]:
    """AdamW's new parameters, and means of gradients and of their squares, in one pass.

    Args:
      numbers: five: the factor by which gradients are clipped, the learning rate, weight decay, and 1 - b1^t and
        1 - b2^t, by which means and squares are divided before they are used.
      params: of any shapes; the others have the same.
      means: first moments.
      squares: second moments.
      grads: gradients.
      b1: how much of the means is kept.
      b2: how much of the squares.
      eps: added to the root of the squares.
    """
    kept = [*params, *means, *squares]
    aliases = {1 + place: place for place in range(len(kept))}
    shapes, betas = tuple(x.shape for x in kept), {"b1": b1, "b2": b2, "eps": eps}
    attributes = {name: np.float32(value) for name, value in betas.items()}
    new = _call("AdamW", shapes, (numbers, *kept, *grads), "sequential", aliases, **attributes)
    count = len(params)
    return new[:count], new[count : 2 * count], new[2 * count :]


def layer(
    x: Array, weights: Array, assignment_of: Array, sizes: Array, gate: Array, up: Array, down: Array, index: Array
) -> list[Array]:
    """[T, D] -> [T, D]: each token's sum by weight over experts; and [M, F] twice, the products with gate and up.

    Args:
      x: tokens.
      weights: of each token's K experts, [T, K].
      assignment_of: of each of M rows, sorted by expert, the index into all weights; T*K for none.
      sizes: rows of each expert.
      gate: of all layers, [L, E, D, F], as `up`; `down` is [L, E, F, D].
      up: see `gate`.
      down: see `gate`.
      index: of the layer.
    """
    hidden = assignment_of.shape[0], gate.shape[3]
    arrays = x, weights, assignment_of, sizes, gate, up, down, index
    return _call("Layer", (x.shape, hidden, hidden), arrays, "sequential", shares=_shares(x, assignment_of))


def layer_backward(
    x: Array,
    weights: Array,
    assignment_of: Array,
    sizes: Array,
    gate: Array,
    up: Array,
    down: Array,
    index: Array,
    saved: Sequence[Array],
    grad: Array,
) -> list[Array]:
    """Gradients of x, of weights, and of the layer's gate, up and down."""
    hidden, matrices = (assignment_of.shape[0], gate.shape[3]), (gate.shape[1:], up.shape[1:], down.shape[1:])
    shapes = x.shape, weights.shape, *matrices, hidden, hidden, hidden
    arrays = x, weights, assignment_of, sizes, gate, up, down, index, *saved, grad
    return _call("LayerBackward", shapes, arrays, "sequential", shares=_shares(x, assignment_of))[:5]


def _shares(x: Array, assignment_of: Array) -> np.int64:
    """How many sums there are to add up: several for a core, and less to add up than there are rows."""
    return np.int64(min(max(assignment_of.shape[0] // x.shape[0] // 2, 4), 16))


def softmax(logits: Array) -> list[Array]:
    """Of [..., E] the softmax over the last axis, and the logarithm of the sum of exponentials, [...]."""
    return _call("Softmax", (logits.shape, logits.shape[:-1]), (logits,), "broadcast_all")


def softmax_backward(shares: Array, grad: Array, log_grad: Array) -> Array:
    """The gradient of the logits, by those of the softmax and of the logarithm."""
    return _call("SoftmaxBackward", (shares.shape,), (shares, grad, log_grad), "broadcast_all")[0]


def select(shares: Array, bias: Array, k: int) -> list[Array]:
    """Of [..., E] the k highest of shares plus bias [E], highest first, ties to the lower index; and their shares."""
    shape = *shares.shape[:-1], k
    return _call("Select", (_integers(shape), shape), (shares, bias), "broadcast_all")


def select_backward(chosen: Array, grad: Array, n: int) -> Array:
    """The gradient of the shares, [..., n], by that of the chosen ones."""
    return _call("SelectBackward", ((*chosen.shape[:-1], n),), (chosen, grad), "broadcast_all")[0]


def sort(keys: Array, n: int) -> list[Array]:
    """Of keys [M] from 0 to n: the order that sorts them, each one's place in it, and how many there are of all but n.

    Those of one key stay in order.
    """
    shapes = tuple(map(_integers, (keys.shape, keys.shape, (n,))))
    return _call("Sorted", shapes, (keys.astype(jnp.int32),), "sequential")


def _integers(shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _call(
    name: str,
    shapes: tuple[tuple[int, ...] | jax.ShapeDtypeStruct, ...],
    arrays: tuple[Array, ...],
    vmap_method: str | None = None,
    aliases: dict[int, int] | None = None,
    **attributes: Any,
) -> list[Array]:
    """Results, in float32 if nothing else is said, of arrays in that or of integers.

    `aliases` says which arrays' place may be taken by which results.
    """
    results = [jax.ShapeDtypeStruct(x, jnp.float32) if isinstance(x, tuple) else x for x in shapes]
    call = jax.ffi.ffi_call(_target(name), results, vmap_method=vmap_method, input_output_aliases=aliases)
    read = [x if jnp.issubdtype(x.dtype, jnp.integer) else x.astype(jnp.float32) for x in arrays]
    return [vary_as(x, *arrays) for x in call(*read, **attributes)]


@functools.cache
def _key() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        processor = platform.processor()
    parts = (
        *(source.read_text() for source in (*SOURCES, *HEADERS)),
        *FLAGS,
        version("jaxlib"),
        platform.machine(),
        processor,
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _target(name: str) -> str:
    # With the key in its name, a compiled program never meets another version of the kernel.
    return f"slicedice_{name.lower()}_{_key()}"


def _functions(compiler: str) -> dict[str, Any]:
    """The library's functions by name; it is kept in the user's cache folder, where there can be one."""
    try:
        return _kept(compiler, cache.folder() / f"native-{_key()}.so")
    except (OSError, RuntimeError) as error:  # Runtime: no home folder
        log.info("kernels in C++ are compiled by every process, since they cannot be kept: %s", error)
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
    return {name: getattr(library, f"Slicedice{name}") for name in NAMES}


def _compile(compiler: str, folder: Path) -> Path:
    log.info("compiling kernels in C++, which takes ten seconds or more")
    library = folder / "native.so"

    def run(*arguments: Path | str) -> None:
        command = [compiler, *FLAGS, *map(str, arguments)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMPILE_SECONDS)

    objects = [folder / f"{source.stem}.o" for source in SOURCES]
    with ThreadPoolExecutor(len(machine.cores())) as pool:
        list(pool.map(lambda source, to: run(f"-I{jax.ffi.include_dir()}", "-c", source, "-o", to), SOURCES, objects))
    run(*objects, "-o", library)
    return library
