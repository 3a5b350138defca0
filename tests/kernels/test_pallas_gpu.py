"""The GPU kernels without a GPU: interpreted with races looked for, lowered, and compiled to machine code.

What the interpreter of JAX 0.10 lacks (copies past the end of an array, transposed operands) these kernels are made
of, so they are interpreted from 0.11 on; they are lowered by every version.
"""

import importlib.util
import logging
import os
import re
import subprocess
import sys
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import mosaic_gpu as plgpu

from slicedice.kernels import expert_ffn, grouped_matmul, pallas_gpu, ragged_dot, reference
from slicedice.kernels.groups import Groups
from slicedice.kernels.pallas_gpu import check, tiles
from slicedice.kernels.pallas_gpu.visits import PIECE, most_visits, visits_of
from tests.kernels.contract import TOLERANCE, magnitudes

CAN_INTERPRET = hasattr(plgpu, "InterpretGPUParams") and jax.default_backend() == "cpu"
interpreted = pytest.mark.skipif(
    not CAN_INTERPRET, reason="needs the CPU, and the GPU interpreter of JAX 0.11 or later"
)
# What is multiplied beside a group's own rows may be infinite; it is never stored.
infinite = pytest.mark.filterwarnings("ignore:invalid value encountered in matmul:RuntimeWarning")
few = partial(settings, deadline=None, database=None, phases=[Phase.generate])  # shrinking would take minutes
PLUGIN = next((name for name in ("jax_cuda13_plugin", "jax_cuda12_plugin") if importlib.util.find_spec(name)), None)


class Layout(NamedTuple):
    """Rows of each group of each model, [members, G]; every model has `rows` rows."""

    sizes: np.ndarray
    rows: int
    alignment: int

    @property
    def members(self) -> int:
        return self.sizes.shape[0]

    def groups(self) -> Groups:
        return Groups(jnp.asarray(self.sizes.reshape(-1), jnp.int32), self.members, self.alignment)

    def slices(self) -> list[slice]:
        return [
            slice(int(part.start + start), int(part.stop + start))
            for start, sizes in zip(self.rows * np.arange(self.members), self.sizes, strict=True)
            for part in reference.slices(sizes)
        ]

    def outside(self) -> np.ndarray:
        return ~np.asarray(self.groups().inside(self.rows * self.members))

    def draw(self, rng: np.random.Generator, columns: int, bad: float) -> jax.Array:
        """Unit-scale rows, those of no group being `bad`."""
        x = rng.standard_normal((self.rows * self.members, columns))
        return jnp.asarray(np.where(self.outside()[:, None], bad, x), jnp.bfloat16)


