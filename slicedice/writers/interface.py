"""clu's interface of metric writers, without TensorFlow.

`import clu.metric_writers` imports TensorFlow, for one of its writers: in clu 0.0.12 2.6 seconds and 550 MB in every
worker. The interface itself needs none of it, and is what this room hands metrics to.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

PACKAGE = "clu.metric_writers"


def _interface() -> Any:
    """The module `clu.metric_writers.interface`, imported as if its package imported nothing else.

    What imports that package in earnest, before or after, gets the very same module.
    """
    name = f"{PACKAGE}.interface"
    found = importlib.util.find_spec("clu")
    if PACKAGE in sys.modules or found is None or found.origin is None:
        return importlib.import_module(name)
    bare = ModuleType(PACKAGE)
    bare.__path__ = [str(Path(found.origin).parent / "metric_writers")]
    sys.modules[PACKAGE] = bare
    try:
        return importlib.import_module(name)
    finally:
        del sys.modules[PACKAGE]


if TYPE_CHECKING:
    MetricWriter = Any
else:
    MetricWriter = _interface().MetricWriter


class ScalarWriter(MetricWriter):
    """Of clu's interface the part that runs use: numbers by step, and settings once."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError(f"{type(self).__name__} has write_scalars and write_hparams alone.")

    write_summaries = write_images = write_videos = write_audios = write_texts = write_histograms = _refuse
