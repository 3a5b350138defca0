"""Runs that ended, without training them."""

from typing import Any

from slicedice.store import Kind, RunFolder


def finish(folder: RunFolder, kind: Kind, content: dict[str, Any]) -> None:
    """Leaves a result as an undisturbed attempt does, in place of any that is there."""
    (folder.path / "result.json").unlink(missing_ok=True)
    claim = folder.claim()
    assert claim
    claim.finish(kind, content)


def fail(folder: RunFolder, kind: Kind, reason: str) -> None:
    """Leaves an attempt that ended without a result."""
    claim = folder.claim()
    assert claim
    claim.fail(kind, reason)
