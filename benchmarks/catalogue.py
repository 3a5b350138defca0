"""What there is to measure: for each script of this folder, what it needs, and what its ratios should be.

A script prints, with --json, an object whose `ratios` are numbers by name. A ratio's name says what it is; the first
bound whose pattern matches the name says which way is better, what is wanted, and how much of a change is noise.
"""

import fnmatch
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from slicedice import machine

FOLDER = Path(__file__).parent
GPU_SECONDS = 479
"""For the group `gpu`, which is to run unattended in under 8 minutes."""

QUICK_MINUTES = 2
NEEDS = {
    "gpu": ("a GPU that JAX can use", lambda: bool(machine.has_accelerator() and machine.gpus())),
    "libtpu": ("the libtpu package: pip install 'slicedice[tpu]'", lambda: _installed("libtpu")),
    "transformers": (
        "transformers and torch: pip install 'slicedice[benchmarks]'",
        lambda: _installed("transformers", "torch"),
    ),
}
"""What a benchmark may need: in words, and whether it is here."""


@dataclass(frozen=True)
class Bound:
    """What is known of the ratios whose names match a pattern.

    better: "one" for what should be 1, and is as bad above as below.
    target: what is wanted; for "one" as far from 1 as may be. None where a ratio is only watched.
    noise: the factor by which a ratio may be worse than the stored one before that is a regression.
    """

    pattern: str
    better: Literal["higher", "lower", "one"]
    target: float | None = None
    noise: float = 1.5

    def worse(self, ratio: float, than: float) -> float:
        """The factor by which a ratio is worse than another; below 1 where it is better."""
        if self.better == "higher":
            ratio, than = than, ratio
        elif self.better == "one":
            ratio, than = (max(x, 1 / x) if x > 0 else float("inf") for x in (ratio, than))
        if ratio == than:
            return 1.0
        return ratio / than if than else float("inf")

    def meets(self, ratio: float) -> bool:
        """Whether a ratio is what is wanted, or nothing is."""
        return self.target is None or self.worse(ratio, self.target) <= 1


@dataclass(frozen=True)
class Benchmark:
    """A script.

    name: its file, without the suffix.
    measures: in a line.
    minutes: that it takes, about.
    bounds: of its ratios.
    needs: of NEEDS.
    arguments: for the script.
    only_cpu: it measures the processor, whatever else is here.
    gpu_seconds: its share of the time of the group `gpu`; 0 if it is not in that.
    """

    name: str
    measures: str
    minutes: float
    bounds: tuple[Bound, ...]
    needs: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    only_cpu: bool = True
    gpu_seconds: int = 0

    @property
    def path(self) -> Path:
        """The script."""
        return FOLDER / f"{self.name}.py"

    def missing(self) -> list[str]:
        """What it needs and is not here, in words."""
        return [NEEDS[need][0] for need in self.needs if not NEEDS[need][1]()]

    def bound(self, ratio: str) -> Bound:
        """That of a ratio.

        Raises:
          KeyError: there is none.
        """
        for bound in self.bounds:
            if fnmatch.fnmatchcase(ratio, bound.pattern):
                return bound
        raise KeyError(f"{self.name} printed a ratio {ratio!r}, of which benchmarks/catalogue.py knows no bound")


def _installed(*packages: str) -> bool:
    return all(importlib.util.find_spec(package) for package in packages)


