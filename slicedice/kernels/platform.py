"""What kind of device is compiled for."""

from typing import Any

import jax


def platform() -> str:
    """The kind of the default device, "cpu", "gpu" or "tpu"; inside `jax.default_device` it may be one not here."""
    config: Any = jax.config
    device = config.jax_default_device
    return jax.default_backend() if device is None else getattr(device, "platform", device)
