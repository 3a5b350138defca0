"""The folder where runs live: the only truth about what has been trained. Knows specs, and no model."""

from slicedice.store import metrics
from slicedice.store.attempt import Attempt
from slicedice.store.claim import Claim, Onlooker
from slicedice.store.kinds import Kind, RunState
from slicedice.store.launches import Launch
from slicedice.store.run import RunFolder
from slicedice.store.store import Store, StoreError

__all__ = ["Attempt", "Claim", "Kind", "Launch", "Onlooker", "RunFolder", "RunState", "Store", "StoreError", "metrics"]
