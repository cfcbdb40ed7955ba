"""The README keeps its promises: its commands, its code, its tables and its file tree are tried."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from llm_reinforce.cli import app
from llm_reinforce.config import builtin_recipes, load_config
from llm_reinforce.problems import NAMED_SETS
from llm_reinforce.verifier import verify
from llm_reinforce.verifier.plain_answers import read_answer

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(marker: str) -> str:
    """The code block that follows `<!-- marker -->`."""
    found = re.search(rf"<!-- {re.escape(marker)} -->\n```\w*\n(.*?)```", README, re.DOTALL)
    assert found, f"README.md has no block marked {marker!r}"
    return found[1]


def train(recipe: str, *overrides: str) -> None:
    options = [word for override in overrides for word in ("--set", override)]
    result = CliRunner().invoke(app, ["train", recipe, *options])
    assert result.exit_code == 0, result.output


@pytest.fixture
def quickstart_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_run: list[str]) -> Path:
    """A directory to work in where a (tiny) quick start has been run."""
    monkeypatch.chdir(tmp_path)
    train("quickstart", *tiny_run)
    return tmp_path / "runs" / "quickstart"


def test_the_quick_start_command_runs_the_quick_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    *setup, last = block("command: quickstart").strip().split(" && ")
    assert setup == ["python3 -m venv .venv", ".venv/bin/pip install -c constraints.txt -e ."]
    program, *arguments = shlex.split(last)
    assert program == ".venv/bin/llm-reinforce"
    result = CliRunner().invoke(app, [*arguments, "--dry-run"])
    assert result.exit_code == 0, result.output


def test_the_compare_command_compares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_run: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    program, *arguments = shlex.split(block("command: compare").replace("\\\n", " "))
    assert program == ".venv/bin/llm-reinforce"
    for option, small in (("--seeds", "2"), ("--tokens", "200")):
        arguments[arguments.index(option) + 1] = small
    not_own = ("training.num_updates", "training.num_warmup_updates", "problems.num_held_out")
    tiny = [word for override in tiny_run if not override.startswith(not_own) for word in ("--set", override)]
    result = CliRunner().invoke(app, [*arguments, *tiny])
    assert result.exit_code == 0, result.output
    names = [row["name"] for row in json.loads(Path("runs/compare/comparison.json").read_text())["runs"]]
    assert names == ["leave_one_out", "none", "none, lr 1e-4"]
    table = README.split("## Compare")[1].split("\n## ")[0]
    for title in re.findall(r"^\| ([a-z ]+) \| [a-z]", table, re.MULTILINE)[1:]:
        assert title.replace("the target", "80% accuracy") in result.stdout


def test_the_variance_command_prints_such_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_run: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    program, *arguments = shlex.split(block("command: variance"))
    assert program == ".venv/bin/llm-reinforce"
    smaller = (override for override in tiny_run if "num_held_out" not in override)
    changes = [word for override in smaller for word in ("--set", override)]
    result = CliRunner().invoke(app, [*arguments, *changes, "--problems", "64"])
    assert result.exit_code == 0, result.output
    shown = README.split("## Variance")[1].split("```text\n")[1].split("```")[0]
    for line in shown.splitlines()[1:]:
        if word := re.match(r"\w+", line):  # the head, and a row an estimator
            assert re.search(rf"^{word[0]} ", result.stdout, re.MULTILINE), word[0]


def test_the_claims_are_commands() -> None:
    commands = re.findall(r"llm-reinforce claims (\w+)", README.split("## Variance")[1].split("\n## ")[0])
    assert set(commands) == set(get_command(app).commands["claims"].commands)  # type: ignore[attr-defined]


def test_ci_runs_the_test_command_of_the_readme() -> None:
    assert block("command: tests").strip().endswith(".venv/bin/python -m pytest")
    assert "readme_command tests" in (ROOT / ".ci" / "run").read_text()


def test_a_reward_in_five_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_run: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    code = block("file: short.py")
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) == 5
    Path("short.py").write_text(code, encoding="utf-8")
    recipe = yaml.safe_load((ROOT / "recipes" / "quickstart.yaml").read_text(encoding="utf-8"))
    recipe |= yaml.safe_load(block("file: rewards.yaml"))
    recipe["training"]["warm_start"]["learning_rate"] = 0.002  # safe_load takes 2e-3 for text
    recipe["training"]["learning_rate"] = 0.0005
    Path("mine.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    train("mine.yaml", *tiny_run)
    metrics = [json.loads(line) for line in Path("runs/quickstart/metrics.jsonl").read_text().splitlines()]
    assert all("rewards/right_and_short/mean" in row for row in metrics)


def test_the_python_example(quickstart_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(block("python: evaluate"), {})
    printed = capsys.readouterr().out
    assert "Verdict(correct=True" in printed


def test_the_example_with_a_model_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    exec(block("python: own"), {"__name__": "example"})
    assert capsys.readouterr().out.startswith("1 ")


def test_the_evaluate_command_prints_such_a_table(quickstart_run: Path, tiny_run: list[str]) -> None:
    train("from_scratch", *(override for override in tiny_run if "warm_start" not in override))
    program, *arguments = shlex.split(block("command: evaluate").replace("\\\n", " "))
    assert program == ".venv/bin/llm-reinforce"
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    shown = README.split("<!-- command: evaluate -->")[1].split("```text\n")[1].split("```")[0]

    def words(table: str) -> str:
        return " ".join(re.sub(r"[-+]?[0-9][0-9.e-]*%?", "0", table).split())

    assert words(result.stdout) == words(shown)


def test_the_evaluate_section_names_options_and_data_sets_that_are_there() -> None:
    section = README.split("## Evaluate")[1].split("\n## ")[0]
    command = get_command(app).commands["evaluate"]  # type: ignore[attr-defined]
    options = {option for parameter in command.params for option in parameter.opts}
    assert set(re.findall(r"(?<![-\w])--[a-z][a-z-]+", section)) <= options
    assert all(f"`{name}`" in section for name in NAMED_SETS)


def test_the_metrics_table_has_every_logged_name_and_no_other(
    quickstart_run: Path, tiny_run: list[str]
) -> None:
    for baseline in ("greedy", "value"):  # which log something of their own
        train("quickstart", *tiny_run, f"reinforce.baseline={baseline}", f"output_dir=runs/{baseline}")
    rows = [
        json.loads(line)
        for run in (quickstart_run, Path("runs/greedy"), Path("runs/value"))
        for line in (run / "metrics.jsonl").read_text().splitlines()
    ]
    logged = {key for row in rows for key in row} - {"update"}
    table = README.split("### The metrics")[1].split("\n## ")[0]
    documented = {
        name for line in table.splitlines() for name in re.findall(r"`([\w/]+)`", line.split(" | ")[0])
    }
    logged = {re.sub(r"^rewards/\w+/", "rewards/NAME/", name) for name in logged}
    logged = {re.sub(r"^verdicts/\w+", "verdicts/REASON", name) for name in logged}
    nothing_fails_here = {"rewards/NAME/num_failed", "greedy/num_unscored"}
    # where no episode is right, no return differs from another
    assert logged | nothing_fails_here | {"value/explained_variance"} == documented


def test_the_table_of_a_runs_files(quickstart_run: Path) -> None:
    table = README.split("## What a run writes")[1].split("###")[0]
    documented = {name.split("/")[0] for name in re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)}
    assert {entry.name for entry in quickstart_run.iterdir()} == documented


def test_the_layout_names_every_layer() -> None:
    table = README.split("## Layout")[1].split("\n## ")[0]
    named = re.findall(r"^\| `(\w+)/`", table, re.MULTILINE)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in settings if contract["type"] == "layers")
    in_order = [[name.strip(" ()") for name in layer.split("|")] for layer in reversed(layers)]
    folders = [name for layer in in_order for name in layer if (ROOT / "llm_reinforce" / name).is_dir()]
    assert sorted(named) == sorted(folders)
    rank = {name: number for number, layer in enumerate(in_order) for name in layer}
    assert [rank[name] for name in named if name != "policy_gradient"] == sorted(
        rank[name] for name in named if name != "policy_gradient"
    )
    for file in re.findall(r"`(\w+\.py)`", table):
        assert (ROOT / "llm_reinforce" / file).is_file(), file


def test_every_recipe_stands_in_the_table_and_loads() -> None:
    table = README.split("## Recipes")[1].split("\n## ")[0]
    for name, path in builtin_recipes().items():
        assert f"`{name}`" in table
        load_config(path)
        assert "Measured" in path.read_text(encoding="utf-8").split("\nseed:")[0]


def test_the_own_model_and_data_example_is_a_recipe(tmp_path: Path) -> None:
    example = README.split("## Your own model and data")[1].split("```yaml\n")[1].split("```")[0]
    file = tmp_path / "own.yaml"
    file.write_text(example + "training: {num_updates: 10, learning_rate: 1e-5}\n", encoding="utf-8")
    recipe = load_config(file)
    assert recipe.policy.lora is not None
    assert recipe.problems.num_held_out == 200


def test_the_table_of_what_is_read_and_refused() -> None:
    table = README.split("## How an answer is read")[1].split("\n## ")[0]
    rows = {
        line.split(" | ")[0].strip("| "): line.split(" | ")[1] for line in table.splitlines() if " | " in line
    }
    for example in re.findall(r"`([^`]+)`", rows["read as a number"]):
        assert verify(f"#### {example}", example).reason == "equal", example
        assert read_answer(example).value is not None, example
    for reason in ("several_values", "relation", "not_evaluated", "not_a_number"):
        for example in re.findall(r"`([^`]+)`", rows[f"`{reason}`"]):
            if example != "6=6":
                assert verify(f"#### {example}", "42").reason == reason, example


def test_the_algebra_example_is_a_recipe(tmp_path: Path) -> None:
    file = tmp_path / "algebra.yaml"
    file.write_text(
        "policy: {random_init: {}}\ntraining: {num_updates: 10, learning_rate: 1e-5}\n"
        + block("recipe: algebra"),
        encoding="utf-8",
    )
    data = load_config(file).problems.train
    assert data is not None
    assert data.algebra
