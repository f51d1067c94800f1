"""Autocast to bfloat16 with a gradient scaler, gradients clipped and cleared to None after the step."""

import torch
from common import Net, digest, digits, seed
from torch import nn

seed()
x, y, vx, vy = digits()
net = Net()
optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
scaler = torch.amp.GradScaler("cpu")
for epoch in range(2):
    net.train()
    for i in torch.randperm(len(x)).split(32):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(net(x[i]), y[i])
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
    net.eval()
    with torch.inference_mode():
        print(epoch, (net(vx).argmax(1) == vy).float().mean().item())
digest(net)
