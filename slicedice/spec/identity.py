"""A run's id and name, and the key of the program that trains it.

The id is the first 12 hex digits of the sha256 of the canonical JSON of the resolved spec with the schema
version. Two grids that share a point share the run. The scale's label, git revisions, devices and package
versions never enter it.
"""

import dataclasses
import functools
import hashlib
import json
import types
import typing
from fractions import Fraction
from typing import Any

from slicedice.spec.run import Execution, RunSpec

SCHEMA = 1
"""Raised when the same spec comes to mean another experiment: old results are then never taken for new."""

TRACED = ("seed", "optimizer.learning_rate", "optimizer.weight_decay", "router.alpha", "router.gamma")
"""Numbers that reach a compiled program as arguments, so that runs differing only in them share it."""

UNCOMPILED = {
    "spec": ("scale", "evaluation"),
    "data": ("source", "tokenizer", "heldout_fraction", "tokens"),
    "execution": (
        "checkpoint_seconds",
        "evaluation_sets",
        "evaluation_tasks",
        "evaluation_data",
        "evaluate_every",
        "lanes",
        "writers",
    ),
}
"""Fields of a spec, of its data and of an execution that no training program knows of."""


def to_dict(spec: Any) -> Any:
    """A spec as JSON types: fractions as "1/4", tuples as lists."""
    if spec is None or isinstance(spec, (str, int, float)):  # first, since most of a spec is that
        return spec
    if dataclasses.is_dataclass(spec):
        later = _later(type(spec))
        values = ((name, getattr(spec, name)) for name in _names(type(spec)))
        return {name: to_dict(value) for name, value in values if value is not None or name not in later}
    if isinstance(spec, Fraction):
        return str(spec)
    return [to_dict(item) for item in spec]


def flat(spec: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of a spec by dotted name; expert sets as one text."""
    leaves: dict[str, Any] = {}
    for name in _names(type(spec)):
        value = getattr(spec, name)
        if dataclasses.is_dataclass(value):
            leaves |= flat(value, f"{prefix}{name}.")
        else:
            leaves[prefix + name] = " + ".join(map(str, value)) if isinstance(value, tuple) else value
    return leaves


@functools.cache
def _names(kind: type) -> tuple[str, ...]:
    """The fields of a dataclass, which are asked for thousands of times."""
    return tuple(field.name for field in dataclasses.fields(kind))


@functools.cache
def _later(kind: type) -> frozenset[str]:
    """The fields of a dataclass that specs did not always have."""
    return frozenset(field.name for field in dataclasses.fields(kind) if field.metadata.get("later"))


def differences(one: RunSpec, other: RunSpec) -> dict[str, tuple[Any, Any]]:
    """The fields in which two specs differ, by dotted name, with the value of each; None is "has no effect there"."""
    a, b = flat(one), flat(other)
    return {name: (a[name], b[name]) for name in a if a[name] != b[name]}


def canonical_json(spec: RunSpec) -> str:
    """The spec with its schema version as one canonical line of JSON."""
    return _canonical({"schema": SCHEMA, **to_dict(spec)})


def from_json(text: str) -> RunSpec:
    """Reads back what `canonical_json` wrote.

    Raises:
      ValueError: the text is of another schema or is no spec.
    """
    content = _read(text)
    try:
        return _build(RunSpec, content)
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a run spec of schema {SCHEMA}: {error}") from error


def _read(text: str) -> dict[str, Any]:
    content = json.loads(text)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise ValueError(f"not a run spec of schema {SCHEMA}")
    return content


def _build(kind: Any, content: Any) -> Any:
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        given = {name: hint for name, hint in hints.items() if name in content or name not in _later(kind)}
        return kind(**{name: _build(hint, content[name]) for name, hint in given.items()})
    if isinstance(kind, types.UnionType):
        return None if content is None else _build(typing.get_args(kind)[0], content)
    if typing.get_origin(kind) is tuple:
        return tuple(_build(typing.get_args(kind)[0], item) for item in content)
    return kind(content)


def run_id(spec: RunSpec) -> str:
    """The 12 hex digits that name a run's folder."""
    return _id({"schema": SCHEMA, **to_dict(spec)})


def id_of_json(text: str) -> str:
    """The id of the run that `canonical_json` wrote, a few times faster than by building its spec.

    Raises:
      ValueError: the text is of another schema or is no spec.
    """
    return _id(_read(text))


def _id(content: dict[str, Any]) -> str:
    hashed = {name: value for name, value in content.items() if name != "scale"}
    return hashlib.sha256(_canonical(hashed).encode()).hexdigest()[:12]


def _canonical(content: dict[str, Any]) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def run_name(spec: RunSpec) -> str:
    """A name for people, such as `nano-g1/4-n32-s8-dropless-seed0`. Names may repeat; ids do not."""
    layer, router = spec.model.layer, spec.router
    if layer.is_dense:
        parts = [spec.scale, "dense"]
    else:
        sets = layer.experts
        parts = [
            spec.scale,
            "g" + "+".join(str(e.g) for e in sets),
            "n" + "+".join(str(e.n) for e in sets),
            f"s{layer.sparsity}",
            str(router.kind),
        ]
        if layer.generalist:
            parts.append(f"gen{layer.generalist}-{layer.wiring}")
        if router.alpha not in (None, 0.01):
            parts.append(f"alpha{router.alpha:g}")
        if router.gamma:
            parts.append(f"gamma{router.gamma:g}")
    return "-".join([*parts, f"seed{spec.seed}"])


def program_key(spec: RunSpec, execution: Execution) -> str:
    """What XLA compiles, as 12 hex digits: equal for runs that differ only in `TRACED` numbers."""
    content = {"spec": to_dict(spec), "execution": to_dict(execution)}
    parts = {**content, "data": content["spec"]["data"]}
    for part, fields in UNCOMPILED.items():
        for field in fields:
            parts[part].pop(field, None)
    for field in TRACED:
        *parents, leaf = field.split(".")
        node = content["spec"]
        for parent in parents:
            node = node[parent]
        node[leaf] = None
    return hashlib.sha256(_canonical(content).encode()).hexdigest()[:12]
