"""The training step against its definition, however it is cut into micro-batches."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from slicedice.model import Decoder
from slicedice.moe import RouterBias
from slicedice.spec import program_key
from slicedice.training import Hyper, Program, TrainState
from slicedice.training.gradients import routing_of
from slicedice.training.program import load_metrics, move_bias


def _copy(state: TrainState) -> TrainState:
    """The step takes its state's memory."""
    return jax.tree.map(jnp.array, state)


def _gradients(state: TrainState) -> Any:
    """The gradients of a first step, from the optimizer's first moment."""
    parts: Any = state.optimizer
    return jax.tree.map(lambda m: m / np.float32(0.1), next(part.mu for part in parts if hasattr(part, "mu")))


def _assert_close(got: Any, want: Any, tolerance: float) -> None:
    """Leaf by leaf, and layer by layer and expert by expert within one."""
    for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
        a, b = (np.asarray(x, np.float64).reshape(-1, *x.shape[-2:]) for x in (a, b))
        error, size = (np.sqrt((x**2).sum((-1, -2))) for x in (a - b, b))
        assert (error <= tolerance * (size + np.median(size))).all(), jax.tree_util.keystr(path)


def _log_sum_exp(x: Any) -> Any:
    top = x.max(-1, keepdims=True)
    return np.log(np.exp(x - top).sum(-1)) + top[..., 0]


def test_a_step_is_its_definition(program, run, start, batch):
    spec = run()
    graphdef, layers, hyper = program().graphdef, spec.model.layers, Hyper.of(spec)

    @jax.jit
    def defined(params, bias):
        def loss(params):
            logits, (aux,) = nnx.merge(graphdef, params, bias)(batch[:, :-1], routing=routing_of(spec))
            log_z = jax.nn.logsumexp(logits, axis=-1)
            chosen = jnp.take_along_axis(logits, batch[:, 1:, None], axis=-1)[..., 0]
            value = (log_z - chosen).mean() + 0.1 * (log_z**2).mean()
            value += 0.3 / layers * aux.load_balancing_loss.sum() + 0.2 / layers * aux.z_loss.sum()
            return value, (logits, aux)

        return jax.grad(loss, has_aux=True)(params)

    grads, (logits, aux) = defined(start.params, start.bias)
    before = _copy(start)
    after, metrics = program().step(start, batch, hyper)

    # Losses, from logits in float64.
    logits, targets = np.asarray(logits, np.float64), np.asarray(batch[:, 1:])
    log_z = _log_sum_exp(logits)
    cross_entropy = (log_z - np.take_along_axis(logits, targets[..., None], -1)[..., 0]).mean()
    balance, router_z = aux.load_balancing_loss.mean(), aux.z_loss.mean()
    total = cross_entropy + 0.1 * (log_z**2).mean() + 0.3 * balance + 0.2 * router_z
    want = {
        "loss": total,
        "cross_entropy": cross_entropy,
        "load_balancing_loss": balance,
        "router_z_loss": router_z,
        "learning_rate": 4e-4 / 2,  # the first of two steps of warm-up
        "gradient_norm": np.sqrt(sum((np.asarray(g, np.float64) ** 2).sum() for g in jax.tree.leaves(grads))),
        "load_imbalance": (aux.load.max(-1) / (2 * 8 * 16 / 4)).mean(),
        "dropped_share": aux.dropped.sum() / (2 * 8 * 16 * layers),
        "dead_experts": (aux.load == 0).sum(),
    }
    assert metrics.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    assert aux.dropped.sum() > 0, "this draw tests no capacity"

    # Gradients, and the update that AdamW's first step makes of them.
    _assert_close(_gradients(after), grads, 1e-5)

    def updated(p, g):
        return p - 2e-4 * (g / (np.abs(g) + 1e-8) + 0.1 * p)

    jax.tree.map(
        lambda got, p, g: np.testing.assert_allclose(got, updated(p, g), rtol=1e-5, atol=1e-7),
        after.params,
        before.params,
        _gradients(after),
    )
    # The bias, from the loads of the whole batch.
    (bias,) = jax.tree.leaves(after.bias)
    np.testing.assert_array_equal(bias, np.float32(0.01) * np.sign(64 - np.asarray(aux.load)))
    assert np.unique(bias).size > 1
    assert after.step == 1


def test_micro_batches_add_up_to_the_batch(program, run, start, batch):
    """With routing groups of two sequences, micro-batches of four are two groups of the same batch."""
    hyper = Hyper.of(run())
    whole, metrics = program().step(_copy(start), batch, hyper)
    parts, part_metrics = program({"execution.micro_batch": 4}).step(start, batch, hyper)
    _assert_close(_gradients(parts), _gradients(whole), 1e-5)
    jax.tree.map(np.testing.assert_array_equal, parts.bias, whole.bias)
    assert part_metrics.keys() == metrics.keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(part_metrics[name], value, rtol=1e-5, err_msg=name)
    assert part_metrics["dropped_share"] == metrics["dropped_share"] > 0


def test_gamma_is_the_step_of_the_bias(program, run, start, batch):
    hyper = Hyper.of(run())
    (still,) = jax.tree.leaves(program().step(_copy(start), batch, hyper._replace(gamma=jnp.float32(0)))[0].bias)
    np.testing.assert_array_equal(still, 0.0)
    # The sign alone counts, and steps add up: neither a step this small nor a learning rate of 0 moves a token. It has
    # to be below the least probabilities that routers of unit scale give, and these reach 1e-12.
    state, hyper = start, hyper._replace(gamma=jnp.float32(1e-30), learning_rate=jnp.float32(0))
    for count in range(1, 4):
        state, _ = program().step(state, batch, hyper)
        (bias,) = jax.tree.leaves(state.bias)
        if count == 1:
            first = np.asarray(bias)
        np.testing.assert_allclose(bias, count * first, rtol=1e-5)
    assert np.abs(first).max() == np.float32(1e-30)


