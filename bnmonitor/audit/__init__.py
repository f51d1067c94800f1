"""Judge a checkpoint or a model without training it."""

from bnmonitor.audit.judge import Audit, audit

__all__ = ["Audit", "audit"]