@st.composite
def layouts(draw, counts=(0, 0, 1, 7, 8, 63, 64, 65, 200)) -> Layout:
    members, alignment = draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (1, 8), (2, 8), (1, 12), (1, 64)]))
    number = draw(st.integers(1, 5))
    sizes = np.array([[draw(st.sampled_from(counts)) for _ in range(number)] for _ in range(members)])
    sizes = -(-sizes // alignment) * alignment
    tail = draw(st.sampled_from([0, 3, 90]))
    rows = int(sizes.sum(1).max()) + -(-tail // alignment) * alignment
    return Layout(sizes, max(rows, alignment), alignment)


@pytest.fixture(autouse=True)
def three_processors(monkeypatch):
    """Few enough that each walks several pieces of work, and that the interpreter does not walk 132."""
    monkeypatch.setattr(tiles, "processors", lambda: 3)


def interpret(function, *arrays):
    """Runs a function of arrays in the interpreter, which fills fresh memory with NaN and raises at races."""
    from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks

    try:
        # JAX 0.10 lacks both names.
        how = getattr(plgpu, "InterpretGPUParams")(detect_races=True, uninitialized_memory="nan")  # noqa: B009
        with getattr(plgpu, "force_gpu_interpret_mode")(how):  # noqa: B009
            out = jax.block_until_ready(jax.jit(function)(*arrays))
        assert not gpu_callbacks.get_races().races_found
        return out
    finally:
        gpu_callbacks.reset_gpu_interpret_mode_state()


def check_rows(got, layout: Layout, want, scale, tolerance: float, name: str = "rows") -> None:
    """Asserts the error of every group's rows, relative to `scale`'s, and zeros elsewhere."""
    got = np.asarray(got, np.float64)
    for g, part in enumerate(layout.slices()):
        error, most = np.linalg.norm(got[part] - want[part]), np.linalg.norm(scale[part])
        assert error <= tolerance * most, f"{name}, group {g}: relative error {error / most:.2g}"
    np.testing.assert_array_equal(got[layout.outside()], 0.0, name)


def check_matrices(got, want, scale, tolerance: float, name: str = "matrices") -> None:
    """Asserts the error of every group's matrix; that of an empty one is exactly zero."""
    for g, (ours, exact, size) in enumerate(zip(np.asarray(got, np.float64), want, scale, strict=True)):
        error, most = np.linalg.norm(ours - exact), np.linalg.norm(size)
        assert error <= tolerance * most, f"{name}, group {g}: relative error {error / most:.2g}"


# ---- The list of visits


@few(max_examples=40)
@given(
    number=st.sampled_from([1, 2, 7, 300, 16384]),
    mean=st.sampled_from([0, 1, 8, 64, 300]),
    members=st.sampled_from([1, 2, 4]),
    skew=st.sampled_from([0.1, 1.0, 100.0]),
    alignment=st.sampled_from([1, 8]),
    tile=st.sampled_from([64, 128]),
    tail=st.sampled_from([0, 1, 13, 500]),
    seed=st.integers(0, 2**32 - 1),
)
def test_visits_hold_every_row_once(number, mean, members, skew, alignment, tile, tail, seed):
    rng = np.random.default_rng(seed)
    number = -(-number // members)
    total = min(number * mean, 500_000)
    sizes = np.stack([rng.multinomial(total, rng.dirichlet(np.full(number, skew) + 1e-3)) for _ in range(members)])
    sizes = sizes * alignment
    layout = Layout(sizes, (total + tail) * alignment, alignment)
    rows = layout.rows * members
    length = max(-(-rows // PIECE) * PIECE, tile)
    groups = layout.groups()
    visits = jax.jit(partial(visits_of, groups, rows, tile, length))()
    count = int(visits.count[0])
    assert count <= most_visits(groups, rows, tile) == visits.group.shape[0]
    group, first, low, high = (np.asarray(x)[:count] for x in visits[:4])
    # In order, without a gap, each within its tile, and each tile within the arrays and where one may begin.
    np.testing.assert_array_equal(low, np.concatenate([[0], high])[:count])
    assert (high[-1] if count else 0) == rows
    assert np.all((first <= low) & (low < high) & (high <= first + tile))
    assert np.all((first >= 0) & (first + tile <= length) & (first % PIECE == 0))
    owner = np.full(rows, -1)
    for g, part in enumerate(layout.slices()):
        owner[part] = g
    np.testing.assert_array_equal(owner[low], group)
    np.testing.assert_array_equal(owner[high - 1], group)


# ---- Tiles


def test_tiles_fit_the_chip():
    """At every width of the study, few rows a group or many, all kernels fit, and more than one step is in flight."""
    widths = sorted(
        {tiles.padded_width(d * 4 // g) for d in (48, 96, 240, 336, 432, 640, 832, 2048) for g in (1, 4, 64)}
    )
    for mean in (1, 8, 64, 512):
        for columns in widths:
            for lhs, rhs, sums in ((1, 1, 1), (1, 2, 2), (2, 3, 3), (2, 2, 1)):
                for dtype in ("bfloat16", "float32"):
                    t = tiles.products(64 * mean, 64, columns, lhs=lhs, rhs=rhs, sums=sums, out=jnp.dtype(dtype))
                    slot = 2 * tiles.STEP * (lhs * t.rows + rhs * t.columns)
                    staging = t.consumers * 2 * 64 * 64 * jnp.dtype(dtype).itemsize
                    assert t.stages >= 2
                    assert (t.stages * slot + staging) * t.blocks <= tiles.SHARED_BYTES
                    # A thread may have 255 registers, fewer with three warpgroups, or with two blocks.
                    assert sums * t.columns // 2 <= {(1, 1): 192, (1, 2): 64, (2, 1): 128}[t.consumers, t.blocks]
            for rows in widths:
                t = tiles.outer(rows, columns, rhs=2, out=jnp.float32)
                assert t.stages >= 2
                assert (
                    t.stages * 128 * (t.rows + 2 * t.columns) + t.consumers * 32768
                ) * t.blocks <= tiles.SHARED_BYTES
        for hidden in (1, 32, 64, 65, 128):
            t = tiles.fused(64 * mean, 64, hidden, jnp.bfloat16)
            assert t.stages >= 2
            assert t.hidden >= hidden


# ---- Interpreted


@interpreted
@infinite
@few(max_examples=10)
@given(
    layout=layouts(),
    transposed=st.booleans(),
    k=st.sampled_from([1, 16, 40, 80, 150]),
    n=st.sampled_from([3, 32, 72, 200]),
    dtype=st.sampled_from(["bfloat16", "float32"]),
    bad=st.sampled_from([np.nan, np.inf]),
    seed=st.integers(0, 2**32 - 1),
)
def test_gmm(layout: Layout, transposed, k, n, dtype, bad, seed):
    rng = np.random.default_rng(seed)
    x = layout.draw(rng, k, bad)
    w = jnp.asarray(rng.standard_normal((layout.sizes.size, *((n, k) if transposed else (k, n)))), jnp.bfloat16)
    groups = layout.groups()
    got = interpret(lambda x, w: pallas_gpu.gmm(x, w, groups, transpose_rhs=transposed, dtype=jnp.dtype(dtype)), x, w)
    assert got.dtype == dtype
    want, scale = np.zeros(got.shape), np.zeros(got.shape)
    for g, part in enumerate(layout.slices()):
        a, b = np.asarray(x[part], np.float64), np.asarray(w[g].T if transposed else w[g], np.float64)
        want[part], scale[part] = a @ b, abs(a) @ abs(b)
    check_rows(got, layout, want, scale, TOLERANCE[dtype])


@interpreted
@infinite
@few(max_examples=8)
@given(
    layout=layouts(),
    k=st.sampled_from([1, 40, 80, 150]),
    n=st.sampled_from([3, 32, 200]),
    dtype=st.sampled_from(["bfloat16", "float32"]),
    bad=st.sampled_from([np.nan, np.inf]),
    seed=st.integers(0, 2**32 - 1),
)
def test_tgmm(layout: Layout, k, n, dtype, bad, seed):
    rng = np.random.default_rng(seed)
    x, y = layout.draw(rng, k, bad), layout.draw(rng, n, bad)
    groups = layout.groups()
    got = interpret(lambda x, y: pallas_gpu.tgmm(x, y, groups, dtype=jnp.dtype(dtype)), x, y)
    assert got.dtype == dtype
    want, scale = np.zeros(got.shape), np.zeros(got.shape)
    for g, part in enumerate(layout.slices()):
        a, b = np.asarray(x[part], np.float64), np.asarray(y[part], np.float64)
        want[g], scale[g] = a.T @ b, abs(a).T @ abs(b)
    check_matrices(got, want, scale, TOLERANCE[dtype])


@interpreted
@infinite
@few(max_examples=4)
@given(
    layout=layouts(counts=(0, 1, 8, 64, 130)),
    d=st.sampled_from([24, 80, 144]),
    f=st.sampled_from([3, 48, 64, 100, 150]),
    bad=st.sampled_from([np.nan, np.inf]),
    seed=st.integers(0, 2**32 - 1),
)
def test_expert_network(layout: Layout, d, f, bad, seed):
    rng = np.random.default_rng(seed)
    x, dy = layout.draw(rng, d, bad), layout.draw(rng, d, bad)
    e, groups = layout.sizes.size, layout.groups()
    gate, up, down = (
        jnp.asarray(rng.standard_normal((e, *shape)) / shape[0] ** 0.5, jnp.bfloat16)
        for shape in ((d, f), (d, f), (f, d))
    )

    def run(x, gate, up, down, dy):
        out, saved = pallas_gpu.ffn(x, gate, up, down, groups)
        return out, *pallas_gpu.ffn_backward(x, gate, up, down, groups, saved, dy)

    got = reference.FFNGradients(*interpret(run, x, gate, up, down, dy))
    want = [np.zeros(a.shape) for a in got]
    number = layout.sizes.shape[1]
    for member, sizes in enumerate(layout.sizes):
        rows, experts = (slice(member * n, (member + 1) * n) for n in (layout.rows, number))
        part = reference.expert_ffn(x[rows], gate[experts], up[experts], down[experts], sizes, dy[rows])
        for i, exact in enumerate(part):
            want[i][rows if exact.ndim == 2 else experts] = exact
    for name, ours, exact in zip(got._fields, got, want, strict=True):
        assert ours.dtype == jnp.bfloat16
        # A few roundings to bfloat16, relative to a sum that little of cancels out at unit scale.
        if ours.ndim == 2:
            check_rows(ours, layout, exact, exact, 2**-6, name)
        else:
            check_matrices(ours, exact, exact, 2**-6, name)


@interpreted
@infinite
def test_one_group_of_many_tiles_and_many_groups_of_one_row(rng):
    """One-hot sizes, and groups so small that one tile holds dozens of them."""
    for sizes in ([0] * 20 + [500] + [0] * 19, [1] * 90):
        layout = Layout(np.array([sizes]), 511, 1)
        x, y = layout.draw(rng, 32, np.nan), layout.draw(rng, 48, np.nan)
        w = jnp.asarray(rng.standard_normal((len(sizes), 32, 48)), jnp.bfloat16)
        groups = layout.groups()

        def run(x, y, w, groups=groups):
            product = pallas_gpu.gmm(x, w, groups, transpose_rhs=False, dtype=jnp.float32)
            return product, pallas_gpu.tgmm(x, y, groups, dtype=jnp.float32)

        got = interpret(run, x, y, w)
        want = reference.grouped_matmul(x, w, sizes, y)
        scale = magnitudes(reference.grouped_matmul, x, w, np.array(sizes), y)
        check_rows(got[0], layout, want.out, scale.out, 1e-6)
        check_matrices(got[1], want.drhs, scale.drhs, 1e-6)


# ---- Lowered and compiled for Hopper


def forward_and_back(rows, gate, up, down, sizes, alignment: int = 1):
    """The network, one grouped matmul, and the gradients of both, through the public functions."""

    def loss(rows, gate, up, down):
        how = {"implementation": "pallas_gpu", "alignment": alignment}
        out = expert_ffn(rows, gate, up, down, sizes, **how)
        return (out + grouped_matmul(rows, gate, sizes, **how) @ jnp.ones((gate.shape[2], 1), gate.dtype)).sum()

    return jax.value_and_grad(loss, argnums=(0, 1, 2, 3))(rows, gate, up, down)


def shapes(m: int, d: int, f: int, e: int, batch: tuple[int, ...] = ()):
    kinds = ((m, d), (e, d, f), (e, d, f), (e, f, d))
    return *(jax.ShapeDtypeStruct((*batch, *s), jnp.bfloat16) for s in kinds), jax.ShapeDtypeStruct(
        (*batch, e), jnp.int32
    )


def kernels(lowered) -> int:
    return lowered.as_text().count("custom_call @mosaic_gpu")


@pytest.mark.parametrize("alignment", [1, 8])
@pytest.mark.parametrize(
    ("m", "d", "f", "e"),
    [(65536, 832, 52, 2048), (65536, 832, 208, 512), (8192, 832, 3328, 8), (8192, 240, 15, 4096), (4096, 48, 3, 256)],
)
def test_lowers_at_the_shapes_of_the_study(m, d, f, e, alignment):
    traced = jax.jit(partial(forward_and_back, alignment=alignment)).trace(*shapes(m, d, f, e))
    # gmm and its gradients, the network in one kernel or two, and its gradients in four.
    assert kernels(traced.lower(lowering_platforms=("cuda",))) == 3 + (1 if f <= 128 else 2) + 4


def test_lowers_under_transformations():
    one = shapes(512, 64, 32, 4)
    count = kernels(jax.jit(forward_and_back).trace(*one).lower(lowering_platforms=("cuda",)))

    def lowered(function, arguments=one):
        return kernels(jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)))

    # Independent models are one call of more groups, not a loop or a call each.
    assert lowered(jax.vmap(forward_and_back), shapes(512, 64, 32, 4, batch=(3,))) == count
    everywhere = jax.sharding.PartitionSpec("x")
    sharded = jax.shard_map(
        lambda *arrays: jax.tree.map(lambda x: x[None], forward_and_back(*arrays)),
        mesh=jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,)),
        in_specs=everywhere,
        out_specs=everywhere,
    )
    assert lowered(sharded) == count

    # Any promise of alignment, though only some help.
    for alignment in (2, 12, 16, 64, 128):
        assert lowered(partial(forward_and_back, alignment=alignment)) == count

    def checkpointed(rows, gate, up, down, sizes):
        @jax.checkpoint
        def layer(x, _):
            return expert_ffn(x, gate, up, down, sizes, implementation="pallas_gpu"), None

        return jax.grad(lambda x: jax.lax.scan(layer, x, None, length=3)[0].sum())(rows)

    assert lowered(checkpointed) >= 5


TARGET = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84942979072 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""

COMPILE = """
import sys
from functools import partial
import jax
from jax.experimental import topologies
from tests.kernels.test_pallas_gpu import TARGET, forward_and_back, shapes
topology = topologies.get_topology_desc("", "cuda", topology="1x1x1", target_config=TARGET)
mesh = topologies.make_mesh(topology, (1,), ("x",))
here = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
m, d, f, e, alignment = map(int, sys.argv[1:])
arguments = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here) for x in shapes(m, d, f, e)]
jax.jit(partial(forward_and_back, alignment=alignment)).trace(*arguments).lower().compile()
"""


@pytest.mark.skipif(PLUGIN is None, reason="needs JAX's CUDA plugin, which holds the compiler; a GPU it does not need")
@pytest.mark.parametrize(
    ("m", "d", "f", "e", "alignment"), [(65536, 832, 52, 2048, 1), (65536, 832, 104, 64, 8), (65536, 432, 216, 64, 1)]
)
def test_compiles_to_machine_code(m, d, f, e, alignment, tmp_path):
    """By the compiler that runs on a device, for a Hopper chip that is not there."""
    environment = os.environ | {
        "MOSAIC_GPU_DUMP_TO": str(tmp_path),
        "JAX_PLATFORMS": "cpu",
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, "-c", COMPILE, *map(str, (m, d, f, e, alignment))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    logs = {path.stem: path.read_text() for path in tmp_path.glob("*.ptxas")}
    assert len(logs) == 3 + (1 if f <= 128 else 2) + 4
    for name, text in logs.items():
        code = (tmp_path / f"{name}.ptx").read_text()
        assert "wgmma.mma_async.sync.aligned.m64n" in code, name
        assert "cp.async.bulk.tensor" in code, name
        assert "C7510" not in text, f"{name}: matrix instructions wait for each other\n{text}"
        # A few bytes in the epilogue of the widest sums; in a loop they would be hundreds.
        assert max(map(int, re.findall(r"(\d+) bytes spill stores", text))) <= 64, f"{name}\n{text}"


# ---- The guard


def test_other_dtypes_go_to_row_blocks(rng, caplog):
    sizes = np.array([3, 0, 9])
    layout = Layout(sizes[None], 16, 1)
    x = jnp.asarray(layout.draw(rng, 6, np.nan), jnp.float32)
    w = jnp.asarray(rng.standard_normal((3, 6, 5)), jnp.float32)
    assert not pallas_gpu.supports(x, w)
    pallas_gpu._say_other.cache_clear()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            got = pallas_gpu.gmm(x, w, layout.groups(), transpose_rhs=False, dtype=jnp.dtype("float32"))
            outer = pallas_gpu.tgmm(x, x, layout.groups(), dtype=jnp.dtype("float32"))
    want = reference.grouped_matmul(x, w, sizes, np.zeros((16, 5)))
    scale = magnitudes(reference.grouped_matmul, x, w, sizes, np.zeros((16, 5)))
    check_rows(got, layout, want.out, scale.out, 1e-6)
    assert np.isfinite(outer).all()
    assert [r.message for r in caplog.records] == [
        f"{name} of float32 x float32: the Hopper kernels multiply bfloat16 only, blocks takes it"
        for name in ("gmm", "tgmm")
    ]


def test_row_alignment_never_outweighs_the_rows():
    assert pallas_gpu.row_alignment(4096, 4096) == 1
    assert pallas_gpu.row_alignment(4096, 8) == 8


def test_not_available_without_a_gpu(caplog):
    if jax.default_backend() == "gpu":
        pytest.skip("there is one")
    with caplog.at_level(logging.INFO):
        assert not check.available.__wrapped__()
    assert "compute capability 9.0" in caplog.text


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        (None, "passed its check on NVIDIA H100"),
        (subprocess.CalledProcessError(1, "check", stderr="Traceback\nAssertionError: tgmm, group 3"), "tgmm, group 3"),
        (subprocess.CalledProcessError(-11, "check", stderr=""), "exit status -11"),
        (subprocess.TimeoutExpired("check", 1), "did not come to an end"),
        (OSError("no such file"), "could not be started: no such file"),
    ],
)
def test_available_says_what_failed(outcome, message: str, monkeypatch, caplog):
    def run(*_, **__):
        if outcome:
            raise outcome

    gpu = SimpleNamespace(compute_capability="9.0", device_kind="NVIDIA H100")
    monkeypatch.setattr(check, "jax", SimpleNamespace(devices=lambda: [gpu], default_backend=lambda: "gpu"))
    monkeypatch.setattr(subprocess, "run", run)
    with caplog.at_level(logging.INFO):
        assert check.available.__wrapped__() == (outcome is None)
    assert message in caplog.text
    assert caplog.records[-1].levelno == (logging.INFO if outcome is None else logging.WARNING)


@pytest.mark.parametrize("broken", ["", "gmm", "tgmm", "ffn", "ffn gradients"])
def test_check_tells_right_from_wrong(broken: str, monkeypatch):
    """With XLA's own products in place of the kernels, as they are and with one entry off."""

    def spoiled(name: str, out: jax.Array) -> jax.Array:
        return out.at[-30 if out.ndim == 2 else 1].mul(1.5) if name == broken else out

    def gmm(x, w, groups, **how):
        return spoiled("gmm", ragged_dot.gmm(groups.select(x), w, groups, **how))

    def tgmm(x, y, groups, **how):
        return spoiled("tgmm", ragged_dot.tgmm(groups.select(x), groups.select(y), groups, **how))

    def ffn(x, gate, up, down, groups):
        return spoiled("ffn", ragged_dot.ffn(groups.select(x), gate, up, down, groups)[0]), ()

    def ffn_backward(x, gate, up, down, groups, saved, dy):
        x, dy = groups.select(x), groups.select(dy)
        saved = ragged_dot.ffn(x, gate, up, down, groups)[1]
        out = ragged_dot.ffn_backward(x, gate, up, down, groups, saved, dy)
        return *out[:-1], spoiled("ffn gradients", out[-1])

    for function in (gmm, tgmm, ffn, ffn_backward):
        monkeypatch.setattr(pallas_gpu, function.__name__, function)
    if broken:
        with pytest.raises(AssertionError, match=re.escape(f"['{broken}']")):
            check.check(0)
    else:
        check.check(0)
