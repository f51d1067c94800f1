"""Every injection, in the order of the rules they are meant for."""

from __future__ import annotations

from dataclasses import replace

from bnmonitor.rules import CATALOGUE
from tests.end_to_end.faults.architecture import ARCHITECTURE
from tests.end_to_end.faults.batches import BATCHES
from tests.end_to_end.faults.bookkeeping import BOOKKEEPING
from tests.end_to_end.faults.federated import FEDERATED
from tests.end_to_end.faults.injection import Injection
from tests.end_to_end.faults.modes import MODES
from tests.end_to_end.faults.networks import ALL, NETWORKS, Network
from tests.end_to_end.faults.numerics import CHECKPOINTS, NUMERICS
from tests.end_to_end.faults.parameters import PARAMETERS
from tests.end_to_end.faults.places import PLACES
from tests.end_to_end.faults.ranks import RANKS
from tests.end_to_end.faults.running_average import RUNNING_AVERAGE
from tests.end_to_end.faults.sample_size import SAMPLE_SIZE
from tests.end_to_end.faults.unwatched import UNWATCHED

EVERY: tuple[Injection, ...] = (
    *NUMERICS,
    *SAMPLE_SIZE,
    *RUNNING_AVERAGE,
    *MODES,
    *BOOKKEEPING,
    *BATCHES,
    *PARAMETERS,
    *ARCHITECTURE,
    *RANKS,
    *CHECKPOINTS,  # at the end: the place of a fault decides on which network it is tried
    *PLACES,
    *UNWATCHED,
    *FEDERATED,
)
"""All faults, whether there is a rule for them yet or not."""

_CODES = {rule.code for rule in CATALOGUE}

INJECTIONS: dict[str, Injection] = {fault.name: fault for fault in EVERY if fault.code in _CODES}
"""The faults that a rule of the catalogue is meant for, by name."""


_STRONGER: dict[str, dict[str, object]] = {
    "two-classes-a-batch": {"batch_size": 192, "steps": 150, "tried_on": "conv3d"},
    "dropout-.7-before": {"name": "dropout-.9-before", "p": 0.9},
}

TRIED: tuple[Injection, ...] = tuple(
    replace(fault, **_STRONGER.get(name, {}))
    for name, fault in INJECTIONS.items()  # type: ignore[arg-type]
)
"""What the test suite tries: those that lie near their threshold, which a few trainings cannot judge, are stronger."""


def fitting(fault: Injection) -> list[Network]:
    """The networks that a fault can be put into."""
    return [network for network in ALL if fault.fits(network)]


def example(fault: Injection) -> Network:
    """One of them: another for each fault, so that a few runs see many networks."""
    if fault.tried_on:
        return NETWORKS[fault.tried_on]
    networks = fitting(fault)
    return networks[[other.name for other in TRIED].index(fault.name) % len(networks)]