def test_alpha_weighs_the_gradient_of_the_balance(program, run, start, batch):
    hyper = Hyper.of(run())
    gradients = (
        _gradients(program().step(_copy(start), batch, hyper._replace(alpha=jnp.float32(alpha)))[0])
        for alpha in (0, 1, 2)
    )
    for (path, none), once, twice in zip(*map(jax.tree.leaves_with_path, gradients), strict=True):
        name = jax.tree_util.keystr(path)
        first, second, rounding = once[1] - none, twice[1] - none, 1e-6 * np.linalg.norm(twice[1])
        assert np.linalg.norm(second - 2 * first) <= 1e-4 * np.linalg.norm(second) + rounding, name
        if "router" in name:
            assert (np.abs(first).max((-1, -2)) > 1e-4).all(), "the router of a layer does not feel alpha"
        if "head" in name:
            assert np.linalg.norm(first) <= rounding, "the head is behind every router"


TRACED = {
    "seed": 5,
    "optimizer.learning_rate": 1e-2,
    "optimizer.weight_decay": 0.7,
    "router.alpha": 0.9,
    "router.gamma": 0.05,
}


def test_runs_that_differ_in_traced_numbers_share_a_program(program, run, start, batch):
    """One compilation serves them all, and each number does something."""
    shared = program()
    shared.step(shared.init(jnp.uint32(0)), batch, Hyper.of(run()))
    compiled = shared.compile(), shared.init._cache_size()
    results = {}
    for changes in ({}, *({field: value} for field, value in TRACED.items()), TRACED):
        spec = run(changes)
        assert program_key(spec, shared.execution) == program_key(run(), shared.execution)
        initial = shared.init(jnp.uint32(spec.seed)) if "seed" in changes else _copy(start)
        state, _ = shared.step(initial, batch, Hyper.of(spec))
        # Two steps, since the bias reaches the parameters in the second.
        state, _ = shared.step(state, batch, Hyper.of(spec))
        results[str(changes)] = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state)])
    assert (shared.compile(), shared.init._cache_size()) == compiled
    first, *others = results.values()
    assert all((first != other).any() for other in others)


def test_a_program_holds_nothing_of_the_run_it_was_made_for(tiny, program, run, batch):
    """The program made for another run of the same key is the same to the letter."""
    elsewhere = {"data.source": "another/folder", "evaluation.tokens": 77}
    shared, other = program(), Program(run({**TRACED, **elsewhere}), program().execution)
    assert program_key(shared.spec, shared.execution) == program_key(other.spec, other.execution)
    seed = jnp.uint32(0)
    assert other.init.lower(seed).as_text() == shared.init.lower(seed).as_text()
    texts = [p.lower().as_text() for p in (shared, other)]
    assert texts[0] == texts[1]


def test_a_dense_run_reports_no_routing(program, run, batch):
    dense = program({"model.experts": "dense"})
    state = jax.eval_shape(dense.init, jnp.uint32(0))
    after, metrics = jax.eval_shape(dense.take_step, state, batch, Hyper.of(run({"model.experts": "dense"})))
    assert set(metrics) == {"loss", "cross_entropy", "learning_rate", "gradient_norm"}
    assert not jax.tree.leaves(after.bias)
    assert Hyper.of(run({"model.experts": "dense"}))[2:] == (0, 0)


def test_bias_of_each_set_follows_its_own_loads(tiny, rng):
    """Two sets of as many experts, so that a mix-up has fitting shapes."""
    spec, _ = tiny({"model.experts": "n=4 k=1 g=1/2 + n=4 k=2 g=1/4"})
    shapes = nnx.state(nnx.eval_shape(lambda: Decoder(spec.model, key=jax.random.key(0))), RouterBias)
    bias = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), shapes)
    loads = tuple(rng.integers(0, 9, (2, 4)) for _ in range(2))
    moved = move_bias(bias, loads, jnp.float32(0.25))
    for i, load in enumerate(loads):
        want = bias["blocks"]["moe"]["sets"][i]["bias"][...] + 0.25 * np.sign(load.mean(1, keepdims=True) - load)
        np.testing.assert_array_equal(moved["blocks"]["moe"]["sets"][i]["bias"][...], want)


def test_load_metrics():
    loads = (jnp.array([[4, 0, 0, 0], [1, 1, 1, 1]]), jnp.array([[2, 6], [8, 0]]))
    metrics = load_metrics(loads, jnp.int32(6))
    # Imbalances 4 and 1, 1.5 and 2: means 2.5 and 1.75.
    assert {name: float(value) for name, value in metrics.items()} == {
        "load_imbalance": 2.125,
        "dropped_share": 0.25,
        "dead_experts": 4.0,
    }


@pytest.mark.parametrize("gamma", [0.0, 0.01])
def test_a_balanced_load_leaves_the_bias(gamma: float):
    bias = nnx.State({"bias": RouterBias(jnp.ones((1, 4)))})
    moved = move_bias(bias, (jnp.full((1, 4), 3),), jnp.float32(gamma))
    np.testing.assert_array_equal(moved["bias"][...], 1.0)
