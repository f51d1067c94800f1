"""Three forwards of one network for each step, by parts with optimizers of their own."""

import torch
from common import Net, digest, digits, seed
from torch import nn

seed()
x, y, *_ = digits()
encoder = Net().body
head = nn.Sequential(nn.Linear(128, 32, bias=False), nn.BatchNorm1d(32))
optimizers = [torch.optim.SGD(encoder.parameters(), 0.05), torch.optim.SGD(head.parameters(), 0.05)]
loss = nn.TripletMarginLoss()


def embed(a):
    return head(encoder(a).flatten(1))


for _ in range(3):
    for i in torch.randperm(len(x))[:1024].split(32):
        positive, negative = x[i].roll(1, 3), x[i.flip(0)]
        value = loss(embed(x[i]), embed(positive), embed(negative))
        for optimizer in optimizers:
            optimizer.zero_grad()
        value.backward()
        for optimizer in optimizers:
            optimizer.step()
print(value.item())
digest(encoder, head)
