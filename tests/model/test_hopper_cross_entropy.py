"""Cross-entropy with logits on the chip: interpreted against its definition, and when it is used. There is no GPU."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slicedice.kernels.pallas_gpu import first_use, logits
from slicedice.model import cross_entropy, hopper_cross_entropy
from slicedice.model.cross_entropy import mean_loss, token_nats
from tests.kernels.contract import CAN_INTERPRET_GPU, running

interpreted = pytest.mark.skipif(not CAN_INTERPRET_GPU, reason="needs the CPU and JAX 0.11 to interpret the kernels")
Z_WEIGHT = 0.05


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch):
    """As on one whose kernels passed their check."""
    monkeypatch.setattr(cross_entropy, "platform", lambda: "gpu")
    monkeypatch.setattr(hopper_cross_entropy, "available", lambda: True)


def drawn(rng, *sizes: int, scale: float = 2.0):
    """Rows, head and targets, some of which do not count, of (models..., tokens, width, entries)."""
    *models, tokens, width, entries = sizes
    rows, head = (rng.standard_normal((*models, *shape)) for shape in ((tokens, width), (width, entries)))
    targets = jnp.asarray(rng.integers(-1, entries, (*models, tokens)), jnp.int32)
    return jnp.asarray(rows, jnp.bfloat16), jnp.asarray(head * scale / width**0.5, jnp.bfloat16), targets


def losses(rows, head, targets):
    """What training and evaluation ask for: loss, cross-entropy, gradients, and nats of each token."""
    loss = partial(mean_loss, targets=targets, z_weight=Z_WEIGHT)
    (value, nats), pull = jax.vjp(loss, rows, head)
    gradients = pull((jnp.float32(3), jnp.float32(0)))
    return value, nats, loss(rows, head)[0], gradients, token_nats(rows, head, targets)


def check(got, rows, head, targets):
    """Against float64, to what bfloat16 rounds of d(logits) and of the gradients themselves."""
    value, nats, alone, gradients, each = got
    want, counts = hopper_cross_entropy.defined(rows, head, targets, Z_WEIGHT), np.asarray(targets) >= 0
    cross = want.nats[counts].sum() / len(counts)
    whole = cross + Z_WEIGHT * (want.log_z[counts] ** 2).sum() / len(counts)
    np.testing.assert_allclose((value, alone, nats), (whole, whole, cross), rtol=1e-5)
    np.testing.assert_allclose(each[counts], want.nats[counts], rtol=0, atol=1e-5)
    for name, ours, exact in zip(("rows", "head"), gradients, (want.drows, want.dhead), strict=True):
        assert ours.dtype == jnp.bfloat16
        # Rows, and entries of the head, one by one, so that a bad one cannot hide; those near zero by the mean.
        axis = -1 if name == "rows" else 0
        error = np.linalg.norm(np.asarray(ours, np.float64) * len(counts) / 3 - exact, axis=axis)
        norm = np.linalg.norm(exact, axis=axis)
        assert np.all(error <= 2**-7 * (norm + norm.mean())), f"{name}: {error} of {norm}"
    assert not np.any(np.asarray(gradients[0], np.float64)[~counts])


@interpreted
@pytest.mark.parametrize(
    ("tokens", "width", "entries"),
    [
        (200, 48, 700),  # two tiles of tokens, and parts of the vocabulary, whose last step is not full
        (65, 72, 256),  # whole steps; the width is padded
        (1, 112, 3),  # the other tiling
    ],
)
def test_values_and_gradients(tokens, width, entries, on_a_gpu, rng):
    arrays = drawn(rng, tokens, width, entries)
    with running("pallas_gpu"):
        got = jax.block_until_ready(jax.jit(losses)(*arrays))
    check(got, *arrays)


@interpreted
def test_lanes_are_one_call_of_several_models(on_a_gpu, rng):
    arrays = drawn(rng, 2, 70, 16, 150)
    with running("pallas_gpu"):
        got = jax.block_until_ready(jax.jit(jax.vmap(losses))(*arrays))
    for lane in range(2):
        check(*jax.tree.map(lambda x, lane=lane: np.asarray(x[lane]), (got, *arrays)))


@interpreted
def test_sure_tokens_keep_what_is_left_of_their_gradient(on_a_gpu, rng):
    """Of a target's share of 0.998, which bfloat16 takes for 1, or its neighbour: before, between and after others."""
    entries, axis = 300, 40
    rows, head, _ = (np.asarray(x, np.float64) for x in drawn(rng, axis, 32, entries, scale=1.0))
    targets = rng.choice(entries, axis, replace=False)
    scores, at = rows @ head, (np.arange(axis), targets)
    others = scores.copy()
    others[at] = -np.inf
    wanted = np.logaddexp.reduce(others, axis=1) + np.log(0.998 / 0.002)
    # Each token has a column of its own, by which its target's logit, and no other, becomes what it should be.
    rows = np.concatenate([rows, np.diag(wanted - scores[at])], 1)
    head = np.concatenate([head, (targets[:, None] == np.arange(entries)).astype(float)])
    rows, head, targets = jnp.asarray(rows, jnp.bfloat16), jnp.asarray(head, jnp.bfloat16), jnp.asarray(targets)
    with running("pallas_gpu"):
        got = jax.block_until_ready(jax.jit(partial(hopper_cross_entropy.parts, z_weight=0.0))(rows, head, targets))
    want = hopper_cross_entropy.defined(rows, head, targets, 0.0)
    for ours, exact, axis in ((got.drows, want.drows, 1), (got.dhead[:, targets], want.dhead[:, targets], 0)):
        error = np.linalg.norm(np.asarray(ours, np.float64) - exact, axis=axis)
        np.testing.assert_array_less(error, 0.01 * np.linalg.norm(exact, axis=axis))


