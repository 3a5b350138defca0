"""Speed of devices: what hours are estimated with."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rate:
    """FLOP/s that training sustains on one device.

    peak: dense bf16 matmul FLOP/s from the maker's data sheet; for "cpu", float32 as measured.
    utilization: the share of it assumed to be sustained; a guess until a run has been measured.
    """

    peak: float
    utilization: float

    @property
    def sustained(self) -> float:
        """FLOP/s to divide by."""
        return self.peak * self.utilization


RATES = {
    # One core at 5 GHz with AVX-512: a large float32 matmul reaches 2e11; nano runs sustain a third of it.
    "cpu": Rate(2e11, 0.3),
    "a100": Rate(312e12, 0.35),
    "h100": Rate(989e12, 0.35),
    "h200": Rate(989e12, 0.35),
    "v4": Rate(275e12, 0.35),
    "v5e": Rate(197e12, 0.35),
    "v5p": Rate(459e12, 0.35),
    "v6e": Rate(918e12, 0.35),
}
"""By the name that `--device` takes."""
