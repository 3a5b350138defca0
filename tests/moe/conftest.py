"""Kernels in C++, and what takes their place."""

import pytest

from slicedice.kernels import implementations, is_native
from slicedice.moe import routing


@pytest.fixture(params=["native", "plain"])
def with_and_without_a_compiler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test by kernels in C++, if they can be made here, and by XLA alone."""
    if request.param == "native" and not is_native():
        pytest.skip("needs the CPU and a C++ compiler")
    for module in (implementations, routing):
        monkeypatch.setattr(module, "is_native", lambda: request.param == "native")
