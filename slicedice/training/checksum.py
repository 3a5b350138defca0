"""Checksums of arrays, by which a checkpoint shows that it is read back as it was saved.

Orbax notices files that are gone or torn, and not that a byte of an array is another one. So each array's checksum is
saved beside it, in the same checkpoint. It is computed where the array lies, before it leaves the device and after it
is back: no file is read for it, and it is the same on every mesh. In a CPU's memory that is done without compiling
anything, which would take longer than the sums of a small run's checkpoints.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from slicedice.training import compilations

T = TypeVar("T", Array, np.ndarray)

NAME = "checksums"
"""Of the array of all checksums, among those that are saved."""

AT_ONCE = 1 << 16
"""Numbers that are mixed at a time, in memory."""


def shape(leaves: Mapping[str, Any], sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    """What the checksums of arrays are an array of, if they are to lie on all devices of `sharding`."""
    return jax.ShapeDtypeStruct((len(leaves),), jnp.uint32, sharding=sharding)


def checksums(leaves: Mapping[str, Array], sharding: jax.sharding.Sharding | None = None) -> UInt32[Array, " N"]:
    """The checksum of each of N arrays, in order of their names; all processes that have a part of them have to ask.

    Args:
      leaves: the arrays.
      sharding: where the checksums are to lie; None for any of the arrays' devices.
    """
    if all(_in_memory(leaf) for leaf in leaves.values()):
        sums = np.array([_checksum_here(np.asarray(leaves[name])) for name in sorted(leaves)], np.uint32)
        devices = next(iter(leaves.values())).devices()
        return jax.device_put(sums, sharding or min(devices, key=lambda device: device.id))
    return _compiled(sharding)(leaves)


def _in_memory(leaf: Array) -> bool:
    return leaf.is_fully_addressable and all(device.platform == "cpu" for device in leaf.devices())


@functools.cache
def _compiled(sharding: jax.sharding.Sharding | None) -> Callable[[Mapping[str, Array]], Array]:
    return jax.jit(_checksums, out_shardings=sharding, compiler_options=compilations.quick())


def _checksums(leaves: Mapping[str, Array]) -> Array:
    return jnp.stack([_checksum(leaves[name]) for name in sorted(leaves)])


def changed(leaves: Mapping[str, Array]) -> list[str]:
    """Names of the arrays that are not as they were when the checksums among them were computed.

    All processes that have a part of the arrays have to ask, and all are told the same.
    """
    arrays = {name: leaf for name, leaf in leaves.items() if name != NAME}
    saved = leaves[NAME]
    differ = checksums(arrays, saved.sharding) != saved
    return [name for name, differs in zip(sorted(arrays), np.asarray(differ), strict=True) if differs]


def _checksum(x: Array) -> UInt32[Array, ""]:
    """A sum, modulo 2^32, over the array's numbers, each mixed with its place.

    Mixing is one-to-one (it ends with the finalizer of MurmurHash3), so that a change of one number is never missed;
    one of several is, once in 2^32 times.
    """
    bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return _mixed(bits, place).sum(dtype=jnp.uint32)


def _checksum_here(x: np.ndarray) -> int:
    """The same, some numbers at a time, so that they stay in a core's cache."""
    bits, total = np.ascontiguousarray(x).reshape(-1).view(f"uint{8 * x.dtype.itemsize}"), 0
    for begin in range(0, bits.size, AT_ONCE):
        part = bits[begin : begin + AT_ONCE].astype(np.uint32)
        total += int(_mixed(part, np.arange(begin, begin + part.size).astype(np.uint32)).sum(dtype=np.uint64))
    return total % 2**32


def _mixed(bits: T, place: T) -> T:
    """Of whole numbers of 32 bits."""
    mixed = bits ^ (place * np.uint32(0x9E3779B1))
    mixed = (mixed ^ (mixed >> 16)) * np.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 13)) * np.uint32(0xC2B2AE35)
    return mixed ^ (mixed >> 16)