BENCHMARKS = (
    Benchmark(
        "versus_transformers",
        "tokens a second of our step over transformers' with PyTorch",
        10,
        (Bound("*", "higher", 2.0),),
        needs=("transformers",),
    ),
    Benchmark(
        "peak",
        "utilization of a training step over the measured rate of a large matrix product",
        1,
        (Bound("*chunks over kernels", "higher", 3.0), Bound("10m *", "higher", 0.5), Bound("*", "higher")),
        only_cpu=False,
        gpu_seconds=104,  # the checks of kernels at their first use are the first benchmark's
    ),
    Benchmark(
        "active_flops",
        "time of an MoE step over the dense step's at equal active FLOPs, and what the optimizer's bytes explain",
        2,
        (
            Bound("bytes of growth*", "higher", 0.8, noise=3.0),
            Bound("10m *", "lower", 1.3),
            Bound("*", "lower", 1.6),
        ),
        only_cpu=False,
        gpu_seconds=70,
    ),
    Benchmark(
        "whole_machine",
        "tokens a second of a sweep's workers together over one process on all cores",
        2,
        (Bound("*", "higher", 1.7, noise=1.25),),
    ),
    Benchmark(
        "packing",
        "runs an hour when a device trains several at once, over one at a time",
        2.5,
        (Bound("10m *", "higher", 5.0), Bound("*", "higher")),
        only_cpu=False,
        gpu_seconds=150,
    ),
    Benchmark(
        "measured_steps",
        "memory of a step by our arithmetic over the compiler's, and the MoE step's time over the dense one's",
        1.5,
        (Bound("*time over dense*", "lower", 1.3), Bound("*", "one", 1.15, noise=1.1)),
        needs=("gpu",),
        arguments=("--only", "10m *"),
        only_cpu=False,
        gpu_seconds=75,
    ),
    Benchmark(
        "grouped_matmul",
        "grouped matmul and expert FFN over a dense product, ragged_dot and the roofline",
        3,
        (
            Bound("*over dense*", "lower", 2.0),
            Bound("*of roofline*", "higher"),
            Bound("* over 512*", "lower"),
            Bound("*over ours*", "higher"),
        ),
        arguments=("--quick",),
        only_cpu=False,
        gpu_seconds=80,
    ),
    Benchmark(
        "overhead",
        "share of workers' time outside compiled steps in a sweep at nano; time waiting for a batch over a step's",
        5,
        (
            Bound("input stall*", "lower", 0.01, noise=4.0),
            Bound("steps compiled*", "lower", 1.0, noise=1.0),
            Bound("outside of compiled steps*", "lower", 0.10),
            Bound("outside of training steps*", "lower"),
        ),
    ),
    Benchmark(
        "nano_step",
        "tokens a second of the nano MoE step over the dense step's, one core",
        1.5,
        (Bound("blocks *", "higher"), Bound("*", "higher", 0.60, noise=1.25)),
    ),
    Benchmark(
        "attention",
        "time of our attention over jax.nn.dot_product_attention's",
        0.5,
        (Bound("*", "lower", 1.0),),
    ),
    Benchmark(
        "prepare",
        "tokens a second of `data prepare` over those of the tokenizer library alone",
        3,
        (Bound("*", "higher", 1.0, noise=1.4),),
    ),
    Benchmark(
        "report",
        "time of status and report over 3,000 entries of a store, over the time they may take",
        3,
        (Bound("*", "lower", 1.0, noise=2.0),),
    ),
    Benchmark(
        "sweep",
        "time and memory of the default sweep, and of doors with nothing to train, over what they may take",
        14,
        (Bound("*", "lower", 1.0, noise=1.6),),
    ),
    Benchmark(
        "recipe",
        "how often a recipe's interval holds the truth, on results made from known laws",
        5,
        (Bound("*", "higher", 0.95, noise=1.1),),
    ),
    Benchmark(
        "compiled_steps",
        "memory of steps on pods by our arithmetic over the TPU compiler's",
        75,
        (Bound("*", "one", 1.15, noise=1.05),),
        needs=("libtpu",),
    ),
    Benchmark(
        "tpu_compile",
        "share of the TPU kernels that compile; VMEM over what the chip has",
        20,
        (Bound("*compile*", "higher", 1.0, noise=1.0), Bound("*VMEM*", "lower", 1.0, noise=1.05)),
        needs=("libtpu",),
    ),
)
OTHERS = {"grouped_matmul_chart": "draws what `grouped_matmul.py --save` measured, into docs/"}
"""Scripts that measure nothing."""

GROUPS = {
    "quick": tuple(b for b in BENCHMARKS if b.minutes <= QUICK_MINUTES and not b.needs),
    "all": BENCHMARKS,
    "gpu": tuple(b for b in BENCHMARKS if b.gpu_seconds),
}
assert sum(benchmark.gpu_seconds for benchmark in GROUPS["gpu"]) <= GPU_SECONDS
