"""How results look in a terminal; free of torch."""

from bnmonitor.display.alerts import alert_block, alert_brief, alert_change, finding_block, finding_brief
from bnmonitor.display.printing import drawn, plainly, prepare, say, show
from bnmonitor.display.styles import HEALTHY, OF_SEVERITY, QUIET, STRONG, WORSE, strong
from bnmonitor.display.tables import final_summary, health_table, sparkline, unchecked

__all__ = [
    "HEALTHY",
    "OF_SEVERITY",
    "QUIET",
    "STRONG",
    "WORSE",
    "alert_block",
    "alert_brief",
    "alert_change",
    "drawn",
    "final_summary",
    "finding_block",
    "finding_brief",
    "health_table",
    "plainly",
    "prepare",
    "say",
    "show",
    "sparkline",
    "strong",
    "unchecked",
]