def shapes(*models: int, tokens: int = 600, width: int = 48, entries: int = 1000):
    half, whole = jnp.bfloat16, jnp.int32
    return [
        jax.ShapeDtypeStruct((*models, *shape), dtype)
        for shape, dtype in (((tokens, width), half), ((width, entries), half), ((tokens,), whole))
    ]


def kernels(function, arguments) -> int:
    # Traced anew, whatever was traced before.
    lowered = jax.jit(lambda *x: function(*x)).trace(*arguments).lower(lowering_platforms=("cuda",))
    return lowered.as_text().count("custom_call @mosaic_gpu")


def training(rows, head, targets):
    return jax.value_and_grad(lambda x, head: mean_loss(x, head, targets, Z_WEIGHT)[0], (0, 1))(rows, head)


def evaluation(rows, head, targets):
    return token_nats(rows, head, targets).sum() + mean_loss(rows, head, targets, Z_WEIGHT)[0]


def test_kernels_of_a_step_and_of_an_evaluation(on_a_gpu):
    """Two with gradients and one without, on a mesh too, and as many for several models."""
    assert kernels(training, shapes()) == 2
    assert kernels(evaluation, shapes()) == 2, "one each"
    assert kernels(jax.vmap(training), shapes(3)) == 2
    assert kernels(jax.vmap(jax.vmap(training)), shapes(2, 3)) == 2
    assert kernels(jax.vmap(training, (0, None, None)), [shapes(3)[0], *shapes()[1:]]) == 2
    share = jax.sharding.PartitionSpec("data")
    for checked in (True, False):
        mapped = jax.shard_map(
            lambda *x: jax.tree.map(lambda y: y[None], training(*x)),
            mesh=jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)),
            in_specs=share,
            out_specs=share,
            check_vma=checked,
        )
        assert kernels(mapped, shapes()) == 2
    with jax.enable_x64(True):
        assert kernels(training, shapes()) == 2


@pytest.mark.parametrize(
    ("change", "wide"),
    [({"width": 128}, True), ({"width": 129}, False), ({"dtype": jnp.float32}, False), ({"dtype": jnp.float16}, False)],
)
def test_what_the_kernels_take(change, wide: bool, on_a_gpu):
    change = dict(change)
    dtype = change.pop("dtype", jnp.bfloat16)
    *floats, targets = shapes(**change)
    floats = [jax.ShapeDtypeStruct(x.shape, dtype) for x in floats]
    assert (kernels(training, [*floats, targets]) > 0) == wide


def test_on_devices_of_another_kind_logits_come_in_chunks(monkeypatch: pytest.MonkeyPatch, rng):
    """Asked for amid a trace, of the device that is here, whatever it is."""
    arrays = drawn(rng, 30, 16, 90)
    want = jax.jit(losses)(*arrays)
    # Not as they remember it of this one.
    monkeypatch.setattr(first_use, "passed", first_use.passed.__wrapped__)
    monkeypatch.setattr(hopper_cross_entropy, "available", hopper_cross_entropy.available.__wrapped__)
    monkeypatch.setattr(jax, "default_backend", lambda: "another")
    monkeypatch.setattr(cross_entropy, "platform", lambda: "gpu")
    assert kernels(training, shapes()) == 0
    jax.tree.map(np.testing.assert_array_equal, jax.jit(lambda *x: losses(*x))(*arrays), want)


@pytest.mark.parametrize("broken", ["", "nats", "log_z", "drows", "dhead", "nats alone", "log_z alone"])
def test_its_check_tells_right_from_wrong(broken: str, monkeypatch: pytest.MonkeyPatch):
    """With its definition in float32 in place of the kernels, as it is and with one number off."""

    def in_float32(rows, head, targets, z_weight):
        def whole(rows, head):
            scores = rows @ head
            log_z = jax.nn.logsumexp(scores, axis=1)
            chosen = jnp.take_along_axis(scores, jnp.maximum(targets, 0)[:, None], 1)[:, 0]
            nats = log_z - chosen
            return jnp.where(targets >= 0, nats + z_weight * log_z**2, 0).sum(), (nats, log_z)

        wide = rows.astype(jnp.float32), head.astype(jnp.float32)
        gradients, values = jax.grad(whole, (0, 1), has_aux=True)(*wide)
        return hopper_cross_entropy.Parts(*values, *gradients)

    def spoiled(name: str, x):
        return x.at[-3].mul(1.5) if name == broken else x

    def parts(rows, head, targets, z_weight):
        out = in_float32(rows, head, targets, z_weight)
        return out._replace(**{name: spoiled(name, x) for name, x in out._asdict().items()})

    def nats(rows, head, targets):
        out = in_float32(rows, head, targets, 0.0)
        return spoiled("nats alone", out.nats), spoiled("log_z alone", out.log_z)

    monkeypatch.setattr(hopper_cross_entropy, "parts", parts)
    monkeypatch.setattr(hopper_cross_entropy, "nats", nats)
    if broken:
        with pytest.raises(AssertionError, match=f"^{re.escape(broken)}, "):
            hopper_cross_entropy.check(0)
    else:
        hopper_cross_entropy.check(0)


@pytest.mark.parametrize("width", range(16, logits.WIDEST + 1, 16))
def test_tiles_fit_the_chip(width: int):
    tiling = logits.Tiling.of(width)
    for step in (tiling.entries, tiling.tokens):
        shared = 2 * width * (tiling.rows + logits.STAGES * step) + 4 * 3 * logits.STAGES * step
        assert shared <= 224 * 1024
    assert 128 * (40 + tiling.consumers * tiling.registers) <= 65536
