"""A custom rule: gamma should stay within a band, and weight decay on gamma drives it out.

Run it with ``python custom_rule.py [LOG_DIR]``.
"""

import sys
from dataclasses import dataclass
from typing import ClassVar

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bnmonitor import Finding, Monitor, Rule, Severity
from bnmonitor.measures import median
from bnmonitor.rules import onset
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class GammaOutOfBand(Rule):
    """The median gamma of a layer has left the band that this project keeps it in.

    ## What it does
    Takes the median of ``abs(gamma)`` over a layer's channels after the last step, and flags the layer if it is below
    ``low`` or above ``high``.

    ## Why is this bad?
    Gamma is the standard deviation of the layer's output. Near zero, the layer outputs little more than beta, and its
    gradient is as small. A large gamma makes the inputs of the next layer large.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> [finding] = GammaOutOfBand().check(make_window(gamma=[0.1, 0.05, 0.2]))
    >>> str(finding.severity), round(finding.value, 2)
    ('warning', 0.1)

    Inside the band the rule stays quiet, even if a single channel is outside:

    >>> GammaOutOfBand().check(make_window(gamma=[0.1, 1.0, 1.2]))
    []

    ## What to do
    Remove weight decay from gamma and beta, with parameter groups.

    ## Thresholds
    ``low = .5`` and ``high = 2``: a factor of two up or down from the start of gamma.

    ## Look-alikes
    Residual branches that start at gamma = 0 are below the band at first: ``exclude`` them.
    """

    code: ClassVar[str] = "MY001"
    name: ClassVar[str] = "gamma-out-of-band"
    severity: ClassVar[Severity] = Severity.WARNING
    confirm: ClassVar[int] = 20

    low: float = 0.5
    high: float = 2.0

    def check(self, window: Window) -> list[Finding]:
        middle = median(window.gamma[-1].abs(), window)
        outside = (middle < self.low) | (middle > self.high)
        return [self._finding(window, layer, float(middle[layer])) for layer in outside.nonzero().flatten().tolist()]

    def _finding(self, window: Window, layer: int, value: float) -> Finding:
        course = window.gamma[:, window.layers.span(layer)].abs().median(1).values
        limit = self.low if value < self.low else self.high
        return Finding(
            severity=self.severity,
            layer=layer,
            first_step=onset((course < self.low) | (course > self.high), window),
            value=value,
            threshold=limit,
            message=f"gamma is {value:.3g} in the median channel, outside {self.low:g} to {self.high:g}",
            advice="remove weight decay from gamma and beta: give them a parameter group with weight_decay=0",
        )


def main() -> None:
    log_dir = sys.argv[1] if len(sys.argv) > 1 else "runs/custom_rule"
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    loader = DataLoader(TensorDataset(images, torch.tensor(digits.target)), batch_size=64, shuffle=True)

    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10)
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.1)  # the fault: it acts on gamma too

    with Monitor(net, optimizer=optimizer, log_dir=log_dir, rules=[GammaOutOfBand(low=0.6)]) as monitor:
        for _ in range(6):
            for batch, labels in loader:
                loss = nn.functional.cross_entropy(net(batch), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                monitor.step()
        gamma = monitor.history("1", "gamma").abs().median(1).values
        print(f"gamma over the last {len(gamma)} steps: {gamma[0]:.2f} to {gamma[-1]:.2f}")


if __name__ == "__main__":
    main()
