"""Layers of the package: no lower layer imports a higher one, and every module belongs to a layer."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import llm_reinforce

ROOT = Path(__file__).parents[1]
PACKAGE = Path(llm_reinforce.__file__).parent


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    lint = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", lint, "--no-cache", "--config", str(root / "pyproject.toml")],
        cwd=root,
        env={"PYTHONPATH": str(root), "PATH": ""},
        capture_output=True,
        text=True,
    )


def test_contracts_hold() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_contract_covers_every_module() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (contract,) = (each for each in settings["contracts"] if each["type"] == "layers")
    assert contract["exhaustive"]
    named = {name.strip(" ()") for layer in contract["layers"] for name in layer.split("|")}
    folders = {entry.parent.name for entry in PACKAGE.glob("*/__init__.py")}
    modules = {file.stem for file in PACKAGE.glob("*.py")} - {"__init__"}
    assert folders | modules == named


def test_no_module_shadows_the_standard_library() -> None:
    names = {path.stem for path in PACKAGE.rglob("*.py")} | {path.name for path in PACKAGE.rglob("*/")}
    assert not names & set(sys.stdlib_module_names) - {"__init__", "__main__"}


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("policy_gradient/losses.py", "from llm_reinforce.policy import sampling"),
        ("evaluation/accuracy.py", "import llm_reinforce.training"),
        ("rewards/built_in.py", "import llm_reinforce.policy"),  # a layer at the same level
        ("verifier/verify.py", "import llm_reinforce.problems"),
        ("errors.py", "import llm_reinforce.problems"),
        ("problems/problem.py", "import torch"),
        ("policy_gradient/returns.py", "import transformers"),
        ("elsewhere.py", ""),  # belongs to no layer
    ],
)
def test_forbidden_import_is_found(tmp_path: Path, file: str, line: str) -> None:
    shutil.copytree(
        PACKAGE, tmp_path / "llm_reinforce", ignore=shutil.ignore_patterns("__pycache__", "recipes")
    )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    breached = tmp_path / "llm_reinforce" / file
    breached.write_text((breached.read_text() if breached.exists() else "") + f"\n{line}\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
