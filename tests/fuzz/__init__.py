"""Random programs: small models and trainings, composed from a seed, run watched and unwatched, and compared.

``python -m tests.fuzz --seed N`` runs one of them again, ``make fuzz`` as many as fit into a time.
"""
