"""What the decoder promises: its formula, causality, one result however it is run, and its initial values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from slicedice.kernels import is_native
from slicedice.model import Decoder
from slicedice.moe import Routing

HETEROGENEOUS = "n=4 k=1 g=1/2 + n=8 k=2 g=1/4"
B, S = 3, 8


def _norm(x, gain):
    return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-6) * gain


@pytest.mark.parametrize(
    ("experts", "generalist", "wiring"),
    [
        ("dense", "", "plain"),
        ("n=6 k=2 g=1/4", "1/2", "plain"),
        ("n=4 k=1 g=1/4 + n=8 k=2 g=1/8", "1/2", "parallel"),
    ],
)
def test_layers_are_post_normed_and_in_order(experts, generalist, wiring, tiny, build, rng):
    spec = tiny({"model.experts": experts, "model.generalist": generalist, "model.wiring": wiring})[0].model
    graphdef, state = build(spec)
    tokens, mask = rng.integers(0, spec.vocab_size, (B, S)), jnp.ones((B, S), bool)

    def written_out(state):
        model = nnx.merge(graphdef, state)
        x = model.embedding[...][tokens]
        for i in range(spec.layers):
            block = jax.tree.map(lambda leaf, i=i: leaf[i], model.blocks)
            gain, moe_gain = block.attention_norm.scale[...], block.moe_norm.scale[...]
            h = x + _norm(block.attention(x), gain)
            if not generalist or wiring == "plain":
                x = h + _norm(block.moe(h, mask, Routing())[0], moe_gain)
            else:
                routed = _norm(block.moe.routed(x, mask, Routing())[0], block.routed_norm.scale[...])
                x = (h + _norm(block.moe.always_on(h), moe_gain)) + routed
        return _norm(x, model.norm.scale[...]) @ model.head[...]

    logits, aux = jax.jit(lambda state: nnx.merge(graphdef, state)(tokens))(state)
    want = jax.jit(written_out)(state)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, want, rtol=0, atol=2e-5 * np.abs(want).max())
    for expert_set, of_set in zip(spec.layer.experts, aux, strict=True):
        np.testing.assert_array_equal(of_set.load.sum(-1), [expert_set.k * B * S] * spec.layers)
        assert of_set.load.shape == (spec.layers, expert_set.n)


@pytest.mark.skipif(not is_native(), reason="needs the CPU and a C++ compiler")
@pytest.mark.parametrize(("dtype", "layers"), [("float32", 2), ("bfloat16", 1)])
def test_experts_matrices_are_read_where_all_layers_lie_unless_they_are_rounded(dtype, layers, tiny, build, rng):
    spec = tiny({"model.experts": "n=6 g=1/4"})[0].model
    graphdef, state = build(spec, compute_dtype=dtype)
    tokens = rng.integers(0, spec.vocab_size, (B, S))

    def loss(state):
        return nnx.merge(graphdef, state)(tokens)[0].sum()

    lines = jax.jit(jax.grad(loss)).lower(state).as_text().splitlines()
    calls = [line for line in lines if "custom_call @slicedice_layer" in line]
    assert len(calls) == 2, "forward and back"
    gate = f"tensor<{layers}x6x{spec.d_model}x"
    assert all(line.count(gate) >= 2 for line in calls), "gate and up"


def test_no_token_sees_a_later_one(tiny, build, rng):
    spec = tiny({"model.experts": HETEROGENEOUS})[0].model
    graphdef, state = build(spec)
    forward = jax.jit(lambda tokens: nnx.merge(graphdef, state)(tokens)[0])
    tokens = rng.integers(0, spec.vocab_size, (B, S))
    want = forward(tokens)
    for position in range(S):
        changed = tokens.copy()
        changed[1, position] = (changed[1, position] + 1) % spec.vocab_size
        difference = np.abs(forward(changed) - want).max(-1)
        assert difference[1, :position].max(initial=0) < 1e-5
        assert difference[[0, 2]].max() < 1e-5, "sequences of a batch see each other"
        assert difference[1, position:].min() > 1e-3, "a later position does not see an earlier one"


def test_how_it_is_run_does_not_change_results(tiny, build, rng):
    """Recomputed activations and unrolled layers against neither: logits, loads and gradients."""
    spec = tiny({"model.experts": "n=6 k=2 g=1/2"})[0].model
    graphdef, state = build(spec)
    graphdef, params, rest = nnx.split(nnx.merge(graphdef, state), nnx.Param, ...)
    tokens = rng.integers(0, spec.vocab_size, (B, S))
    cotangent = rng.standard_normal((B, S, spec.vocab_size)).astype(np.float32)

    def value(params, remat, unroll):
        logits, aux = nnx.merge(graphdef, params, rest)(tokens, remat=remat, unroll=unroll)
        return (logits * cotangent).mean(), (logits, aux)

    def run(remat, unroll):
        return jax.jit(jax.grad(lambda params: value(params, remat, unroll), has_aux=True))(params)

    for options in ((True, 2), (False, 1)):
        text = str(jax.make_jaxpr(lambda params, options=options: value(params, *options)[0])(params))
        assert ("remat" in text, "unroll=2" in text) == (options[0], options[1] == 2)
    (grads, (logits, aux)), (want_grads, (want_logits, want_aux)) = run(True, 2), run(False, 1)
    np.testing.assert_allclose(logits, want_logits, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(aux[0].load, want_aux[0].load)
    for (path, got), want in zip(jax.tree.leaves_with_path(grads), jax.tree.leaves(want_grads), strict=True):
        assert np.abs(want).max() > 0
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max(), err_msg=str(path))


@pytest.mark.parametrize("experts", ["dense", "n=2 k=2 g=1/2"])
def test_bfloat16_is_close_to_float32(experts: str, tiny, build, rng):
    """With every expert active, since rounding may send a token elsewhere."""
    spec = tiny({"model.experts": experts})[0].model
    tokens = rng.integers(0, spec.vocab_size, (B, S))
    graphdef, state = build(spec)
    half, _ = build(spec, compute_dtype="bfloat16")
    want, got = (jax.jit(lambda s, g=g: nnx.merge(g, s)(tokens)[0])(state) for g in (graphdef, half))
    assert got.dtype == jnp.float32
    error = np.linalg.norm(got - want) / np.linalg.norm(want)
    # Of the order of one rounding, 2^-9, times the square root of some tens of them.
    assert 2**-11 < error < 2**-5


def test_padding_takes_no_room_from_tokens(tiny, build, rng):
    """Under a capacity that drops tokens, what stands in padding changes no other token's logits."""
    spec = tiny({"model.experts": "n=4 k=1 g=1"})[0].model
    graphdef, state = build(spec)
    routing = Routing(capacity_factor=1.0)  # 8 of 24 tokens
    mask = np.ones((B, S), bool)
    mask[0, 2:] = mask[1, 5:] = False

    @jax.jit
    def forward(tokens, mask):
        return nnx.merge(graphdef, state)(tokens, mask, routing)

    tokens = np.full((B, S), rng.integers(spec.vocab_size))  # one token everywhere fills one expert of the first layer
    logits, (aux,) = forward(tokens, mask)
    assert aux.dropped[0] > 0
    np.testing.assert_array_equal(aux.load.sum(-1), mask.sum())
    other = np.where(mask, tokens, rng.integers(0, spec.vocab_size, (B, S)))
    for padded in (other, (other + 1) % spec.vocab_size):
        padded = np.where(mask, tokens, padded)
        np.testing.assert_allclose(forward(padded, mask)[0][mask], logits[mask], rtol=0, atol=1e-5)
    unmasked = forward(tokens, np.ones_like(mask))[0]
    assert np.abs(unmasked[mask] - logits[mask]).max() > 1e-2, "this test sees no room being taken"


