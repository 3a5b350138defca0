"""The GPU kernels compiled to machine code for Hopper, by the compiler that runs on a device, without a device.

The compiler comes with JAX's CUDA plugin; no other of NVIDIA's packages is needed.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from slicedice.kernels.pallas_gpu import check

pytest.importorskip("jax_cuda13_plugin", reason="needs JAX's CUDA plugin, which holds the compiler; no GPU")

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
from tests.kernels.test_pallas_gpu_compile import TARGET
from tests.kernels.test_pallas_gpu_lowering import forward_and_back, shapes
from tests.model import test_hopper_cross_entropy
topology = topologies.get_topology_desc("", "cuda", topology="1x1x1", target_config=TARGET)
mesh = topologies.make_mesh(topology, (1,), ("x",))
here = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
if sys.argv[1] == "products":
    m, d, f, e, alignment = map(int, sys.argv[2:])
    function, arguments = partial(forward_and_back, alignment=alignment), shapes(m, d, f, e)
elif sys.argv[1] == "check":
    import numpy as np
    from jax.numpy import bfloat16
    from slicedice.kernels.groups import Groups
    from slicedice.kernels.pallas_gpu import check
    sizes, alignment, d, f = check.PROBLEMS[int(sys.argv[2])]
    sizes = np.array(sizes)
    members, number = sizes.shape
    rows, matrices = (members * check.rows_of(sizes), d), ((sizes.size, d, f),) * 2 + ((sizes.size, f, d),)
    arguments = [jax.ShapeDtypeStruct(shape, bfloat16) for shape in (rows, rows, *matrices)]
    arguments.append(jax.ShapeDtypeStruct((sizes.size,), "int32"))
    function = lambda *arrays: check.every_kernel(*arrays[:-1], Groups(arrays[-1], members, alignment))
else:
    width, entries = map(int, sys.argv[2:])
    from slicedice.model import hopper_cross_entropy
    function = partial(hopper_cross_entropy.parts, z_weight=1e-5)
    arguments = test_hopper_cross_entropy.shapes(tokens=65536, width=width, entries=entries)
arguments = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here) for x in arguments]
jax.jit(function).trace(*arguments).lower().compile()
"""


def compiled(folder: Path, what: str, *sizes: int) -> dict[str, tuple[str, str]]:
    """What the compiler said of each kernel, and its code before the last step of compilation."""
    environment = os.environ | {
        "MOSAIC_GPU_DUMP_TO": str(folder),
        "JAX_PLATFORMS": "cpu",
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, "-c", COMPILE, what, *map(str, sizes)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return {path.stem: (path.read_text(), path.with_suffix(".ptx").read_text()) for path in folder.glob("*.ptxas")}


def spilled(text: str) -> int:
    """The most bytes that a kernel stores for want of registers."""
    return max(map(int, re.findall(r"(\d+) bytes spill stores", text)))


@pytest.mark.parametrize(
    ("m", "d", "f", "e", "alignment"), [(65536, 832, 52, 2048, 1), (65536, 832, 104, 64, 8), (65536, 432, 216, 64, 1)]
)
def test_compiles_to_machine_code(m, d, f, e, alignment, tmp_path):
    kernels = compiled(tmp_path, "products", m, d, f, e, alignment)
    assert len(kernels) == 3 + (1 if f <= 128 else 2) + 4
    for name, (text, code) in kernels.items():
        assert "wgmma.mma_async.sync.aligned.m64n" in code, name
        assert "cp.async.bulk.tensor" in code, name
        assert "C7510" not in text, f"{name}: matrix instructions wait for each other\n{text}"
        # A few bytes in the epilogue of the widest sums; in a loop they would be hundreds.
        assert spilled(text) <= 64, f"{name}\n{text}"


@pytest.mark.parametrize("problem", [*(pytest.param(i, marks=pytest.mark.long) for i in range(3)), 3, 4])
def test_what_is_checked_at_first_use_compiles(problem: int, tmp_path):
    """Mosaic chooses layouts when it compiles, and finds none for some shapes: no interpreter tells."""
    assert len(check.PROBLEMS) == 5
    hidden = check.PROBLEMS[problem][-1]
    assert len(compiled(tmp_path, "check", problem)) == (8 if hidden <= 128 else 9)


@pytest.mark.parametrize(("width", "entries"), [(48, 100352), (96, 50257), (128, 100352)])
def test_cross_entropy_compiles_to_machine_code(width: int, entries: int, tmp_path):
    """Logits and sums of matrix instructions, no wider than they have to be; one exponential a logit; and no spills."""
    kernels = compiled(tmp_path, "cross entropy", width, entries)
    assert {re.sub(r"_\d+$", "", name) for name in kernels} == {"over_vocabulary", "over_tokens"}
    for name, (text, code) in kernels.items():
        products = re.findall(r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k16", code)
        step = max(128 if width > 96 else 64, 128 if width <= 64 and name.startswith("over_vocabulary") else 64)
        assert sorted(map(int, products)) == sorted([step] * (width // 16) + [width] * (step // 16)), name
        # A thread has half of a step's logits; and in the first kernel two of what earlier shares fade by.
        fades = 2 if name.startswith("over_vocabulary") else 0
        assert len(re.findall(r"ex2\.approx", code)) == step // 2 + fades, name
        assert "cp.async.bulk.tensor" in code, name
        assert "C7510" not in text, f"{name}: matrix instructions wait for each other\n{text}"
        assert spilled(text) == 0, f"{name}\n{text}"
