"""What the headline says of what was not seen."""

import pytest
from torch import nn

from bnmonitor import BatchNormWarning, Monitor


def test_a_model_without_a_layer_is_not_called_healthy() -> None:
    with pytest.warns(BatchNormWarning, match="no BatchNorm layer"):
        monitor = Monitor(nn.Linear(2, 2), sinks=[])
    assert monitor.summary().headline() == "BatchNorm · no layer is watched"


def test_a_layer_before_its_first_step_is_not_called_healthy() -> None:
    monitor = Monitor(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), sinks=[])
    assert monitor.summary().headline() == "BatchNorm · nothing is known of 1 layer: no step was recorded yet"
