"""An average of weights, buffers and counters that is updated once an epoch, and evaluated
beside the network in inference mode."""

import copy

import torch
from common import Net, digest, digits, seed
from torch import nn

seed()
x, y, vx, vy = digits()
net = Net()


class Average(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(model).eval()

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        for ours, its in zip(self.module.state_dict().values(), model.state_dict().values(), strict=True):
            ours.copy_(0.9 * ours + 0.1 * its)


ema = Average(net)
optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
for epoch in range(4):
    net.train()
    for i in torch.randperm(len(x))[:320].split(32):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[i]), y[i]).backward()
        optimizer.step()
    ema.update(net)
    net.eval()
    with torch.inference_mode():
        for i in torch.arange(len(vx)).split(128):
            print(epoch, *((each(vx[i]).argmax(1) == vy[i]).sum().item() for each in (net, ema.module)))
digest(net, ema)
