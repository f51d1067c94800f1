"""A step within the capture of a CUDA graph, as PyTorch reports one."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from bnmonitor import BatchNormWarning, Monitor
from tests.operations import Operations


def test_a_step_within_a_capture_is_left_out_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with Monitor(model, sinks=[], on_alert="log") as monitor:
        model(torch.randn(8, 3)).sum().backward()
        monitor.step()
        with monkeypatch.context() as capture:
            capture.setattr(torch.cuda, "is_initialized", lambda: True)
            capture.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
            with warnings.catch_warnings(record=True) as said, Operations() as operations:
                warnings.simplefilter("always")
                monitor.step()
                monitor.step()
        [warning] = said
        assert warning.category is BatchNormWarning
        assert "call monitor.step() after each replay" in str(warning.message)
        assert operations.total == 0
        model(torch.randn(8, 3)).sum().backward()
        monitor.step()
    assert monitor.failure == ""
    assert monitor.steps == (0, 1)
