"""Every injection, in the order of the rules they are meant for."""

from __future__ import annotations

from bnmonitor.rules import CATALOGUE
from tests.end_to_end.faults.architecture import ARCHITECTURE
from tests.end_to_end.faults.batches import BATCHES
from tests.end_to_end.faults.bookkeeping import BOOKKEEPING
from tests.end_to_end.faults.injection import Injection
from tests.end_to_end.faults.modes import MODES
from tests.end_to_end.faults.networks import ALL, Network
from tests.end_to_end.faults.numerics import NUMERICS
from tests.end_to_end.faults.parameters import PARAMETERS
from tests.end_to_end.faults.ranks import RANKS
from tests.end_to_end.faults.running_average import RUNNING_AVERAGE
from tests.end_to_end.faults.sample_size import SAMPLE_SIZE

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
)
"""All faults, whether there is a rule for them yet or not."""

_CODES = {rule.code for rule in CATALOGUE}

INJECTIONS: dict[str, Injection] = {fault.name: fault for fault in EVERY if fault.code in _CODES}
"""The faults that a rule of the catalogue is meant for, by name."""


def fitting(fault: Injection) -> list[Network]:
    """The networks that a fault can be put into."""
    return [network for network in ALL if fault.fits(network)]


def example(fault: Injection) -> Network:
    """One of them: another for each fault, so that a few runs see many networks."""
    networks = fitting(fault)
    return networks[list(INJECTIONS).index(fault.name) % len(networks)]
