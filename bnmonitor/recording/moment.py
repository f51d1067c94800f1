"""What a recorder is given: once, how to record; at each check, when and in what circumstances it looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch.optim import Optimizer

from bnmonitor.context import RunFacts


class RecorderSettings(Protocol):
    """How to record; :class:`bnmonitor.monitor.Settings` has it all."""

    @property
    def check_every_n_steps(self) -> int:
        """Steps between two checks, which the tape has to hold."""

    @property
    def window(self) -> int:
        """Steps kept at full resolution."""

    @property
    def sample_every_n_steps(self) -> int:
        """Steps from one activation sample to the next; 0: never."""

    @property
    def probe(self) -> bool:
        """Whether an extra forward may be run at the start of an evaluation."""

    @property
    def gather_affine(self) -> bool:
        """Whether the processes tell each other gamma and beta where these are split over them."""

    @property
    def include(self) -> Sequence[str]:
        """Glob patterns over layer names."""

    @property
    def exclude(self) -> Sequence[str]:
        """Glob patterns over layer names."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """When a window is made, and what is known of the run then.

    Attributes:
        optimizers: Those that train the model, as far as they are known.
        run: What the run says of itself.
        evaluation: The phase of the evaluation that is about to begin; empty if none is.
        end: Whether the training ends.
        wait: Whether to wait for what is still on its way from the device; else it comes with a later window.
    """

    optimizers: Sequence[Optimizer] = ()
    run: RunFacts = field(default_factory=RunFacts)
    evaluation: str = ""
    end: bool = False
    wait: bool = True
