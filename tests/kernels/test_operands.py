"""Which operands the operations take, and what they say of others."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slicedice.kernels import expert_ffn, grouped_matmul, native, reference, transposed_grouped_matmul
from tests.kernels import test_expert_ffn as ffn
from tests.kernels.contract import PLATFORM, check, draw, magnitudes

NATIVE = pytest.mark.skipif(PLATFORM != "cpu" or not native.available(), reason="needs the CPU and C++")
OURS = pytest.mark.parametrize("implementation", ["blocks", pytest.param("native", marks=NATIVE), "ragged_dot"])


@OURS
@pytest.mark.parametrize("alignment", [1, 8])
def test_products_where_whole_numbers_have_64_bits(implementation: str, alignment: int, rng):
    """With `jax_enable_x64`, by itself and mapped, with sizes of 64 bits."""
    members = [draw(rng, 40, 5, 3, sizes) for sizes in ([8, 0, 24], [0, 16, 16])]
    with jax.enable_x64(True):

        def both(lhs, rhs, sizes, cotangent):
            def product(lhs, rhs):
                return grouped_matmul(lhs, rhs, sizes, implementation=implementation, alignment=alignment)

            out, pull = jax.vjp(product, lhs, rhs)
            return reference.Gradients(out, *pull(cotangent))

        lhs, rhs, sizes, cotangent = map(jnp.stack, zip(*members, strict=True))
        sizes = sizes.astype(jnp.int64)
        alone = both(lhs[0], rhs[0], sizes[0], cotangent[0])
        mapped = jax.jit(jax.vmap(both))(lhs, rhs, sizes, cotangent)
        shared = jax.jit(jax.vmap(both, (0, None, 0, 0)))(lhs, rhs[0], sizes, cotangent)
    assert sizes.dtype == np.int64
    first, second = members
    for got, arrays in (
        (alone, first),
        (reference.Gradients(*(x[1] for x in mapped)), second),
        (reference.Gradients(*(x[1] for x in shared)), (second[0], first[1], *second[2:])),
    ):
        check(got, reference.grouped_matmul(*arrays), magnitudes(reference.grouped_matmul, *arrays), arrays[2])


@OURS
def test_experts_where_whole_numbers_have_64_bits(implementation: str, rng):
    arrays = ffn.draw(rng, 24, 5, 3, [3, 0, 18])
    with jax.enable_x64(True):
        got = ffn.computed(implementation)(*arrays[:4], arrays[4].astype(np.int64), arrays[5])
    ffn.check(got, *arrays)


@pytest.mark.parametrize("dtype", ["float64", "float16", "complex64", "int32", "bool"])
def test_operands_of_other_dtypes(dtype: str):
    rows, up, down, sizes = jnp.ones((8, 2)), jnp.ones((3, 2, 5)), jnp.ones((3, 5, 2)), jnp.zeros(3, int)
    with jax.enable_x64(True):
        cases: Any = (
            (grouped_matmul, {"lhs": rows, "rhs": up}),
            (expert_ffn, {"rows": rows, "gate": up, "up": up, "down": down}),
        )
        for function, operands in cases:
            for i, name in enumerate(operands):
                spoiled = [x.astype(dtype) if name == other else x for other, x in operands.items()]
                with pytest.raises(ValueError, match=rf"^{name} \w+\[{spoiled[i].shape[0]},.*\] has to be bfloat16 or"):
                    function(*spoiled, sizes)
        with pytest.raises(ValueError, match=r"^rhs \w+\[8,2\] has to be bfloat16 or float32"):
            transposed_grouped_matmul(rows, rows.astype(dtype), sizes)
        for function, other in ((grouped_matmul, up), (transposed_grouped_matmul, rows)):
            with pytest.raises(ValueError, match=f"preferred_element_type = {dtype} has to be bfloat16 or float32"):
                function(rows, other, sizes, preferred_element_type=dtype)


@pytest.mark.parametrize("implementation", ["blocks", "ragged_dot"])
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_float32_is_multiplied_in_float32(implementation: str, platform: str):
    """GPUs and TPUs round it to fewer bits where they are not told otherwise; bfloat16 is here for `pallas_gpu`."""

    def both(lhs, rhs, sizes, cotangent):
        return jax.vjp(lambda a, b: grouped_matmul(a, b, sizes, implementation=implementation), lhs, rhs)[1](cotangent)

    shapes = (64, 5), (3, 5, 4), (3,), (64, 4)
    structs = [jax.ShapeDtypeStruct(s, jnp.int32 if len(s) == 1 else jnp.float32) for s in shapes]
    text = jax.jit(both).trace(*structs).lower(lowering_platforms=(platform,)).as_text()
    products = [line for line in text.splitlines() if re.search(r"(dot_general|ragged_dot)\b.*->", line)]
    assert len(products) >= 2
    for line in products:
        assert "HIGHEST" in line
        assert "DEFAULT" not in line


@OURS
def test_group_sizes_of_a_list(implementation: str):
    rows, up, down = jnp.ones((8, 2)), jnp.ones((3, 2, 5)), jnp.ones((3, 5, 2))
    cases: Any = (
        (grouped_matmul, (rows, up)),
        (transposed_grouped_matmul, (rows, rows)),
        (expert_ffn, (rows, up, up, down)),
    )
    for function, operands in cases:
        want = function(*operands, jnp.array([3, 0, 4]), implementation=implementation)
        np.testing.assert_array_equal(function(*operands, [3, 0, 4], implementation=implementation), want)
        with pytest.raises(ValueError, match="at most M = 8"):
            function(*operands, [3, 3, 3], implementation=implementation)


def test_numpys_arrays(rng):
    """Of 64 bits, which JAX takes as 32."""
    lhs, rhs = rng.standard_normal((8, 2)), rng.standard_normal((3, 2, 5))
    arrays: Any = lhs, rhs, np.array([3, 0, 4])
    out = grouped_matmul(*arrays)
    assert out.dtype == np.float32
    want = reference.grouped_matmul(lhs, rhs, [3, 0, 4], np.zeros((8, 5))).out
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "alignment", "message"),
    [
        (np.array([2**32, 0, 1]), 1, r"at most M = 8: the least is 0, the sum 4294967297"),
        (np.eye(5000, dtype=np.int8)[2500] * -3, 1, r"at least 0 and .*the least is -3, the sum -3"),
        (np.eye(5000, dtype=np.int8)[2500] * 6, 4, r"multiples of alignment = 4: 6 of group 2500 is not"),
        (np.full(100, 3, np.int8), 1, r"at most M = 8: the least is 3, the sum 300"),
    ],
)
def test_what_is_said_of_many_sizes_or_large_ones(sizes, alignment: int, message: str):
    with pytest.raises(ValueError, match=message):
        grouped_matmul(jnp.ones((8, 2)), jnp.ones((sizes.size, 2, 2)), sizes, alignment=alignment)


@pytest.mark.parametrize("spoiled", range(5))
@pytest.mark.parametrize("shape", [(), (4,), (3, 1), (1, 3, 2, 5)])
def test_experts_of_other_ranks(spoiled: int, shape: tuple[int, ...]):
    shapes = [(8, 2), (3, 2, 5), (3, 2, 5), (3, 5, 2), (3,)]
    shapes[spoiled] = shape
    arrays: Any = [jnp.zeros(s, int if i == 4 else float) for i, s in enumerate(shapes)]
    with pytest.raises(ValueError, match=r"do not fit \[M, D\], \[E, D, F\], \[E, D, F\], \[E, F, D\], \[E\]"):
        expert_ffn(*arrays)
