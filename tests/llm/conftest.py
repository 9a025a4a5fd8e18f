"""Numpy on one thread: its BLAS waits by spinning, which on busy cores takes four times as long as one thread alone."""

from collections.abc import Iterator

import pytest

try:
    from threadpoolctl import threadpool_limits
except ImportError:  # it comes with scikit-learn
    threadpool_limits = None


@pytest.fixture(scope="session", autouse=True)
def numpy_on_one_thread() -> Iterator[None]:
    if threadpool_limits is None:
        yield
        return
    with threadpool_limits(1, user_api="blas"):
        yield
