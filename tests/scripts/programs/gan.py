"""A GAN with two optimizers."""

import torch
from common import digest, digits, seed
from torch import nn

seed()
x, *_ = digits()
generator = nn.Sequential(nn.Linear(16, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), nn.Sigmoid())
critic = nn.Sequential(
    nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 32, bias=False), nn.BatchNorm1d(32), nn.LeakyReLU(0.2),
    nn.Linear(32, 1),
)  # fmt: skip
of_g = torch.optim.Adam(generator.parameters(), 2e-3, betas=(0.5, 0.999))
of_c = torch.optim.Adam(critic.parameters(), 2e-3, betas=(0.5, 0.999))
bce = nn.BCEWithLogitsLoss()
for _ in range(2):
    for i in torch.randperm(len(x)).split(64):
        real, size = x[i].flatten(1), len(i)
        of_c.zero_grad()
        fake = generator(torch.randn(size, 16))
        loss = bce(critic(real), torch.ones(size, 1)) + bce(critic(fake.detach()), torch.zeros(size, 1))
        loss.backward()
        of_c.step()
        of_g.zero_grad()
        bce(critic(fake), torch.ones(size, 1)).backward()
        of_g.step()
print(loss.item())
digest(generator, critic)
