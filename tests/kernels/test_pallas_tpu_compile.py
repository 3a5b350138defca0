"""The TPU kernels through the TPU's compiler, for chips that are not there: every generation, the study's shapes.

All shapes of the benchmark, with what they take of VMEM, are in benchmarks/tpu_compile.py.
"""

import functools
import importlib.util
import json
import re
import subprocess
import sys
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies

from slicedice.kernels.groups import Groups
from slicedice.kernels.pallas_tpu import ffn, ffn_backward, gmm, tgmm

NEEDS_COMPILER = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the libtpu package, which holds the TPU's compiler"
)
TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "tpu_compile.py"
MOST_SPILLS = {"v5e": 12, "v5p": 14, "v6e": 96, "tpu7x": 10}
"""Vector registers that a kernel spills at most, in benchmarks/results/tpu_compile.json for the study's shapes."""


def kernels(d: int, f: int, groups: int, mean: int, dtype: Any = jnp.bfloat16) -> dict[str, tuple[Any, tuple]]:
    """Every kernel: a function, and the shapes and dtypes it takes."""
    wide, narrow, sizes = ((groups * mean, d), dtype), ((groups * mean, f), dtype), ((groups,), jnp.int32)
    matrix, down = ((groups, d, f), dtype), ((groups, f, d), dtype)
    return {
        "forward": (lambda x, w, s: gmm(x, w, Groups(s), transpose_rhs=False, dtype=dtype), (wide, matrix, sizes)),
        "dlhs": (lambda x, w, s: gmm(x, w, Groups(s), transpose_rhs=True, dtype=dtype), (narrow, matrix, sizes)),
        "drhs": (lambda x, y, s: tgmm(x, y, Groups(s), dtype=dtype), (wide, narrow, sizes)),
        "ffn": (lambda x, g, u, o, s: ffn(x, g, u, o, Groups(s)), (wide, matrix, matrix, down, sizes)),
        "ffn_backward": (
            lambda x, g, u, o, s, y: ffn_backward(x, g, u, o, Groups(s), (), y),
            (wide, matrix, matrix, down, sizes, wide),
        ),
    }


@functools.cache
def device(generation: str) -> Any:
    """One device of a topology; the compiler's library may be loaded by several test processes at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TPU_SKIP_MDS_QUERY", "1")
        patch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        return topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[generation]).devices[0]


def compiled(generation: str, function: Any, arrays: tuple) -> Any:
    chip = device(generation)
    sharding = jax.sharding.SingleDeviceSharding(chip)
    structs = [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape, dtype in arrays]
    with jax.default_device(chip):
        return jax.jit(function).lower(*structs).compile()


@pytest.mark.long
@NEEDS_COMPILER
@pytest.mark.parametrize("generation", TOPOLOGIES)
def test_study_compiles(generation: str, tmp_path: Path):
    """All kernels of the study's widths, as the benchmark compiles and reads them: VMEM suffices, and few spill."""
    found = tmp_path / "found.json"
    command = [sys.executable, BENCHMARK, "--study", "--chips", generation, "--save", found]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    about = json.loads(found.read_text())
    assert about["command"] == f"python benchmarks/tpu_compile.py --study --chips {generation}"
    rows = [dict(zip(about["columns"], row, strict=True)) for row in about["rows"]]
    assert {(row["kernel"], row["F"]) for row in rows} == set(product(kernels(1, 1, 1, 1), (3328, 832, 208, 52)))
    for row in rows:
        assert row["vmem_compiler"] <= row["vmem_allowed"] < row["vmem_chip"], row
        assert row["spills"] <= (0 if row["F"] == 52 else MOST_SPILLS[generation]), row


