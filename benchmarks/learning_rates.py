"""How a learning rate that is too high from the first step is told of: networks x rates x seeds, and rates that train.

``python benchmarks/learning_rates.py`` prints a table; ``--seeds 1`` is quicker.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

import torch  # noqa: E402

from tests.end_to_end.faults.rates import CAUSE, RateOutcome, train  # noqa: E402

NETWORKS = ("residual", "chain", "depthwise", "mlp", "conv1d")
HIGH = (("sgd", 3.0), ("sgd", 10.0), ("sgd", 30.0), ("adam", 1.0))
SOUND = (("sgd", 0.05), ("sgd", 0.1), ("adam", 0.003), ("adam", 0.01))
CHECK = 10

logging.getLogger("bnmonitor").setLevel(logging.CRITICAL)


def share(found: int, of: int) -> str:
    """A share with its counts."""
    return f"{found} of {of}" + (f" ({100 * found / of:.0f} %)" if of else "")


def line(outcome: RateOutcome) -> str:
    """One training in a line."""
    causes = ", ".join(f"{i.cause} {i.severity} {i.state}" for i in outcome.incidents) or "nothing"
    return (
        f"{'lost' if outcome.lost else 'trained'}, accuracy {outcome.accuracy:.2f}, "
        f"loss left at {outcome.left}, error at {outcome.error}: {causes}"
    )


def main() -> None:
    """Train, and count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = range(parser.parse_args().seeds)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found: dict[str, list[RateOutcome]] = {"high": [], "sound": []}
    for kind, rates in (("high", HIGH), ("sound", SOUND)):
        for network in NETWORKS:
            for optimizer, rate in rates:
                for seed in seeds:
                    outcome = train(network, optimizer, rate, seed)
                    found[kind].append(outcome)
                    print(f"{network} {optimizer} {rate:g} seed {seed}: {line(outcome)}", flush=True)
    lost = [outcome for outcome in found["high"] if outcome.lost]
    left = [outcome for outcome in lost if outcome.left is not None]
    prompt = [o for o in left if o.error is not None and o.left is not None and o.error <= o.left + 2 * CHECK]
    print("\nlost trainings:", share(len(lost), len(found["high"])))
    print("the first incident is", CAUSE, "in", share(sum(o.right for o in lost), len(lost)))
    print("exactly one incident in", share(sum(len(o.incidents) == 1 for o in lost), len(lost)))
    print("an error within two checks of the loss leaving its start in", share(len(prompt), len(left)))
    resolved = [o for o in lost if o.incidents and o.incidents[0].state == "resolved"]
    print("resolved in", share(len(resolved), len(lost)))
    alarms = [o for o in found["sound"] if o.incidents]
    print("incidents at rates that train:", share(len(alarms), len(found["sound"])))


if __name__ == "__main__":
    main()
