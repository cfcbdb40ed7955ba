"""The layers: a lower one never imports a higher one, every module belongs to one, and breaches are found."""

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


def test_the_contracts_hold() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_the_contract_covers_every_module() -> None:
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


BREACHES = {  # a line in a module -> how the report names the import
    "policy_gradient/losses.py": ("from llm_reinforce.policy import sampling", "llm_reinforce.policy"),
    "evaluation/accuracy.py": ("import llm_reinforce.training", "llm_reinforce.training"),
    "rewards/built_in.py": ("import llm_reinforce.policy", "llm_reinforce.policy"),  # the same layer
    "verifier/verify.py": ("import llm_reinforce.problems", "llm_reinforce.problems"),
    "errors.py": ("import llm_reinforce.problems", "llm_reinforce.problems"),
    "problems/problem.py": ("import torch", "torch"),
    "policy_gradient/returns.py": ("import transformers", "transformers"),
}


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the package, to break its layers in."""
    ignored = shutil.ignore_patterns("__pycache__", "recipes")
    shutil.copytree(PACKAGE, tmp_path / "llm_reinforce", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_forbidden_imports_are_reported(copied: Path) -> None:
    for file, (line, _) in BREACHES.items():
        path = copied / "llm_reinforce" / file
        path.write_text(f"{path.read_text()}\n{line}\n")
    done = lint_imports(copied)
    assert done.returncode == 1
    report = " ".join(done.stdout.split())
    for file, (_, imported) in BREACHES.items():
        module = "llm_reinforce." + file.removesuffix(".py").replace("/", ".")
        assert f"{module} -> {imported}" in report, done.stdout


def test_a_module_without_a_layer_is_reported(copied: Path) -> None:
    (copied / "llm_reinforce" / "elsewhere.py").touch()
    done = lint_imports(copied)
    assert done.returncode == 1
    assert "elsewhere" in done.stdout + done.stderr
