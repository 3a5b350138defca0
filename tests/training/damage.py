"""Damage to what Orbax has written."""

from pathlib import Path

DAMAGES = "cut", "overwritten", "removed", "flipped"


def damage(folder: Path, how: str) -> None:
    """Damages every file of array data below `folder`, or has one bit of the arrays flip."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.parent.name == "d"]
    assert files
    if how == "flipped":
        largest = max(files, key=lambda path: path.stat().st_size)
        flip(largest, largest.stat().st_size // 2, 3)
        return
    for path in files:
        if how == "removed":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:20] if how == "cut" else b"x" * path.stat().st_size)


def flip(path: Path, place: int, bit: int) -> None:
    """Flips one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)
