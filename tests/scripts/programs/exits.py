"""Ends by sys.exit in a function, with arguments, a logger on standard output and a class that is pickled."""

import argparse
import logging
import pickle
import sys

import torch
from common import Net, digest, digits, seed
from torch import nn


class Mine(Net):
    pass


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    logging.basicConfig(stream=sys.stdout, level=logging.DEBUG, format="%(name)s %(message)s")
    logging.getLogger("train").info("begins with %s", options)
    seed()
    x, y, *_ = digits()
    net = Mine()
    optimizer = torch.optim.SGD(net.parameters(), lr=5.0)
    for i in torch.randperm(len(x)).repeat(4).split(32)[: options.steps]:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[i]), y[i]).backward()
        optimizer.step()
    digest(pickle.loads(pickle.dumps(net)))
    print(sorted(name for name in sys.modules["__main__"].__dict__ if not name.startswith("__")), sys.argv)
    sys.exit(7)


if __name__ == "__main__":
    main()
