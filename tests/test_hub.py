"""The hub is contacted once, and cached files are used if it is not reachable."""

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import datasets
import huggingface_hub
import pytest
from huggingface_hub import constants
from typer.testing import CliRunner, Result

from llm_reinforce.cli import app
from llm_reinforce.errors import InputError
from llm_reinforce.hub import hub_answers
from llm_reinforce.policy import LanguagePolicy, load_policy

COMMIT = "0" * 40


class Session:
    """A session that counts its requests, which succeed or raise an error."""

    def __init__(self, error: Exception | None) -> None:
        self.error, self.asked = error, 0

    def head(self, url: str, timeout: float) -> object:
        self.asked += 1
        if self.error:
            raise self.error
        return object()


@pytest.fixture(autouse=True)
def clear_cache() -> Iterator[None]:
    hub_answers.cache_clear()
    yield
    hub_answers.cache_clear()


@pytest.mark.parametrize(("error", "answers"), [(None, True), (OSError("no route"), False)])
def test_hub_is_contacted_once(
    error: Exception | None, answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(error)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: session)
    assert [hub_answers(), hub_answers()] == [answers, answers]
    assert session.asked == 1


def test_hub_is_not_contacted_in_offline_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: session)
    assert not hub_answers()
    assert session.asked == 0


def test_error_for_hub_policy_without_network_is_immediate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: Session(OSError("no route")))
    with pytest.raises(InputError, match=r"'no/such'.*from the hub failed.*network") as caught:
        load_policy("no/such")
    assert "\n" not in str(caught.value)


def evaluate(data: str) -> Result:
    words = ["evaluate", "--policy", "tiny/adder", "--data", data, "--template", "{prompt}"]
    return CliRunner().invoke(app, [*words, "--max-new-tokens", "3", "--json"])


def test_commands_hide_the_warnings_of_libraries() -> None:
    code = (
        "import logging; from llm_reinforce.cli.common import quieten; quieten(debug=False)\n"
        "import datasets, huggingface_hub, transformers\n"
        "names = 'huggingface_hub.utils._http', 'httpx', 'datasets.load', 'transformers.utils.hub'\n"
        "print([logging.getLogger(name).getEffectiveLevel() for name in names])"
    )  # in a process of its own, since the libraries read their settings when they are imported
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{[logging.ERROR] * 4}\n"


def test_cached_policy_and_data_are_used_offline(tiny_policy: LanguagePolicy) -> None:
    # the cache layouts of huggingface_hub and datasets, in the directory HF_HOME of the tests
    home = Path(constants.HF_HOME)
    model = home / "hub" / "models--tiny--adder"
    tiny_policy.save(model / "snapshots" / COMMIT)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    source = home / "source" / "gsm8k"
    source.mkdir(parents=True)
    rows = [{"question": f"{n}+1=", "answer": f"so\n#### {n + 1}"} for n in range(6)]
    (source / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    card = "---\nconfigs:\n- config_name: main\n  data_files: [{split: test, path: test.jsonl}]\n---\n"
    (source / "README.md").write_text(card)
    datasets.load_dataset(str(source), "main", split="test", cache_dir=str(home / "made"))
    (made,) = (home / "made").glob("gsm8k/main/*/*/dataset_info.json")
    shutil.copytree(made.parent, home / "datasets" / "openai___gsm8k" / "main" / "0.0.0" / COMMIT)

    found, missing = evaluate("gsm8k"), evaluate("svamp")
    assert found.exit_code == 0, found.stderr
    row = json.loads(found.stdout)
    assert (row["data"], row["policy"], row["total"]) == ("gsm8k", "tiny/adder", 6)
    assert (missing.exit_code, missing.stdout) == (2, "")
    assert "data set 'ChilleD/SVAMP'" in missing.stderr
    assert "not found, or no network" in missing.stderr
