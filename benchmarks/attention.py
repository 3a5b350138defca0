"""Forward and backward pass of our attention over `jax.nn.dot_product_attention`'s, on CPU.

    python benchmarks/attention.py [--json]

Both take turns in one process; the figure is the median of the ratios of neighbouring calls (below 1: ours
is faster).
"""

import argparse
import json
import statistics
import time

import jax

from slicedice.model.attention import causal_mix  # written out on CPU, the library's own elsewhere

jax.config.update("jax_platforms", "cpu")

TURNS = 25
SHAPES = ((32, 128, 4, 16), (4, 1024, 8, 64))


def main() -> None:
    """Measures and prints a line for each shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    ratios = {}
    for shape in SHAPES:
        inputs = tuple(jax.random.normal(jax.random.key(i), shape) for i in range(3))
        ours = gradient(causal_mix)
        library = gradient(lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True))
        for function in (ours, library):
            jax.block_until_ready(function(*inputs))
        pairs = [(seconds(ours, inputs), seconds(library, inputs)) for _ in range(TURNS)]
        ratios[f"{shape} over the library"] = ratio = round(statistics.median(a / b for a, b in pairs), 3)
        if not options.json:
            print(f"{jax.devices()[0].device_kind} {shape}: {ratio:.2f} of the library's time")
    if options.json:
        print(json.dumps({"ratios": ratios}))


def gradient(function):
    """The compiled gradient of a scalar of `function` by all three inputs."""
    return jax.jit(jax.grad(lambda *x: (function(*x) ** 2).sum(), argnums=(0, 1, 2)))


def seconds(function, inputs) -> float:
    """Time of one call."""
    begin = time.perf_counter()
    jax.block_until_ready(function(*inputs))
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
