"""Reports of runs as HTML pages, diagnosis of runs, and the check of an installation."""

from llm_reinforce.reports.diagnosis import diagnose, read_one_run
from llm_reinforce.reports.finding import Finding, RunFacts
from llm_reinforce.reports.headline import headline
from llm_reinforce.reports.installation import Check, check_installation
from llm_reinforce.reports.live import live_report
from llm_reinforce.reports.page import REPORT, report
from llm_reinforce.reports.warning_signs import WarningSigns

__all__ = [
    "REPORT",
    "Check",
    "Finding",
    "RunFacts",
    "WarningSigns",
    "check_installation",
    "diagnose",
    "headline",
    "live_report",
    "read_one_run",
    "report",
]