@pytest.mark.long
@NEEDS_COMPILER
@pytest.mark.parametrize("generation", ["v5e", "tpu7x"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_odd_widths_compile(generation: str, dtype: str):
    """Widths that are no multiple of anything, one row a group, and the study's smallest expert: D = 48, F = 3."""
    for d, f, groups, mean in ((83, 129, 7, 1), (48, 3, 512, 8), (1, 1, 1, 1)):
        for function, arrays in kernels(d, f, groups, mean, dtype).values():
            compiled(generation, function, arrays)


@NEEDS_COMPILER
def test_widths_past_vmem_are_cut():
    """An expert whose weights take 400 MB."""
    for function, arrays in kernels(4096, 16384, 2, 256).values():
        compiled("tpu7x", function, arrays)


@NEEDS_COMPILER
def test_long_lists_of_visits_compile():
    """Most rows and groups of the benchmark at the study's width; and as many groups as are promised, a list that fills
    scalar memory by a third. What the benchmark compiles has the fewest that choose the same tiles."""
    for function, arrays in kernels(832, 64, 4096, 512).values():
        compiled("v6e", function, arrays)
    function, arrays = kernels(128, 32, 16384, 8)["ffn"]
    compiled("v5e", function, arrays)


@NEEDS_COMPILER
def test_experts_narrower_than_the_lanes_cross_memory_unpadded():
    """[E, 832, 64] is kept with D innermost by XLA, and handed to the kernel so: no copy, no padding to 128 lanes."""
    function, arrays = kernels(896, 64, 256, 64)["ffn"]
    made = compiled("v5e", function, arrays)
    weights = 3 * 256 * 896 * 64 * 2
    assert made.memory_analysis().argument_size_in_bytes < 1.01 * (weights + 256 * 64 * 896 * 2)
    assert made.memory_analysis().temp_size_in_bytes < weights / 10


def lowered(function: Any, arrays: tuple) -> Counter[str]:
    """Pallas makes the kernels, and Mosaic's first passes take them, without the compiler's library: their names."""
    structs = [jax.ShapeDtypeStruct(*array) for array in arrays]
    text = jax.jit(function).trace(*structs).lower(lowering_platforms=("tpu",)).as_text()
    return Counter(re.findall(r'kernel_name = "(\w+)"', text))


NAMES = {"forward": "gmm", "dlhs": "gmm", "drhs": "tgmm", "ffn": "ffn", "ffn_backward": "ffn_backward"}


@pytest.mark.parametrize("wide_integers", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lowers_for_tpu_from_here(dtype: str, wide_integers: bool):
    """Also under `jax_enable_x64`, in pieces and in one, with widths that are cut and that are not."""
    for d, f, groups, mean in ((83, 52, 7, 40), (832, 3328, 64, 128), (4096, 16384, 2, 256)):
        for name, (function, arrays) in kernels(d, f, groups, mean, dtype).items():
            with jax.enable_x64(wide_integers):
                assert lowered(function, arrays) == {NAMES[name]: 1}


@NEEDS_COMPILER
def test_compiles_with_wide_integers():
    """Some integers of 64 bits pass when lowered, and are refused later."""
    for name, (function, arrays) in kernels(832, 208, 64, 128).items():
        with jax.enable_x64(True):
            assert "tpu_custom_call" in compiled("v6e", function, arrays).as_text(), name


def test_networks_too_wide_for_vmem_are_products():
    """Of 64 MiB: the backward pass is the first that does not fit, and does not need what the forward one was."""
    for d, dtype, forward, backward in (
        (9984, "bfloat16", {"ffn": 1}, {"ffn_backward": 1}),
        (10240, "bfloat16", {"ffn": 1}, {"gmm": 5, "tgmm": 3}),
        (32768, "bfloat16", {"gmm": 3}, {"gmm": 5, "tgmm": 3}),
        (8192, "float32", {"ffn": 1}, {"gmm": 5, "tgmm": 3}),
    ):
        both = kernels(d, 1024, 4, 16, dtype)
        assert lowered(*both["ffn"]) == forward
        assert lowered(*both["ffn_backward"]) == backward


def test_models_past_scalar_memory_are_several_calls():
    """Of 16,384 groups each: a list holds those of three, so that four models are two calls, and three are one."""
    from slicedice.kernels import expert_ffn

    for models, calls in ((3, 1), (4, 2)):
        shapes = (models, 64, 8), *((models, 16384, *shape) for shape in ((8, 3), (8, 3), (3, 8)))
        arrays = *((shape, jnp.bfloat16) for shape in shapes), ((models, 16384), jnp.int32)
        mapped = jax.vmap(functools.partial(expert_ffn, implementation="pallas_tpu"))
        assert lowered(mapped, arrays) == {"ffn": calls}


def test_recomputed_layers_in_a_scan_lower():
    """What the interpreter cannot do: its callbacks may not be recomputed."""
    from slicedice.kernels import expert_ffn

    def loss(x, gate, up, down, sizes):
        @jax.checkpoint
        def layer(x, weights):
            gate, up, down = weights
            return expert_ffn(x, gate, up, down, sizes, implementation="pallas_tpu"), None

        return jax.lax.scan(layer, x, (gate, up, down))[0].astype(jnp.float32).sum()

    shapes = (64, 40), (3, 4, 40, 24), (3, 4, 40, 24), (3, 4, 24, 40)
    structs = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    traced = jax.jit(jax.grad(loss, (0, 1, 2, 3))).trace(*structs, jax.ShapeDtypeStruct((4,), jnp.int32))
    # One forward and one backward kernel: as only inputs are kept for the latter, there is nothing to recompute.
    assert traced.lower(lowering_platforms=("tpu",)).as_text().count("stablehlo.custom_call @tpu_custom_call") == 2


def test_shards_lower():
    """Under shard_map with checks of what varies over the mesh, the experts being the same on every device."""
    mesh = jax.sharding.AbstractMesh((2,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    across, same = jax.sharding.PartitionSpec("rows"), jax.sharding.PartitionSpec()

    def gradients(x, gate, up, down, sizes, y):
        out, saved = ffn(x, gate, up, down, Groups(sizes))
        return out, *(jax.lax.psum(g, "rows") for g in ffn_backward(x, gate, up, down, Groups(sizes), saved, y)[1:])

    sharded = jax.shard_map(
        gradients,
        mesh=mesh,
        in_specs=(across, same, same, same, across, across),
        out_specs=(across, same, same, same),
    )
    shapes = (64, 40), (4, 40, 24), (4, 40, 24), (4, 24, 40), (8,), (64, 40)
    structs = [jax.ShapeDtypeStruct(s, jnp.int32 if len(s) == 1 else jnp.bfloat16) for s in shapes]
    lowered = jax.jit(sharded).trace(*structs).lower(lowering_platforms=("tpu",))
    assert lowered.as_text().count("stablehlo.custom_call @tpu_custom_call") == 2
