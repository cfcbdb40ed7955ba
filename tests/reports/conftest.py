"""A report that several tests read."""

from pathlib import Path

import pytest

from llm_reinforce import report
from tests.reports.made_up_run import write_run


@pytest.fixture(scope="session")
def long_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of the report of a run of 1,001 updates."""
    return report(write_run(tmp_path_factory.mktemp("runs") / "long", num_updates=1001, num_tokens=100))
