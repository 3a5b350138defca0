"""How texts from a command line become values."""

from collections.abc import Callable
from typing import Any

READ: dict[type, Callable[[str], Any]] = {
    bool: {"true": True, "false": False, "True": True, "False": False}.__getitem__,
    int: int,
    float: float,
    str: str,
}
"""By the type of the value that the text replaces; each raises KeyError or ValueError for a text that is none."""
