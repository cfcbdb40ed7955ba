"""Settings of the test processes, and the order in which two workers take the test files."""

import os
import sys
import tempfile

import pytest

# also for the processes that tests start
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
# The libraries read it when they are imported. Tests find nothing in the caches of whoever runs them.
hf_home = tempfile.TemporaryDirectory(prefix="hf_home_")
os.environ["HF_HOME"] = hf_home.name
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Without bytecode, each of these processes would compile the package again.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_configure(config: pytest.Config) -> None:
    """Import torch and the shared fixtures, except in the process that only distributes tests to workers."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        config.pluginmanager.import_plugin("shared_setup")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put test files with slow tests first, so that no worker starts one of them when the others are done."""
    slow_files = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow_files)
