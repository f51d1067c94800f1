"""A student learns from a teacher in evaluation mode, and is evaluated with gradients."""

import torch
from common import Net, digest, digits, seed
from torch import nn

seed()
x, y, vx, vy = digits()
teacher, student = Net(), Net()
first = torch.optim.Adam(teacher.parameters(), 3e-3)
for i in torch.randperm(len(x)).split(32):
    first.zero_grad()
    nn.functional.cross_entropy(teacher(x[i]), y[i]).backward()
    first.step()
teacher.eval()
optimizer = torch.optim.Adam(student.parameters(), 3e-3)
for _ in range(2):
    student.train()
    for i in torch.randperm(len(x)).split(32):
        with torch.no_grad():
            wanted = teacher(x[i]).softmax(1)
        optimizer.zero_grad()
        nn.functional.cross_entropy(student(x[i]), wanted).backward()
        optimizer.step()
    student.eval()
    print((student(vx).argmax(1) == vy).float().mean().item())
digest(teacher, student)
