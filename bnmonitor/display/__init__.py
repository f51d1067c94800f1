"""How results look in a terminal; free of torch."""

from bnmonitor.display.printing import drawn, plainly, say, show
from bnmonitor.display.tables import alert_block, final_summary, health_table, sparkline, unchecked

__all__ = [
    "alert_block",
    "drawn",
    "final_summary",
    "health_table",
    "plainly",
    "say",
    "show",
    "sparkline",
    "unchecked",
]
