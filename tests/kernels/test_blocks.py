"""What is particular to row blocks: the loop over chunks, and how rows are aligned."""

import functools
import re

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slicedice.kernels import blocks
from slicedice.kernels.groups import Groups

SIZES = np.array([16, 0, 8, 0, 0, 32, 8], np.int32)  # of 80 rows
FLOAT32 = np.dtype(np.float32)
FUNCTIONS = {
    "gmm": functools.partial(blocks.gmm, transpose_rhs=False, dtype=FLOAT32),
    "gmm transposed": functools.partial(blocks.gmm, transpose_rhs=True, dtype=FLOAT32),
    "tgmm": functools.partial(blocks.tgmm, dtype=FLOAT32),
}
SHAPES = {"gmm": (7, 5, 3), "gmm transposed": (7, 3, 5), "tgmm": (80, 3)}


def _compiled(name: str, lhs, other, alignment: int):
    """Compiled anew, since CHUNK_BYTES is read when a function is traced."""
    function = jax.jit(lambda lhs, other, sizes: FUNCTIONS[name](lhs, other, Groups(sizes, alignment=alignment)))
    compiled = function.lower(lhs, other, SIZES).compile()
    return str(compiled.as_text()), np.asarray(compiled(lhs, other, SIZES))


@pytest.mark.parametrize(("name", "alignment"), [("gmm", 1), ("gmm transposed", 8), ("tgmm", 1), ("tgmm", 8)])
def test_a_loop_over_chunks_gives_what_one_chunk_gives(name: str, alignment: int, rng, monkeypatch):
    lhs = rng.standard_normal((80, 5)).astype(np.float32)
    other = rng.standard_normal(SHAPES[name]).astype(np.float32)
    lhs[SIZES.sum() :] = 0.0
    program, want = _compiled(name, lhs, other, alignment)
    assert " while(" not in program
    # A chunk of all blocks but one, of three, and less than one matrix, which is one block.
    for chunk_blocks in (9, 3, 0.1):
        monkeypatch.setattr(blocks, "CHUNK_BYTES", int(chunk_blocks * 4 * 5 * 3))
        program, got = _compiled(name, lhs, other, alignment)
        assert " while(" in program
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert np.abs(want).max() > 1


@settings(deadline=None)
@given(groups=st.integers(0, 5000), rows=st.integers(1, 10**7))
def test_row_alignment(groups: int, rows: int):
    alignment = blocks.row_alignment(rows, groups)
    assert alignment in (8, 16, 32, 64, 128)
    if rows >= 32 * groups:
        assert groups * (alignment - 1) <= rows / 4, "filling up costs at most a quarter more rows"
    if 32 * groups <= rows < 1024 * groups:
        assert groups * alignment * 8 > rows, "blocks are as large as that allows"


@pytest.mark.parametrize(("alignment", "blocks_of"), [(1, 64), (2, 64), (64, 64), (256, 256)])
@pytest.mark.parametrize("name", ["gmm", "tgmm"])
def test_blocks_are_never_lower_than_they_had_best_be(name: str, alignment: int, blocks_of: int):
    """Every block copies a matrix: a promise that groups begin at even rows does not make blocks of two."""
    shapes = [(1024, 5), (4, 5, 3) if name == "gmm" else (1024, 3)]

    def function(lhs, other, sizes):
        return FUNCTIONS[name](lhs, other, Groups(sizes, alignment=alignment))

    arrays = *(jax.ShapeDtypeStruct(shape, FLOAT32) for shape in shapes), jax.ShapeDtypeStruct((4,), np.int32)
    program = jax.jit(function).lower(*arrays).as_text()
    products = re.findall(r"dot_general.* : \(tensor<\d+x(\d+)x", program)
    assert products == [str(blocks_of)]
