"""The fault suite: networks that train on real data, faults injected into them, and sound trainings that look alike.

An injection is written from the description of its fault alone; it knows nothing of the rule that should find it.
"""
