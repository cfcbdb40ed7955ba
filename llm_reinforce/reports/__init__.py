"""A run as a page that shows its curves, its episodes token by token, and what it has changed."""

from llm_reinforce.reports.live import live_report
from llm_reinforce.reports.page import REPORT, report

__all__ = ["REPORT", "live_report", "report"]
