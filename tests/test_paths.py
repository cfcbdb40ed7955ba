"""Paths with drive letters, spaces and non-ASCII characters, and text files in UTF-8 on every system."""

import ast
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

import llm_reinforce
from llm_reinforce.cli import app
from llm_reinforce.config import RewardConfig, load_config
from llm_reinforce.errors import InputError
from llm_reinforce.policy import load_policy
from llm_reinforce.problems import find_problems
from llm_reinforce.problems.lookup import is_file_name

REWARD = "def längen(completion, problem):\n    return float(len(completion))\n"
PACKAGE = Path(llm_reinforce.__file__).parent


@pytest.mark.parametrize(
    "function",
    [r"C:\rewards.py", "C:/rewards.py", r"D:\my rewards\x.PY", "rewards.py", r"C:\rewards"],
)
def test_colon_of_a_drive_does_not_precede_a_function(function: str) -> None:
    with pytest.raises(InputError, match=r"path/to/file\.py:function"):
        RewardConfig(function=function)


@pytest.mark.parametrize(
    "function", [r"C:\rewards.py:f", r"C:\mein Ordner\größe.PY:f", "a:b.py:f", "python:<lambda>"]
)
def test_last_colon_precedes_the_function(function: str) -> None:
    assert RewardConfig(function=function).function == function


@pytest.mark.parametrize("data", [r"C:\data\sums.jsonl", "data:2/sums.jsonl", "D:/größe/sums.JSON"])
def test_missing_data_file_with_a_colon(data: str) -> None:
    assert is_file_name(data)
    with pytest.raises(InputError, match="no such file"):
        find_problems(data)
    assert not is_file_name("generate:form={expression}.json")


@pytest.mark.parametrize("name", [r"C:\models\mine", "C:/models", r"models\größe", "a/b/c"])
def test_missing_policy_is_not_searched_on_the_hub(name: str) -> None:
    with pytest.raises(InputError, match="no such directory or file"):
        load_policy(name)


def test_run_with_unusual_names(tmp_path: Path) -> None:
    folder = tmp_path / "C:\\mein Ordner größe" if Path("/").is_absolute() else tmp_path / "mein Ordner größe"
    folder.mkdir()
    (folder / "maß.py").write_text(REWARD, encoding="utf-8")
    (folder / "summen 1.jsonl").write_text(
        "".join(f'{{"prompt": "{n}+1=", "answer": "{n + 1}"}}\n' for n in range(8)), encoding="utf-8"
    )
    run = folder / "mein Lauf"
    (folder / "mein Rezept.yaml").write_text(
        f"""\
policy:
  random_init:
    {{alphabet: "0123456789+=", num_layers: 1, num_heads: 2, hidden_size: 16, intermediate_size: 16,
     max_length: 8}}
problems: {{train: {{data: "summen 1.jsonl"}}, num_held_out: 2}}
rewards: [{{function: "maß.py:längen", isolation: {{num_workers: 1}}}}]
sampling: {{max_new_tokens: 2}}
reinforce: {{problems_per_update: 2, episodes_per_problem: 2}}
training: {{num_updates: 1, num_warmup_updates: 0}}
output_dir: '{run}'
""",
        encoding="utf-8",
    )
    runner = CliRunner()
    done = runner.invoke(app, ["train", str(folder / "mein Rezept.yaml")])
    assert done.exit_code == 0, done.output
    hint = f"llm-reinforce sample --policy {shlex.quote(str(run))} 'a prompt'"
    assert "".join(hint.split()) in "".join(done.output.split())  # the table breaks lines
    more = ["--set", "training.num_updates=2", "--resume"]
    resumed = runner.invoke(app, ["train", str(run), *more])
    assert resumed.exit_code == 0, resumed.output
    assert load_config(run).output_dir == str(run)
    sampled = runner.invoke(app, ["sample", "--policy", str(run), "1+1="])
    assert sampled.exit_code == 0, sampled.output


def test_text_files_have_an_encoding() -> None:
    """Without it, Windows uses its code page."""
    without = []
    for file in PACKAGE.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        if not re.search(r"read_text|write_text|open|\btext=", text):  # parsing all files takes a second
            continue
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            is_method = isinstance(node.func, ast.Attribute)
            first = node.args[0] if node.args else None
            is_binary = any("b" in str(getattr(each, "value", "")) for each in node.args[not is_method :][:1])
            expects = (
                (name == "read_text" and is_method and first is None)
                or (name == "write_text" and is_method and len(node.args) == 1)
                or (
                    name == "open"
                    and ast.unparse(node.func) not in ("os.open", "webbrowser.open")
                    and not is_binary
                )
                or any(keyword.arg == "text" and name in ("run", "Popen") for keyword in node.keywords)
            )
            if expects and "encoding" not in {keyword.arg for keyword in node.keywords}:
                without.append(f"{file.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node)[:60]}")
    assert not without, "\n".join(without)
