"""The folder where runs live: the only truth about what has been trained. Knows specs, and no model."""

from slicedice.store import metrics
from slicedice.store.launches import Launch
from slicedice.store.run import Kind, RunFolder, RunState
from slicedice.store.store import Store, StoreError

__all__ = ["Kind", "Launch", "RunFolder", "RunState", "Store", "StoreError", "metrics"]