def test_initial_values(tiny):
    """Normal of std 0.02 cut at 3 of them, gains 1, biases 0, and no two matrices alike."""
    spec = tiny({"model.experts": HETEROGENEOUS, "model.generalist": "", "model.d_model": 32})[0].model

    @jax.jit
    def initial(seed):
        return nnx.split(Decoder(spec, key=jax.random.key(seed)), nnx.Param, ...)[1:]

    params, rest = initial(0)
    # Of a normal cut at 3: sqrt(1 - 6 phi(3) / (2 Phi(3) - 1)) = 0.98658.
    want, starts = 0.02 * 0.98658, []
    for path, leaf in jax.tree.leaves_with_path(params):
        name = jax.tree_util.keystr(path)
        if "scale" in name:
            np.testing.assert_array_equal(leaf, 1.0, name)
            continue
        values = np.asarray(leaf, np.float64)
        assert np.abs(values).max() <= 0.06 + 1e-8, name
        spread = 5 / (2 * values.size) ** 0.5
        assert abs(values.std() / want - 1) < spread, name
        assert abs(values.mean()) < 5 * want / values.size**0.5, name
        starts += [tuple(matrix[0, :4]) for matrix in values.reshape(-1, *values.shape[-2:])]
    everything = np.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(params) if leaf.ndim > 1])
    assert np.abs(everything).max() > 0.058, "cut too early"
    assert len(set(starts)) == len(starts), "a random key was used twice"
    assert not any(leaf.any() for leaf in jax.tree.leaves(rest))
    again, other = initial(0)[0], initial(1)[0]
    jax.tree.map(np.testing.assert_array_equal, again, params)
    assert (again["embedding"][...] != other["embedding"][...]).mean() > 0.99
