"""A run as a page that shows its curves, its episodes token by token, and what it has changed."""

from llm_reinforce.report.live import live_report
from llm_reinforce.report.page import REPORT, report

__all__ = ["REPORT", "live_report", "report"]
