"""Products and eigenvalues, against NumPy's in float64."""

from __future__ import annotations

import numpy as np
import pytest

from bnmonitor.measures.products import eigenvalues, eigenvectors, product


@pytest.fixture
def points() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(5, 64, 24))


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-4)])
def test_they_are_those_of_numpy(points: np.ndarray, dtype: type, tolerance: float) -> None:
    rows = points.astype(dtype)
    turned = rows.swapaxes(1, 2)
    exact = np.matmul(turned.astype(np.float64), rows.astype(np.float64))
    inner = product(turned, rows)
    assert inner.dtype == dtype
    np.testing.assert_allclose(inner, exact, atol=64 * tolerance)
    np.testing.assert_allclose(eigenvalues(inner), np.linalg.eigvalsh(exact), atol=64 * tolerance)
    values, vectors = eigenvectors(inner)
    np.testing.assert_allclose(np.matmul(vectors * values[:, None], vectors.swapaxes(1, 2)), exact, atol=64 * tolerance)
