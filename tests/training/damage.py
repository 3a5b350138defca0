"""Damage to what Orbax has written."""

from pathlib import Path

DAMAGES = "cut", "overwritten", "removed"


def damage(folder: Path, how: str) -> None:
    """Damages every file of array data below `folder`."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.parent.name == "d"]
    assert files
    for path in files:
        if how == "removed":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:20] if how == "cut" else b"x" * path.stat().st_size)
