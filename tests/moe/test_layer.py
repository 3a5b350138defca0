"""The layer against a loop over tokens in float64.

Tokens and routers are drawn in eighths: their products are then exact in every precision, so that two
experts either tie exactly or differ by far more than rounding, and routing decisions can be compared.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from slicedice.moe import MoELayer, Routing
from slicedice.moe import routing as rules

B, S, D = 4, 16, 8
T = B * S


def eighths(rng: np.random.Generator, shape) -> np.ndarray:
    return (rng.integers(-8, 9, shape) / 8).astype(np.float32)


def layer_of(rng: np.random.Generator, sets, always_on: int) -> MoELayer:
    """A layer with weights in eighths, and a loss-free bias by which all tokens choose one expert of a set, and
    one expert comes last for all. The first is over its capacity wherever a test has one.
    """

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        return jnp.asarray(eighths(rng, shape), dtype)

    layer = MoELayer(sets, always_on, D, init=init, rngs=nnx.Rngs(params=0))
    for expert_set in layer.sets:
        expert_set.bias[...] = jnp.asarray(rng.permutation([2.0, -2.0] + [0.0] * (expert_set.n - 2)), jnp.float32)
    return layer


def arrays_of(rng: np.random.Generator) -> tuple[jnp.ndarray, jnp.ndarray]:
    """Tokens and a mask with three tokens of padding in each sequence, one sequence beginning with it."""
    mask = rng.permuted(np.tile(np.arange(S) >= 3, (B, 1)), axis=1)
    mask[0] = np.arange(S) >= 3
    return jnp.asarray(eighths(rng, (B, S, D))), jnp.asarray(mask)


def run(layer: MoELayer, x, mask, routing: Routing):
    graphdef, state = nnx.split(layer)
    return jax.jit(lambda state: nnx.merge(graphdef, state)(x, mask, routing))(state)


class Aux(NamedTuple):
    load_balancing_loss: Any
    z_loss: Any
    load: Any
    dropped: Any


def swiglu(x, gate, up, down):
    """What an expert makes of tokens, and the size of what is added up for it, which roundings are relative to.

    Terms may cancel: their sum can be any number of times smaller. Of SiLU, and of what it makes of its input's
    rounding, |a silu'(a)|, |a| is the size, to a tenth.
    """
    a, b = x @ gate, x @ up
    return (a / (1 + np.exp(-a)) * b) @ down, np.linalg.norm(np.abs(a * b) @ np.abs(down), axis=-1)


def weights_of(module) -> tuple[np.ndarray, ...]:
    return tuple(np.asarray(w[...], np.float64) for w in (module.gate, module.up, module.down))


def looped(layer: MoELayer, x, mask, routing: Routing) -> tuple[np.ndarray, np.ndarray, list[Aux]]:
    """The layer's definition, token by token: outputs, the sizes that rounding grows with, and aux."""
    tokens, mask = np.asarray(x, np.float64).reshape(-1, D), np.asarray(mask).reshape(-1)
    out, size, auxes = np.zeros_like(tokens), np.zeros(len(tokens)), []
    group = routing.group or len(tokens)
    active = sum(s.k for s in layer.sets)
    for s in layer.sets:
        weights, bias = weights_of(s.experts), np.asarray(s.bias[...], np.float64)
        logits = tokens @ np.asarray(s.router[...], np.float64)
        shares = np.exp(logits - logits.max(1, keepdims=True))
        p = shares / shares.sum(1, keepdims=True)
        load, dropped, balance, z = np.zeros(s.n, int), 0, [], []
        for start in range(0, len(tokens), group):
            here = np.arange(start, start + group)
            limit = np.inf
            if routing.capacity_factor is not None:
                limit = rules.capacity(group, s.n, s.k, routing.capacity_factor)
            chose, taken = np.zeros(s.n, int), np.zeros(s.n, int)
            for t in here[mask[here]]:
                for e in np.argsort(-(p[t] + bias), kind="stable")[: s.k]:
                    chose[e] += 1
                    if taken[e] == limit:
                        dropped += 1
                        continue
                    taken[e] += 1
                    share = s.k / active * p[t, e]
                    y, terms = swiglu(tokens[t], *(w[e] for w in weights))
                    out[t] += share * y
                    size[t] += share * terms
            real = here[mask[here]]
            balance.append(s.n / s.k * np.sum(chose / len(real) * p[real].mean(0)))
            z.append(np.mean(np.log(np.exp(logits[real]).sum(1)) ** 2))
            load += chose
        auxes.append(Aux(np.mean(balance), np.mean(z), load, dropped))
    if layer.always_on is not None:
        y, terms = swiglu(tokens, *weights_of(layer.always_on))
        out, size = out + y, size + terms
    return out.reshape(x.shape), size.reshape(x.shape[:2]), auxes


