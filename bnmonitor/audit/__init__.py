"""A checkpoint or a model judged without training it."""

from bnmonitor.audit.cards import Audited, badge, card
from bnmonitor.audit.checkpoint import checkpoint_files, is_shipped, read_checkpoint
from bnmonitor.audit.checkpoint_drift import drift, drift_table
from bnmonitor.audit.find import locate
from bnmonitor.audit.images import PIXELS, Estimates, estimate
from bnmonitor.audit.judge import Audit, audit
from bnmonitor.audit.one_step import forward
from bnmonitor.audit.questions import Question, examine
from bnmonitor.audit.show import audit_line, audit_table
from bnmonitor.audit.unreadable import UnreadableError

__all__ = [
    "PIXELS",
    "Audit",
    "Audited",
    "Estimates",
    "Question",
    "UnreadableError",
    "audit",
    "audit_line",
    "audit_table",
    "badge",
    "card",
    "checkpoint_files",
    "drift",
    "drift_table",
    "estimate",
    "examine",
    "forward",
    "is_shipped",
    "locate",
    "read_checkpoint",
]
