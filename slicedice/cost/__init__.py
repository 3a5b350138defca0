"""What a run costs before it is launched: parameters, FLOPs, memory, hours; by arithmetic, without compiling."""

from slicedice.cost.estimate import Cost, cost
from slicedice.cost.footprint import memory
from slicedice.cost.rates import RATES, Rate

__all__ = ["RATES", "Cost", "Rate", "cost", "memory"]
