"""AdamW as the study used it: clipped, decayed everywhere, warmed up, then a cosine."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from slicedice.spec import OptimizerSpec


def learning_rate_shape(spec: OptimizerSpec, steps: int) -> optax.Schedule:
    """The schedule as a share of the peak: linear warm-up, then a cosine to `final_fraction` at `steps`."""
    warmup = min(spec.warmup_steps, steps)
    cosine = optax.cosine_decay_schedule(1.0, max(1, steps - warmup), alpha=spec.final_fraction)
    # Step 0 already learns: the ramp is (step + 1) / warmup.
    ramp = optax.linear_schedule(1.0 / max(1, warmup), 1.0, max(1, warmup - 1))
    return optax.join_schedules([ramp, cosine], [warmup])


def adamw(
    spec: OptimizerSpec, learning_rate: Float[Array, ""], weight_decay: Float[Array, ""]
) -> optax.GradientTransformationExtraArgs:
    """Clipping by global norm and AdamW (arXiv 1711.05101), decaying every parameter.

    Learning rate and weight decay are arrays, so that runs differing only in them share a program.
    """
    return optax.chain(
        optax.clip_by_global_norm(spec.clip),
        optax.scale_by_adam(spec.b1, spec.b2, spec.eps),
        optax.add_decayed_weights(weight_decay),  # pyright: ignore[reportArgumentType]
        optax.scale(-learning_rate),  # pyright: ignore[reportArgumentType]
    )


def rate_at(spec: OptimizerSpec, steps: int, step: Int[Array, ""], peak: Float[Array, ""]) -> Float[Array, ""]:
    """The learning rate of `step`, counted from 0."""
    return peak * jnp.asarray(learning_rate_shape(spec, steps)(step), jnp.float32)
