"""Metrics of runs for people to watch: TensorBoard, Weights & Biases, and any other writer of clu's interface.

Nothing reads them back: `metrics.jsonl` and `evaluations.jsonl` in a run's folder stay the truth, and whatever a writer
does, the run goes on. Importing this room imports none of their packages, and no JAX.
"""

from slicedice.writers.installed import require_installed
from slicedice.writers.run import RunWriter

__all__ = ["RunWriter", "require_installed"]
