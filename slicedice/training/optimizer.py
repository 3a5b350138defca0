"""AdamW as the study used it: clipped, decayed everywhere, warmed up, then a cosine."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from slicedice.kernels import is_native, native
from slicedice.spec import OptimizerSpec

T = TypeVar("T")


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


def updated(
    spec: OptimizerSpec,
    params: T,
    grads: T,
    state: Any,
    learning_rate: Float[Array, ""],
    weight_decay: Float[Array, ""],
    *,
    sharded: bool,
) -> tuple[T, Any, Float[Array, ""]]:
    """One step of `adamw`: new parameters, new state, and the norm of the gradients.

    On CPU it is a kernel that reads and writes each number once, where there is a C++ compiler and all are in float32:
    XLA goes over them four times, and compiles as many loops for each array.

    Args:
      spec: of the run.
      params: a tree of arrays.
      grads: theirs, not clipped.
      state: of `adamw(...).init(params)`.
      learning_rate: of this step.
      weight_decay: times the learning rate, what all parameters lose.
      sharded: whether arrays are spread over devices, as XLA does what is no kernel.
    """
    in_float32 = all(x.dtype == jnp.float32 for x in jax.tree.leaves((params, grads)))
    if sharded or not in_float32 or not is_native():
        updates, state = adamw(spec, learning_rate, weight_decay).update(grads, state, params)  # pyright: ignore
        return optax.apply_updates(params, updates), state, optax.tree.norm(grads)  # pyright: ignore
    clipping, adam, *others = state
    count = optax.safe_increment(adam.count)
    norm = jnp.sqrt(native.sum_of_squares(jax.tree.leaves(grads)))
    factor = jnp.where(norm < spec.clip, 1.0, spec.clip / norm)
    corrections = (1 - jnp.float32(beta) ** count for beta in (spec.b1, spec.b2))
    numbers = jnp.stack([factor, learning_rate, weight_decay, *corrections])
    arrays: Any = map(jax.tree.leaves, (params, adam.mu, adam.nu, grads))
    new = native.adamw(numbers, *arrays, b1=spec.b1, b2=spec.b2, eps=spec.eps)
    params, mu, nu = (jax.tree.unflatten(jax.tree.structure(params), leaves) for leaves in new)
    return params, (clipping, adam._replace(count=count, mu=mu, nu=nu), *others), norm


def rate_at(spec: OptimizerSpec, steps: int, step: Int[Array, ""], peak: Float[Array, ""]) -> Float[Array, ""]:
    """The learning rate of `step`, counted from 0."""
    return peak * jnp.asarray(learning_rate_shape(spec, steps)(step), jnp.float32)
