"""BatchNorm in practice, measured: the experiments behind ``docs/guide``, each on real data and watched by bnmonitor.

``python -m benchmarks.guide`` trains everything anew and writes results, pages and pictures; ``make guide`` does it in
an environment of its own. A file of ``experiments`` is one page: what it varies, what it measures, and what it says.
"""
