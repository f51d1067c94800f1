"""An error at every line of bnmonitor that a short training passes: the training never notices, Ctrl-C always arrives.

``make inject`` tries all lines, ``python -m tests.inject --only FILE:LINE`` one of them.
"""
