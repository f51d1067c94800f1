"""A model that torch.compile was given, and one that is compiled in place."""

import warnings

import torch
from common import Net, digest, digits, seed
from torch import nn

warnings.simplefilter("error")
seed()
x, y, vx, vy = digits()
for way in ("function", "method"):
    net = Net()
    if way == "function":
        model = torch.compile(net, backend="eager")
    else:
        net.compile(backend="eager")
        model = net
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(2):
        model.train()
        for i in torch.randperm(1280).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[i]), y[i]).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            print((model(vx).argmax(1) == vy).float().mean().item())
    print(torch._dynamo.utils.counters["stats"]["unique_graphs"], torch._dynamo.utils.counters["graph_break"])
    digest(net)
