"""When attention is cuDNN's. There is no GPU: in its place is JAX's own attention, right or wrong."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slicedice.model import attention, cudnn, decoder


@pytest.fixture
def in_place_of_it(monkeypatch: pytest.MonkeyPatch):
    """Has a function compute what cuDNN would; returns the calls by their queries' types."""
    calls = []

    def put(function):
        def attend(query, key, value):
            calls.append(query.dtype.name)
            return function(query, key, value)

        monkeypatch.setattr(cudnn, "cudnn_attention", attend)
        monkeypatch.setattr(attention, "platform", lambda: "gpu")
        cudnn.available.cache_clear()
        return calls

    yield put
    cudnn.available.cache_clear()


def drawn(rng, dtype, width: int = 16):
    return [jnp.asarray(x, dtype) for x in rng.standard_normal((3, 2, 12, 3, width))]


def test_it_is_used_where_it_is_right_and_for_what_it_takes(in_place_of_it, rng):
    calls = in_place_of_it(cudnn._plain)
    half = drawn(rng, jnp.bfloat16)
    np.testing.assert_array_equal(mixed(*half), jax.jit(cudnn._plain)(*half))  # asked for amid a trace
    assert cudnn.available()
    assert len(calls) == 4, "three ways of the check, and the use"
    for other in (drawn(rng, jnp.float32), drawn(rng, jnp.bfloat16, 12)):
        mixed(*other)
    assert len(calls) == 4
    jax.eval_shape(attention.causal_mix, *drawn(rng, jnp.float16, 24))
    assert calls[4:] == ["float16"]


def mixed(*arrays):
    """Compiled anew, whatever was before."""
    return jax.jit(lambda *x: attention.causal_mix(*x))(*arrays)


def unmasked(query, key, value):
    return jax.nn.dot_product_attention(query, key, value)


def without_gradients(query, key, value):
    return jax.lax.stop_gradient(cudnn._plain(query, key, value))


@pytest.mark.parametrize("wrong", [unmasked, without_gradients])
def test_where_its_results_are_wrong_it_is_not_used(wrong, in_place_of_it, caplog, rng):
    calls = in_place_of_it(wrong)
    half = drawn(rng, jnp.bfloat16)
    with caplog.at_level(logging.WARNING, "slicedice"):
        got = mixed(*half)
    np.testing.assert_array_equal(got, jax.jit(cudnn._plain)(*half))
    assert calls == ["bfloat16"], "the check's first"
    assert "attention by cuDNN is not used, and its scores are in memory: by itself, its results are" in caplog.text


def test_what_the_library_lacks_is_told(in_place_of_it, caplog, rng):
    """As this machine's, which has no cuDNN."""
    real = cudnn.cudnn_attention
    in_place_of_it(real)
    with caplog.at_level(logging.WARNING, "slicedice"):
        attention.causal_mix(*drawn(rng, jnp.bfloat16))
    assert "by itself, it fails: RuntimeError: cuDNN is not detected" in caplog.text


def test_the_backward_pass_does_not_take_the_forward_pass_again(monkeypatch, rng):
    """As traced: what JAX asks of the device before it traces is answered for it."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91_100)
    monkeypatch.setattr(fused, "check_is_flash_attention", lambda *_, **__: None)
    monkeypatch.setattr(fused, "check_compute_capability", lambda *_, **__: True)
    monkeypatch.setattr(attention, "platform", lambda: "gpu")
    monkeypatch.setattr(cudnn, "available", lambda: True)

    def kernels(policy) -> int:
        layer = jax.checkpoint(lambda *x: jnp.sin(attention.causal_mix(*x)), policy=policy)
        gradient = jax.grad(lambda *x: layer(*x).astype(jnp.float32).sum(), (0, 1, 2))
        return str(jax.make_jaxpr(gradient)(*drawn(rng, jnp.bfloat16))).count("= dot_product_attention_fwd_wrapper")

    names_alone = jax.checkpoint_policies.save_only_these_names(attention.MIXED)
    assert kernels(names_alone) == 2, "this test would not see it"
    assert kernels(decoder.PRODUCTS) == 1
