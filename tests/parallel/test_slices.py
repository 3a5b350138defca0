"""A pod of several slices is cut into replicas along them, so that nothing else travels between slices."""

import importlib.util
import json
import subprocess
import sys

import pytest

# In a process of its own: the compiler that knows of pods takes its environment from before JAX is imported.
MESH = """
import json, os, sys
os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
import numpy as np
from jax.experimental import topologies
from slicedice.parallel.mesh import make_mesh
devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4", num_slices=2).devices
mesh = make_mesh(dict(zip(("replica", "data", "expert"), map(int, sys.argv[1:]))), devices)
print(json.dumps(np.vectorize(lambda device: device.slice_index)(mesh.devices).tolist()))
"""


def _mesh(*sizes: int) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", MESH, *map(str, sizes)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the libtpu package, which knows pods")
def test_replicas_are_slices():
    assert json.loads(_mesh(2, 4, 4).stdout) == [[[slice_] * 4] * 4 for slice_ in (0, 1)]
    assert json.loads(_mesh(2, 1, 16).stdout) == [[0] * 16, [1] * 16]
    refused = _mesh(1, 8, 4)
    assert refused.returncode == 1
    assert "2 slices of a pod take a mesh with replica=2" in refused.stderr
