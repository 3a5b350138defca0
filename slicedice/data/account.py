"""The account of a reading: how far it is, and what could not be used, refused at once or counted and named.

Nothing may ever be passed over in silence: a text missing from training is found out by nobody.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

from slicedice.data.errors import Unusable

NAMED = 20
"""Problems of each kind that are named; the rest is only counted."""


class Account:
    """What is told of one reading of a source.

    Args:
      skip: whether what cannot be used is passed over; otherwise the first ends the reading.

    Attributes:
      counts: how many there were, by kind. Blank documents are counted and never refused: there is nothing in them.
      named: the first of each kind, as messages that name file and line.
      tell: how many bytes of the file that is being read, as it lies on disk, have been read.
    """

    def __init__(self, *, skip: bool) -> None:
        self.skip = skip
        self.counts: Counter[str] = Counter()
        self.named: dict[str, list[str]] = {}
        self.tell: Callable[[], int] = lambda: 0

    def add(self, kind: str, message: str) -> None:
        """Notes that something cannot be used.

        Args:
          kind: what is wrong, in a word or two.
          message: one paragraph that names file and line and says what would be valid.

        Raises:
          Unusable: with the message, where problems are refused.
        """
        if not self.skip:
            raise Unusable(message)
        self.note(kind, message)

    def note(self, kind: str, message: str) -> None:
        """Counts what is passed over in any case."""
        self.counts[kind] += 1
        named = self.named.setdefault(kind, [])
        if len(named) < NAMED:
            named.append(message)

    def state(self) -> dict[str, Any]:
        """The account as JSON types."""
        return {"counts": dict(self.counts), "named": {kind: list(told) for kind, told in self.named.items()}}

    def take(self) -> dict[str, Any]:
        """What `state` says, and begins anew."""
        state = self.state()
        self.counts, self.named = Counter(), {}
        return state

    def include(self, state: dict[str, Any]) -> None:
        """Adds what `state` or `take` returned, of another account or an earlier one."""
        self.counts.update(state["counts"])
        for kind, told in state["named"].items():
            self.named[kind] = [*self.named.get(kind, []), *told][:NAMED]
