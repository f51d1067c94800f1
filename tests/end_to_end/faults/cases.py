"""One sound training: its network, recipe and seed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tests.end_to_end.faults.injection import Injection
from tests.end_to_end.faults.networks import NETWORKS, Network
from tests.end_to_end.faults.recipes import PLAIN, Recipe
from tests.end_to_end.faults.trial import Outcome, Trial

STEPS = 180
"""Of a run under a plain recipe: past every warm-up and several windows long."""


@dataclass(frozen=True)
class Case:
    """One sound training."""

    name: str
    network: str
    recipe: Recipe
    injection: Injection
    seed: int = 0

    @property
    def key(self) -> str:
        return f"{self.name}/{self.network}/{self.seed}"

    def again(self, times: int) -> Case:
        """The same with another seed, which no other case of the suite has."""
        return replace(self, seed=self.seed + 10 * times)

    def run(self) -> Outcome:
        outcome = Trial(NETWORKS[self.network], self.recipe, self.injection, self.seed).run()
        outcome.name = self.name
        return outcome


def suited(network: Network, recipe: Recipe) -> Recipe:
    """No more samples a batch than a small data set can give four times."""
    return replace(recipe, batch=min(recipe.batch, 32)) if "small" in network.traits else recipe


def each(name: str, networks: str, injection: Injection, recipe: Recipe = PLAIN) -> list[Case]:
    """A case for each of the networks, named in words."""
    return [Case(name, n, suited(NETWORKS[n], recipe), injection) for n in networks.split()]
