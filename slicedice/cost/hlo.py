"""What a compiled program sends between devices, read off its HLO text.

Sizes are those of the ring algorithms, bytes that a device receives: of g devices, a gather or a scattered sum of S
bytes in all takes (g-1)/g * S, a sum that all have twice that.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")

_WIDTH = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8}
_WIDTH |= {"u64": 8, "f64": 8, "f8e4m3fn": 1, "f8e5m2": 1}
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(rf"^\s*(?:ROOT )?%?[\w.\-]+ = (.+?) ({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z\d]*)\[([\d,]*)\]")


class Collective(NamedTuple):
    """One kind of transfer of a step.

    kind: one of `KINDS`. shape: of its result, as in "bf16[832,832]". count: how often in a step.
    received: bytes that a device receives by it in a step.
    """

    kind: str
    shape: str
    count: int
    received: float


def collectives(text: str) -> list[Collective]:
    """Every transfer of a compiled program, loops counted as often as they turn; the largest first.

    Args:
      text: the optimised HLO, `Compiled.as_text()`.

    Raises:
      ValueError: it says in a way that is not known here how large a transfer is, between whom, or how often.
    """
    computations = _computations(text)
    counts: Counter[tuple[str, str]] = Counter()
    received: dict[tuple[str, str], float] = {}
    entry = next(name for name, (is_entry, _) in computations.items() if is_entry)
    for name, lines, turns in _reached(entry, computations, 1):
        if _goes_on(name, lines):
            continue
        for line in lines:
            if found := _INSTRUCTION.match(line):
                if turns is None:
                    raise ValueError(f"How often the loop of {name} turns is not said, and it sends: {line.strip()}")
                result, kind, start = found.groups()
                arrays = _ARRAY.findall(result)
                if start and kind == "collective-permute":  # operand, result, and what goes on
                    arrays = arrays[:1]
                elif start and kind != "all-reduce":  # operands, then results
                    arrays = arrays[len(arrays) // 2 :]
                size = sum(_bytes(dtype, dims) for dtype, dims in arrays)
                if kind == "ragged-all-to-all":
                    size = min(size, _first_operand(line, lines))
                received_ = _received(kind, size, _group(line))
                if kind == "all-reduce" and "all-reduce-scatter" in name:
                    # How TPUs write a sum of which each device gets its share.
                    kind, received_ = "reduce-scatter", received_ / 2
                key = kind, " ".join(f"{dtype}[{dims}]" for dtype, dims in arrays)
                counts[key] += turns
                received[key] = received.get(key, 0.0) + turns * received_
    found = [Collective(*key, counts[key], received[key]) for key in counts]
    return sorted(found, key=lambda one: -one.received)


def _first_operand(line: str, lines: list[str]) -> int:
    """Bytes of what a ragged exchange sends from: of buffers on the two sides the smaller is the fuller."""
    name = re.search(r"ragged-all-to-all(?:-start)?\((?:[a-z]+\d*\[[^ ]* )?%?([\w.\-]+)", line)
    assert name is not None
    made = next(other for other in lines if re.match(rf"\s*(?:ROOT )?%?{re.escape(name[1])} = ", other))
    return max(_bytes(dtype, dims) for dtype, dims in _ARRAY.findall(made.split(" = ", 1)[1].split("(%", 1)[0]))


def _computations(text: str) -> dict[str, tuple[bool, list[str]]]:
    found: dict[str, tuple[bool, list[str]]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if head := _HEAD.match(line):
            lines = []
            found[head[2]] = bool(head[1]), lines
        else:
            lines.append(line)
    return found


def _goes_on(name: str, lines: list[str]) -> bool:
    """Whether a transfer here is one that has started elsewhere: TPUs write it out wherever it goes on."""
    return "async_collective_fusion" in name or any("AsyncCollectiveDone" in line for line in lines)


def _reached(name: str, computations: dict, turns: int | None) -> Iterator[tuple[str, list[str], int | None]]:
    """The lines of a computation and of all that it calls, with how often each is; None: it is not said."""
    lines = computations[name][1]
    yield name, lines, turns
    for line in lines:
        loop = re.search(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)", line)
        if loop:
            own = _turns(line, [line for _, lines, _ in _reached(loop[1], computations, 1) for line in lines])
            yield from _reached(loop[2], computations, turns and own and turns * own)
            continue
        called = re.findall(r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)", line)
        for branches in re.findall(r"branch_computations=\{([^}]*)\}", line):
            called += re.findall(r"%?([\w.\-]+)", branches)
        for one in called:
            if one in computations:
                yield from _reached(one, computations, turns)


def _turns(line: str, condition: list[str]) -> int | None:
    """How often a loop turns: what the compiler says, or else what its counter is compared with; None if neither."""
    if known := re.search(r"known_trip_count[^\d]*(\d+)", line):
        return int(known[1])
    limits = [int(number) for text in condition for number in re.findall(r"s32\[\][^=]* constant\((\d+)\)", text)]
    return max(limits, default=None)


def _group(line: str) -> int:
    """How many devices take part together, in any of the three ways that XLA writes groups of them.

    Raises:
      ValueError: it is written in a fourth.
    """
    if "source_target_pairs=" in line:
        return 2
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", line):  # every group: {{0,1},{2,3}}
        return len(listed[1].split(","))
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]", line):  # groups by devices of each: [2,2]<=[4]
        return int(iota[1])
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line):  # mesh['x'=2,'y'=2] {'x'}
        sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        parts = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named[2])  # of an axis all, or one factor of it
        return math.prod(int(part) if part else sizes[axis] for axis, part in parts)
    raise ValueError(f"The devices of a transfer are written in a way that is not known here: {line.strip()}")


def _received(kind: str, size: int, devices: int) -> float:
    share = (devices - 1) / devices
    if kind == "all-reduce":
        return 2 * share * size
    if kind == "reduce-scatter":
        return (devices - 1) * size  # its result is one share
    return float(size) if kind == "collective-permute" else share * size


def _bytes(dtype: str, dims: str) -> int:
    if dtype not in _WIDTH:
        raise ValueError(f"How many bytes a value of {dtype} takes is not known here.")
    size = _WIDTH[dtype]
    for dim in filter(None, dims.split(",")):
        size *= int(dim)
    return size
