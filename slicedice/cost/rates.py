"""Devices: how fast they are, what they hold, and how fast they hear from each other."""

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Rate:
    """What one device does, where a device is what JAX calls one.

    peak: dense bf16 matmul FLOP/s from the maker's data sheet; for "cpu", float32 as measured.
    utilization: the share of it assumed to be sustained; of "cpu" and "h200" as measured, else a guess.
    memory: bytes that programs may use: of a TPU what its compiler says; of others, of the whole device. 0: unknown.
    links: bytes a second that it receives from others of its slice or machine: half of what makers' data sheets call
      bidirectional.
    network: the same with other slices or machines; its share of the host's network.
    dimensions: of the grid that a topology of it is written as; 0 if it makes none.
    per_chip: how many devices one chip is.
    logits: of a TPU, what its compiler holds of logits and their gradient, over logits in float32.
    """

    peak: float
    utilization: float
    memory: int = 0
    links: float = 0.0
    network: float = 0.0
    dimensions: int = 0
    per_chip: int = 1
    logits: float = 0.0

    @property
    def is_tpu(self) -> bool:
        """Whether it is a TPU, whose slices are grids."""
        return self.dimensions > 1

    @property
    def sustained(self) -> float:
        """FLOP/s to divide by."""
        return self.peak * self.utilization


RATES = {
    # One core at 5 GHz with AVX-512: a large float32 matmul reaches 2e11; nano runs sustain a third of it.
    # Several are one machine's cores, whose links are its memory: guesses, both.
    "cpu": Rate(2e11, 0.3, links=10e9, network=1e9),
    "a100": Rate(312e12, 0.35, 80 * GIB, 300e9, 25e9, 1),
    # On an H200 without a mesh, 8 sequences at once: 9 to 16 % at 110m and 300m (benchmarks/measured_steps.py), before
    # attention was fused. At 10m it was 3 %, and is 17 with that and its cross-entropy's kernels (benchmarks/peak.py).
    "h100": Rate(989e12, 0.12, 80 * GIB, 450e9, 50e9, 1),
    "h200": Rate(989e12, 0.12, 141 * GIB, 450e9, 50e9, 1),
    # The network of v4 is a guess. A tpu7x chip is two devices, with half its memory each.
    # The gradient of logits is taken as it is used on v5e, lies in another memory space on v4, and is written out in
    # bfloat16 on the others.
    "v4": Rate(275e12, 0.35, int(30.75 * GIB), 300e9, 3.125e9, 3, logits=0.97),
    "v5e": Rate(197e12, 0.35, int(15.75 * GIB), 200e9, 3.125e9, 2, logits=0.97),
    "v5p": Rate(459e12, 0.35, int(95.74 * GIB), 600e9, 6.25e9, 3, logits=1.5),
    "v6e": Rate(918e12, 0.35, int(31.25 * GIB), 400e9, 12.5e9, 2, logits=1.5),
    "tpu7x": Rate(2307e12 / 2, 0.35, int(94.75 * GIB), 600e9 / 2, 12.5e9 / 2, 3, 2, logits=1.5),
}
"""By the name that `--device` takes."""
