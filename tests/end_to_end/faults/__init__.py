"""The fault suite: networks that train on real data, faults injected into them, and sound trainings that look alike.

An injection is written from the description of its fault alone; it knows nothing of the rule that should find it.
"""

import torch

# Threads that share busy cores wait for each other: a step of these networks takes milliseconds on one.
torch.set_num_threads(1)
