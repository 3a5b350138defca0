"""Values of files that others may have damaged, as columns of a table may hold them."""

import math
from typing import Any


def number(value: Any) -> float | None:
    """A measurement; None for what is not a finite number, which is none and nothing that JSON could say.

    Raises:
      TypeError: it is something else.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{type(value).__name__} is no number")
    return float(value) if math.isfinite(value) else None


def text(value: Any) -> str | None:
    """A text, or None.

    Raises:
      TypeError: it is something else.
    """
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} is no text")
    return value
