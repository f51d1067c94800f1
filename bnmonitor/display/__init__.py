"""How results look in a terminal; free of torch."""

from bnmonitor.display.alerts import alert_brief, finding_block, finding_brief
from bnmonitor.display.incidents import incident_block, incident_change, incident_line, incident_rest
from bnmonitor.display.layers import sparkline
from bnmonitor.display.printing import drawn, plainly, prepare, say, show
from bnmonitor.display.styles import HEALTHY, OF_SEVERITY, QUIET, STRONG, WORSE, strong
from bnmonitor.display.tables import aside, done, final_summary, headline, health_table, unchecked

__all__ = [
    "HEALTHY",
    "OF_SEVERITY",
    "QUIET",
    "STRONG",
    "WORSE",
    "alert_brief",
    "aside",
    "done",
    "drawn",
    "final_summary",
    "finding_block",
    "finding_brief",
    "headline",
    "health_table",
    "incident_block",
    "incident_change",
    "incident_line",
    "incident_rest",
    "plainly",
    "prepare",
    "say",
    "show",
    "sparkline",
    "strong",
    "unchecked",
]
