"""Products and eigenvalues of NumPy's matrices, computed by PyTorch.

NumPy's linear algebra has worker threads of its own, which nobody can keep still: while those of a training spin, the
eigenvalues of a matrix of 64 rows take 50 ms instead of half of one. PyTorch obeys
:class:`bnmonitor.monitor.single_threaded.SingleThreaded`.
"""

from __future__ import annotations

import torch

from bnmonitor.measures.robust import Array


def product(one: Array, other: Array) -> Array:
    """Return the matrix product of two arrays of the same type, ``[..., M, K]`` and ``[..., K, N]``."""
    found: Array = (torch.from_numpy(one) @ torch.from_numpy(other)).numpy()
    return found


def eigenvalues(symmetric: Array) -> Array:
    """Return the eigenvalues of symmetric matrices ``[..., N, N]``, the smallest first."""
    found: Array = torch.linalg.eigvalsh(torch.from_numpy(symmetric)).numpy()
    return found


def eigenvectors(symmetric: Array) -> tuple[Array, Array]:
    """Return the eigenvalues of symmetric matrices ``[..., N, N]``, the smallest first, and the vectors as columns."""
    values, vectors = torch.linalg.eigh(torch.from_numpy(symmetric))
    return values.numpy(), vectors.numpy()
