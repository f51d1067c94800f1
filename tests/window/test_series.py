from __future__ import annotations

import pytest
import torch

from bnmonitor import Monitor
from bnmonitor.window import SERIES
from tests.models import ARCHITECTURES, train


def test_every_statistic_of_the_history_is_served_and_says_where_nothing_is_known() -> None:
    architecture = ARCHITECTURES["residual"]
    model = architecture.build()
    seen = {"gamma": [], "beta": [], "beta_grad": []}

    def look(_: int) -> None:
        seen["gamma"].append(model[1].weight.detach().clone())
        seen["beta"].append(model[1].bias.detach().clone())
        seen["beta_grad"].append(model[1].bias.grad.clone())

    with Monitor(model, sinks=[], on_alert="log", sample_every_n_steps=4) as monitor:
        train(model, architecture.batches(10), monitor=monitor, after_step=look)
        served = {name: monitor.history("1", name) for name in SERIES}
        with pytest.raises(KeyError, match="input_skewness"):
            monitor.history("1", "input_skewnes")
    shape = (10, monitor.layers.channels[monitor.layers.index("1")])
    assert {tuple(values.shape) for values in served.values()} == {shape}
    for name in ("gamma", "beta"):
        truth = torch.stack(seen[name])
        assert torch.equal(served[name], truth)
        assert served[f"{name}_update"][0].isnan().all()
        assert torch.equal(served[f"{name}_update"][1:], truth.diff(dim=0))
    assert torch.equal(served["beta_grad"], torch.stack(seen["beta_grad"]))
    for name in SERIES:
        if name.startswith(("input_", "output_")):
            assert served[name].isfinite().all(1).nonzero().flatten().tolist() == [0, 4, 8], name
    torch.testing.assert_close(served["input_mean"][4], served["batch_mean"][4], rtol=1e-3, atol=1e-4)


def test_the_first_update_of_a_window_is_known_where_the_step_before_is_still_kept() -> None:
    architecture = ARCHITECTURES["mlp"]
    model = architecture.build()
    with Monitor(model, sinks=[], on_alert="log", window=4, check_every_n_steps=8, sample_every_n_steps=0) as monitor:
        train(model, architecture.batches(12), monitor=monitor)
        update = monitor.history(monitor.layers.names[0], "gamma_update")
    assert update.shape[0] == len(monitor.steps) == 4
    assert update.isfinite().all()
