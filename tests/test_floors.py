"""The floors: a lower one never imports a higher one, and the contract that says so sees it."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import llm_reinforce

ROOT = Path(__file__).parents[1]
PACKAGE = Path(llm_reinforce.__file__).parent
FLOORS = (  # from the top; DESIGN's floors 5 to 0, and what all stand on
    {"cli"},
    {"assemble"},
    {"training"},
    {"evaluation", "laboratory"},
    {"episodes"},
    {"policy", "rewards"},
    {"policy_gradient", "tasks", "recipe"},
    {"errors", "hub", "seeds"},
)


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    lint = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", lint, "--no-cache", "--config", str(root / "pyproject.toml")],
        cwd=root,
        env={"PYTHONPATH": str(root), "PATH": ""},
        capture_output=True,
        text=True,
    )


def contracts() -> list[dict[str, object]]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return settings["tool"]["importlinter"]["contracts"]  # type: ignore[no-any-return]


def test_the_floors_hold() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_the_contract_is_the_design() -> None:
    (layers,) = (contract["layers"] for contract in contracts() if contract["type"] == "layers")
    assert isinstance(layers, list)
    found = [{name.strip().removeprefix("llm_reinforce.") for name in layer.split("|")} for layer in layers]
    assert found == list(FLOORS)


def test_every_folder_is_on_a_floor() -> None:
    folders = {entry.parent.name for entry in PACKAGE.glob("*/__init__.py")}
    assert folders <= set().union(*FLOORS)
    for floor in FLOORS:
        for name in floor:
            assert (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file(), name


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("policy_gradient/losses.py", "from llm_reinforce.policy import sampling"),
        ("evaluation/accuracy.py", "import llm_reinforce.training"),
        ("rewards/functions.py", "import llm_reinforce.policy"),  # beside it
        ("tasks/verifier.py", "import llm_reinforce.policy_gradient"),
        ("errors.py", "import llm_reinforce.problems"),
        ("tasks/problem.py", "import torch"),
        ("policy_gradient/returns.py", "import transformers"),
    ],
)
def test_a_breach_is_seen(tmp_path: Path, file: str, line: str) -> None:
    shutil.copytree(
        PACKAGE, tmp_path / "llm_reinforce", ignore=shutil.ignore_patterns("__pycache__", "recipes")
    )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    breached = tmp_path / "llm_reinforce" / file
    breached.write_text(breached.read_text() + f"\n{line}\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "BROKEN" in done.stdout
