"""A WGAN: five steps of the critic for one of the generator, which makes samples without gradients for the critic."""

import torch
from common import digest, digits, seed
from torch import nn

seed()
x, *_ = digits()
generator = nn.Sequential(nn.Linear(16, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64))
critic = nn.Sequential(nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
of_g = torch.optim.RMSprop(generator.parameters(), 5e-4)
of_c = torch.optim.RMSprop(critic.parameters(), 5e-4)
for step, i in enumerate(torch.randperm(len(x)).repeat(8).split(64)):
    with torch.no_grad():
        fake = generator(torch.randn(64, 16))
    of_c.zero_grad()
    loss = critic(fake).mean() - critic(x[i].flatten(1)).mean()
    loss.backward()
    of_c.step()
    for p in critic.parameters():
        p.data.clamp_(-0.1, 0.1)
    if step % 5 == 4:
        of_g.zero_grad()
        (-critic(generator(torch.randn(64, 16))).mean()).backward()
        of_g.step()
print(loss.item())
digest(generator, critic)