HOMOGENEOUS, FINE, ALL_ON = ((6, 2, 4),), ((12, rules.MAXIMA + 1, 3),), ((3, 3, 4),)
HETEROGENEOUS = ((6, 2, 4), (5, 1, 6))


@pytest.mark.parametrize(
    ("sets", "always_on", "routing", "dtype"),
    [
        (HOMOGENEOUS, 0, Routing(), "float32"),
        (HOMOGENEOUS, 0, Routing(1.0, 32), "float32"),
        (FINE, 0, Routing(0.5, 64), "float32"),
        (HETEROGENEOUS, 0, Routing(0.6), "float32"),
        (HETEROGENEOUS, 7, Routing(None, 16), "float32"),
        (HETEROGENEOUS, 7, Routing(0.6, 32), "bfloat16"),
        (ALL_ON, 0, Routing(0.5, 32), "float32"),
        ((), 7, Routing(), "float32"),
    ],
)
def test_layer_is_its_definition(sets, always_on: int, routing: Routing, dtype: str, rng):
    layer, (x, mask) = layer_of(rng, sets, always_on), arrays_of(rng)
    out, auxes = run(layer, x.astype(dtype), mask, routing)
    want, size, want_auxes = looped(layer, x, mask, routing)
    assert out.dtype == dtype
    error = np.linalg.norm(np.asarray(out, np.float64) - want, axis=-1)
    # Seven roundings on the way: SiLU's argument and result, the other factor, their product, its sum, the weight, the
    # sum over experts. In float32 the exponentials, of the weight too, are off by some of their own.
    assert (error <= {"float32": 16 * 2**-24, "bfloat16": 7 * 2**-9}[dtype] * size).all(), error / size
    assert len(auxes) == len(sets)
    for aux, want_aux in zip(auxes, want_auxes, strict=True):
        np.testing.assert_array_equal(aux.load, want_aux.load)
        assert aux.dropped == want_aux.dropped
        assert (want_aux.dropped > 0) == (routing.capacity_factor is not None), "this draw tests no capacity"
        np.testing.assert_allclose(aux.load_balancing_loss, want_aux.load_balancing_loss, rtol=1e-5)
        np.testing.assert_allclose(aux.z_loss, want_aux.z_loss, rtol=1e-5)
    if not always_on:
        np.testing.assert_array_equal(out[~mask], 0.0)


def test_gradients_are_those_of_a_dense_layer(rng):
    """Capacity, padding, two sets and an always-on expert against all experts on all tokens, by autodiff."""
    layer, (x, mask) = layer_of(rng, HETEROGENEOUS, 7), arrays_of(rng)
    routing, cotangent = Routing(0.6, 32), rng.standard_normal((B, S, D)).astype(np.float32)
    graphdef, params, rest = nnx.split(layer, nnx.Param, ...)

    def dense(layer, x):
        tokens, total = x.reshape(T, D), jnp.zeros((T, D))
        for s in layer.sets:
            p = jax.nn.softmax(jnp.dot(tokens, s.router[...], precision="highest"))
            experts = jax.lax.top_k(jax.lax.stop_gradient(p) + s.bias[...], s.k)[1].reshape(-1, 32, s.k)
            offered = jnp.broadcast_to(mask.reshape(-1, 32, 1), experts.shape)
            # Room by counting, in token order: earlier offers of the same expert.
            one_hot = jax.nn.one_hot(experts, s.n) * offered[..., None]
            flat = one_hot.reshape(one_hot.shape[0], -1, s.n)
            earlier = ((jnp.cumsum(flat, 1) - flat) * flat).sum(-1).reshape(experts.shape)
            kept = one_hot * (earlier < rules.capacity(32, s.n, s.k, 0.6))[..., None]
            w = kept.sum(2).reshape(T, s.n) * p
            hidden = jax.nn.silu(jnp.einsum("td,edf->tef", tokens, s.experts.gate[...]))
            hidden *= jnp.einsum("td,edf->tef", tokens, s.experts.up[...])
            total += s.k / 3 * jnp.einsum("tef,efd,te->td", hidden, s.experts.down[...], w)
        return total.reshape(x.shape) + layer.always_on(x)

    def gradients(function):
        def value(params, x):
            return (function(nnx.merge(graphdef, params, rest), x) * cotangent).sum()

        return jax.jit(jax.grad(value, argnums=(0, 1)))(params, x)

    got = gradients(lambda layer, x: layer(x, mask, routing)[0])
    want = gradients(dense)
    for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
        # For each expert, each token, each row of a matrix.
        axes = tuple(range(1, b.ndim)) if b.ndim == 3 and b.shape[0] != B else (-1,)
        error, size = np.sqrt(np.sum((a - b) ** 2, axis=axes)), np.sqrt(np.sum(b**2, axis=axes))
        assert (error <= 1e-5 * size.max()).all(), jax.tree_util.keystr(path)
        assert ((error <= 1e-4 * size) | (size < 1e-3 * size.max())).all(), jax.tree_util.keystr(path)
        assert size.max() > 1e-2, f"{jax.tree_util.keystr(path)} has no gradient to compare"


