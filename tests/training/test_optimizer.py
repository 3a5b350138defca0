"""The schedule and AdamW against their formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slicedice.spec import OptimizerSpec
from slicedice.training.optimizer import adamw, rate_at, updated


def _spec(**fields) -> OptimizerSpec:
    study = {
        "learning_rate": 4e-4,
        "weight_decay": 0.1,
        "warmup_steps": 50,
        "final_fraction": 0.1,
        "b1": 0.9,
        "b2": 0.95,
        "eps": 1e-8,
        "clip": 1.0,
        "output_z_loss": 1e-5,
    }
    return OptimizerSpec(**{**study, **fields})


@pytest.mark.parametrize(
    ("steps", "warmup", "final"), [(200, 50, 0.1), (20, 1, 0.0), (20, 2, 1.0), (20, 0, 0.1), (4, 4, 0.1), (1, 0, 0.1)]
)
def test_schedule(steps: int, warmup: int, final: float):
    """A ramp that already learns at step 0 and is at the peak at its last step, then half a cosine."""
    t = np.arange(steps)
    cosine = (1 + np.cos(np.pi * (t - warmup) / max(1, steps - warmup))) / 2
    want = np.where(t < warmup, (t + 1) / max(1, warmup), final + (1 - final) * cosine)
    spec = _spec(warmup_steps=warmup, final_fraction=final)
    got = jax.jit(jax.vmap(lambda step: rate_at(spec, steps, step, jnp.float32(4e-3))))(jnp.asarray(t))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, 4e-3 * want, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("clip", [0.5, 1e9])
@pytest.mark.usefixtures("with_and_without_a_compiler")
def test_adamw(clip: float, rng):
    """Four steps: gradients clipped together, every parameter decayed, and decay scaled by the learning rate."""
    spec = _spec(clip=clip, eps=1e-3)
    shapes = {"matrix": (3, 4), "gain": (5,), "router": (2, 3, 2), "experts": (5, 70, 101)}
    params = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    got = {name: jnp.asarray(p, jnp.float32) for name, p in params.items()}
    mean, square = ({name: np.zeros(shape) for name, shape in shapes.items()} for _ in range(2))

    @jax.jit
    def update(grads, state, params, rate, decay):
        return updated(spec, params, grads, state, rate, decay, sharded=False)

    state = adamw(spec, jnp.float32(0), jnp.float32(0)).init(got)
    for step in range(1, 5):
        rate, decay = rng.uniform(0.01, 0.5, 2)
        grads = {name: rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 2) for name, shape in shapes.items()}
        got, state, norm_found = update(
            {name: jnp.asarray(g, jnp.float32) for name, g in grads.items()},
            state,
            got,
            jnp.float32(rate),
            jnp.float32(decay),
        )
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        np.testing.assert_allclose(norm_found, norm, rtol=1e-5)
        for name, p in params.items():
            g = grads[name] * min(1.0, clip / norm)
            mean[name] = 0.9 * mean[name] + 0.1 * g
            square[name] = 0.95 * square[name] + 0.05 * g**2
            adam = (mean[name] / (1 - 0.9**step)) / (np.sqrt(square[name] / (1 - 0.95**step)) + 1e-3)
            params[name] = p - rate * (adam + decay * p)
            np.testing.assert_allclose(got[name], params[name], rtol=2e-5, atol=2e-6, err_msg=f"{name}, step {step}")


@pytest.mark.usefixtures("with_and_without_a_compiler")
def test_a_gradient_that_is_no_number_is_not_hidden():
    """The next loss has to tell that the run diverged."""
    params = {"matrix": jnp.ones((3, 4)), "gain": jnp.ones(5)}
    state = adamw(_spec(), jnp.float32(0), jnp.float32(0)).init(params)
    grads = {"matrix": jnp.zeros((3, 4)).at[1, 2].set(jnp.nan), "gain": jnp.ones(5)}
    one, zero = jnp.float32(1), jnp.float32(0)
    new, _, norm = jax.jit(lambda p, g: updated(_spec(), p, g, state, one, zero, sharded=False))(params, grads)
    assert jnp.isnan(norm)
    assert all(jnp.isnan(leaf).all() for leaf in new.values())


@pytest.mark.usefixtures("with_and_without_a_compiler")
def test_double_precision_stays_double():
    with jax.enable_x64(True):
        params = {"matrix": jnp.ones((3, 4), jnp.float64), "gain": jnp.ones(5, jnp.float32)}
        state = adamw(_spec(), jnp.float32(0), jnp.float32(0)).init(params)
        new, after, _ = jax.jit(
            lambda p: updated(_spec(), p, p, state, jnp.float32(0.1), jnp.float32(0), sharded=False)
        )(params)
    for before, leaf in zip(jax.tree.leaves((params, state)), jax.tree.leaves((new, after)), strict=True):
        assert before.dtype == leaf.dtype


@pytest.mark.usefixtures("with_and_without_a_compiler")
def test_steps_of_several_models_at_once(rng):
    """As lanes are trained: each with its own numbers, and its own norm."""
    params, grads = ({"a": jnp.float32(rng.standard_normal((3, 4, 5)))} for _ in range(2))
    rates, decays = jnp.float32([0.1, 0.2, 0.3]), jnp.float32([0.3, 0.1, 0.2])

    def step(params, grads, rate, decay):
        state = adamw(_spec(), rate, decay).init(params)
        return updated(_spec(), params, grads, state, rate, decay, sharded=False)

    together = jax.jit(jax.vmap(step))(params, grads, rates, decays)
    for lane in range(3):
        alone = jax.jit(step)({"a": params["a"][lane]}, {"a": grads["a"][lane]}, rates[lane], decays[lane])
        assert jax.tree.structure(alone) == jax.tree.structure(together)
        for one, all_ in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
            # What is left of a difference is rounded as what it was left of.
            np.testing.assert_allclose(all_[lane], one, rtol=0, atol=1e-6 * np.abs(one).max())
