"""Kernels in C++ give the same bits whatever the number of threads: a run taken up elsewhere may have another."""

import os
import subprocess
import sys

import pytest

from slicedice.kernels import is_native

CHILD = """
import hashlib, os, sys
import jax, jax.numpy as jnp, numpy as np
from slicedice.kernels import is_native, grouped_matmul, native
from slicedice.model.attention import causal_mix
from slicedice.model.norm import RMSNorm
from slicedice.moe import dispatch, routing
from slicedice.moe.native_experts import native_experts, native_gated

assert is_native()
rng = np.random.default_rng(int(sys.argv[1]))

def draw(*shape):
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)

def norm(x):
    return RMSNorm(x.shape[-1]).rotated(x, 2)

def experts(x, logits, gate, up, down):
    probabilities, _ = routing.probabilities(logits)
    chosen, weights = routing.select(probabilities, jnp.zeros(gate.shape[0]), 4)
    plan = dispatch.plan(routing.Assignment(chosen, weights, jnp.ones(chosen.shape, bool)), gate.shape[0], 1)
    return native_experts(x, weights, gate, up, down, plan)

def steps(params, grads):
    numbers = jnp.stack([1 / jnp.sqrt(native.sum_of_squares([grads])), 0.1, 0.2, 0.3, 0.4])
    return native.adamw(numbers, [params], [grads], [grads**2], [grads], b1=0.9, b2=0.95, eps=1e-8)[0][0]

def product(lhs, rhs):
    return grouped_matmul(lhs, rhs, jnp.array([300, 0, 7, 493]))

def show(function, *results):
    bits = b"".join(np.asarray(x).tobytes() for x in results)
    print(function.__name__, hashlib.sha256(bits).hexdigest())

sides = {
    norm: [draw(4, 500, 40)],
    causal_mix: [draw(2, 200, 3, 16) for _ in range(3)],
    native_gated: [draw(900, 70), draw(900, 70)],
    experts: [draw(900, 24), draw(900, 16), draw(16, 24, 8), draw(16, 24, 8), draw(16, 8, 24)],
    product: [draw(800, 24), draw(4, 24, 16)],
}
for function, arrays in sides.items():
    out, pull = jax.vjp(jax.jit(function), *arrays)
    show(function, out, *pull(jnp.cos(out)))
show(steps, jax.jit(steps)(draw(300, 300), draw(300, 300)))
"""


@pytest.mark.skipif(not is_native(), reason="needs the CPU and a C++ compiler")
def test_the_same_bits_on_any_number_of_threads(rng):
    seed = str(rng.integers(2**31))
    said = []
    for threads in ("1", "2", "5"):
        environment = os.environ | {"NPROC": threads, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
        done = subprocess.run([sys.executable, "-c", CHILD, seed], env=environment, stdout=subprocess.PIPE, text=True)
        assert done.returncode == 0
        said.append(done.stdout.splitlines())
    assert len(said[0]) == 6
    assert said[0] == said[1] == said[2]
