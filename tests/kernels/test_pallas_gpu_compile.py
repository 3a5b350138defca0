"""The GPU kernels compiled to machine code for Hopper, by the compiler that runs on a device, without a device.

The compiler comes with JAX's CUDA plugin; no other of NVIDIA's packages is needed.
"""

import os
import re
import subprocess
import sys

import pytest

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
topology = topologies.get_topology_desc("", "cuda", topology="1x1x1", target_config=TARGET)
mesh = topologies.make_mesh(topology, (1,), ("x",))
here = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
m, d, f, e, alignment = map(int, sys.argv[1:])
arguments = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here) for x in shapes(m, d, f, e)]
jax.jit(partial(forward_and_back, alignment=alignment)).trace(*arguments).lower().compile()
"""


@pytest.mark.parametrize(
    ("m", "d", "f", "e", "alignment"), [(65536, 832, 52, 2048, 1), (65536, 832, 104, 64, 8), (65536, 432, 216, 64, 1)]
)
def test_compiles_to_machine_code(m, d, f, e, alignment, tmp_path):
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