def test_dropless_is_a_capacity_that_is_never_reached(rng):
    layer, (x, mask) = layer_of(rng, HOMOGENEOUS, 0), arrays_of(rng)
    dropless, large = (run(layer, x, mask, Routing(factor, 32)) for factor in (None, 6.0))
    jax.tree.map(np.testing.assert_array_equal, dropless, large)
    assert dropless[1][0].dropped == 0


def test_padding_leaves_no_trace(rng):
    """Whatever padding holds, other tokens' outputs, loads and losses are the same to the bit."""
    layer, (x, mask) = layer_of(rng, HOMOGENEOUS, 0), arrays_of(rng)
    graphdef, state = nnx.split(layer)
    function = jax.jit(lambda x: nnx.merge(graphdef, state)(x, mask, Routing(1.0, 32)))
    want = function(x)
    assert want[1][0].dropped > 0
    assert want[1][0].load.sum() == 2 * mask.sum()
    got = function(jnp.where(mask[..., None], x, eighths(rng, (B, S, D))))
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_each_routing_group_is_routed_by_itself(rng):
    layer, (x, mask) = layer_of(rng, HOMOGENEOUS, 0), arrays_of(rng)
    whole, (aux,) = run(layer, x, mask, Routing(1.0, T // 2))
    halves = [run(layer, x[i : i + 2], mask[i : i + 2], Routing(1.0)) for i in (0, 2)]
    np.testing.assert_allclose(whole, jnp.concatenate([out for out, _ in halves]), rtol=1e-5, atol=1e-6)
    auxes = [a for _, (a,) in halves]
    assert aux.dropped == sum(a.dropped for a in auxes) > 0
    np.testing.assert_array_equal(aux.load, sum(a.load for a in auxes))
    balance = np.mean([a.load_balancing_loss for a in auxes])
    np.testing.assert_allclose(aux.load_balancing_loss, balance, rtol=1e-6)


def test_experts_and_batches_without_a_token_are_harmless(rng):
    """All tokens go to expert 3, or there is none: outputs and gradients stay finite, or are exactly zero."""
    layer, (x, mask) = layer_of(rng, ((6, 1, 4),), 0), arrays_of(rng)
    layer.sets[0].bias[...] = jnp.array([0, 0, 0, 9, 0, 0], jnp.float32)
    graphdef, params, rest = nnx.split(layer, nnx.Param, ...)

    @jax.jit
    def everything(params, mask):
        def value(params):
            out, (aux,) = nnx.merge(graphdef, params, rest)(x, mask, Routing(1.2, 32))
            return (out**2).sum() + aux.load_balancing_loss + aux.z_loss, aux

        return jax.value_and_grad(value, has_aux=True)(params)

    (value, aux), gradients = everything(params, mask)
    np.testing.assert_array_equal(aux.load, [0, 0, 0, mask.sum(), 0, 0])
    assert np.isfinite(value)
    experts = gradients["sets"][0]["experts"]
    for leaf in jax.tree.leaves(experts):
        assert np.isfinite(leaf).all()
        assert leaf[3].any()
        assert not np.delete(leaf, 3, axis=0).any()
    (value, aux), gradients = everything(params, jnp.zeros_like(mask))
    assert value == aux.dropped == aux.load.sum() == 0
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradients))
