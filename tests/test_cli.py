"""The commands `train`, `evaluate`, `verify`, `sample`, `recipes` and `fetch`: results and exit codes."""

import errno
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from llm_reinforce import load_recipe
from llm_reinforce.cli import app, interruption
from llm_reinforce.cli.recipes import first_sentence
from llm_reinforce.config import MAX_NEW_TOKENS, WarmStartConfig, load_config
from llm_reinforce.config import recipe_file as recipe_module
from llm_reinforce.console.evaluation_tables import comparison_table, measures_table
from llm_reinforce.console.messages import note
from llm_reinforce.console.run_tables import before_and_after, better_before
from llm_reinforce.evaluation import Answer, Comparison, Evaluation, Measure
from llm_reinforce.evaluation.comparison import Part
from llm_reinforce.problems import Problem
from llm_reinforce.runs import BestEvaluation, RunDirectory, TrainState
from llm_reinforce.verifier import verify

RECIPE = """\
# Sums of one digit from random weights. It learns
# nothing in so few updates.
#
# Not this.
policy:
  random_init:
    {num_layers: 1, num_heads: 2, hidden_size: 8, intermediate_size: 16, max_length: 24,
     alphabet: "0123456789+=Q:"}
problems:
  generate: {digits: [1]}
  num_held_out: 10
  template: "Q:{prompt}"
sampling: {max_new_tokens: 3, temperature: 0.9}
reinforce: {problems_per_update: 4, episodes_per_problem: 2}
training: {num_updates: 2, learning_rate: 1e-3, checkpoint_every: 1}
evaluation: {every: 1, decodings: [greedy, sampled]}
"""


@pytest.fixture(autouse=True)
def _temporary_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """Directory of a complete run of two updates, which tests must not change, and the result of `train`."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = CliRunner().invoke(app, ["train", "tiny.yaml"])
    assert done.exit_code == 0, done.output
    return folder / "runs/tiny", done


@pytest.fixture(scope="module")
def finished(trained: tuple[Path, Result]) -> Path:
    """Directory of a complete run of two updates, which tests must not change."""
    return trained[0]


@pytest.fixture
def own_run(finished: Path) -> Path:
    """The path runs/tiny of a copy of the complete run, as if `train tiny.yaml` had just written it."""
    return Path(shutil.copytree(finished, "runs/tiny"))


LOADING = "tiny: loading libraries, problems and the policy\n"


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def refused(*arguments: str) -> str:
    """Return stderr of a command that should exit with 2, print nothing on stdout, and have no traceback."""
    result = command(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout in ("", LOADING)
    assert "Traceback" not in result.stderr
    return result.stderr.replace("\n", " ")


def with_reward(tmp_path: Path, code: str, *more: str) -> list[str]:
    """Return arguments that train with a reward function whose body is `code`."""
    file = tmp_path / "mine.py"
    file.write_text(
        "import os, signal, sys, time\nCALLS = []\n"
        f"def mine(completion, problem):\n    CALLS.append(1)\n    {code}\n    return 1.0\n"
    )
    return ["train", "tiny.yaml", "--set", f"rewards=[{{function: '{file}:mine'}}]", *more]


def test_commands_without_a_model_import_no_slow_library(tmp_path: Path) -> None:
    (tmp_path / "sums.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    commands = [
        ["--help"],
        ["train", "--help"],
        ["verify", "sums.jsonl"],
        ["verify", "sums.jsonl", "--algebra", "--json"],
        ["recipes", "list"],
        ["recipes", "show", "quickstart"],
        ["recipes", "copy", "quickstart", "mine.yaml"],
        ["recipes", "validate", "quickstart"],
        ["recipes", "keys", "sampling"],
        ["runs", "list"],
        ["report", "missing"],
        ["train", "missing.yaml"],
        ["train", "quickstart", "--set", "trainin.num_updates=2"],
    ]
    code = (
        "import json, sys, llm_reinforce; from llm_reinforce.cli import app\n"
        "llm_reinforce.verify('1', '1'); llm_reinforce.Config\n"
        "slow = {'torch', 'transformers', 'datasets', 'scipy', 'pandas'}\n"
        "imported = []\n"
        f"for arguments in {commands}:\n"
        "    try: app(arguments)\n"
        "    except SystemExit: imported.append([arguments, sorted(slow & set(sys.modules))])\n"
        "print(json.dumps(imported))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [[arguments, []] for arguments in commands]


def test_commands_are_imported_without_the_settings() -> None:
    """The first line of `train` appears before the settings are imported, which takes half a second."""
    code = "import sys, llm_reinforce.cli; print({'pydantic', 'yaml'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n"


def test_help_names_the_default_length() -> None:
    assert f"or {MAX_NEW_TOKENS} if" in " ".join(
        command("evaluate", "--help").stdout.replace("│", "").split()
    )


def test_public_names_exist() -> None:
    import llm_reinforce

    for name in llm_reinforce.__all__:
        assert getattr(llm_reinforce, name) is not None
    assert set(llm_reinforce.__all__) <= set(dir(llm_reinforce))
    with pytest.raises(AttributeError, match="nonsense"):
        llm_reinforce.nonsense  # noqa: B018
    assert command("--version").stdout.strip() == llm_reinforce.__version__


def test_train_writes_a_run_and_prints_its_result(trained: tuple[Path, Result]) -> None:
    finished, result = trained
    names = {entry.name for entry in finished.iterdir()}
    assert names >= {"recipe.yaml", "environment.json", "metrics.jsonl", "evaluations.jsonl", "policy"}
    assert load_config(finished / "recipe.yaml").output_dir == "runs/tiny"
    assert json.loads((finished / "environment.json").read_text())["seed"] == 0
    assert (finished / "policy/config.json").is_file()
    assert result.stderr == ""
    assert "update 2/2" in result.stdout
    assert re.search(r"greedy +[0-9.]+% \[.*\] +→ +[0-9.]+% \[.*\] +\d of 10", result.stdout)
    assert "runs/tiny/policy" in result.stdout


def test_run_is_not_overwritten_without_overwrite(tmp_path: Path, own_run: Path) -> None:
    before = Path("runs/tiny/metrics.jsonl").read_text()
    assert "resume the run in this directory (--resume, or resume=True)" in refused("train", "tiny.yaml")
    assert "give only one" in refused("train", "tiny.yaml", "--resume", "--overwrite")
    # an invalid reward is found before the old run is removed
    assert "no such file" in refused(
        "train", "tiny.yaml", "--overwrite", "--set", "rewards=[{function: x.py:f}]"
    )
    assert Path("runs/tiny/metrics.jsonl").read_text() == before
    assert command("train", "tiny.yaml", "--overwrite", "--set", "training.num_updates=1").exit_code == 0
    assert len(Path("runs/tiny/metrics.jsonl").read_text().splitlines()) == 1
    (tmp_path / "runs/tiny/thesis.txt").write_text("mine")
    assert "thesis.txt" in refused("train", "tiny.yaml", "--overwrite")


def test_overwriting_requires_the_name_of_the_run(own_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def overwrite(answer: str) -> Result:
        settings = ["--overwrite", "--set", "training.num_updates=1"]
        return CliRunner().invoke(app, ["train", "tiny.yaml", *settings], input=answer)

    terminal = SimpleNamespace(isatty=lambda: True)
    before = Path("runs/tiny/metrics.jsonl").read_text()
    with monkeypatch.context() as patch:
        patch.setattr(
            sys.modules["llm_reinforce.cli.train"], "sys", SimpleNamespace(stdin=terminal, stdout=terminal)
        )
        for answer in ("no\n", "\n", "", "tin\n", "runs/tiny\n"):
            result = overwrite(answer)
            assert "runs/tiny will be deleted and replaced. Type its name (tiny) to" in result.stdout
            assert result.exit_code == 2, answer
            assert "runs/tiny: the run was not replaced" in result.stderr
            assert Path("runs/tiny/metrics.jsonl").read_text() == before
        assert overwrite("tiny\n").exit_code == 0
    assert len(Path("runs/tiny/metrics.jsonl").read_text().splitlines()) == 1


def test_resumed_run_needs_the_same_settings(own_run: Path) -> None:
    assert "nothing to resume" in refused("train", "tiny.yaml", "--resume", "--set", "output_dir=runs/none")
    message = refused("train", "tiny.yaml", "--resume", "--set", "seed=5", "--set", "training.num_updates=1")
    assert "seed: 0 in the run, 5 now" in message
    assert "training.num_updates: 2 in the run, 1 now" in message
    assert "problems" not in message
    longer = command("train", "tiny.yaml", "--resume", "--set", "training.num_updates=3")
    assert longer.exit_code == 0, longer.output
    assert "resuming from update-000002" in longer.stdout
    assert "update 0" in longer.stdout  # the table compares with the beginning of the run
    rows = [json.loads(line) for line in Path("runs/tiny/metrics.jsonl").read_text().splitlines()]
    assert [row["update"] for row in rows] == [1, 2, 3]
    assert load_config("runs/tiny/recipe.yaml").training.num_updates == 3
    assert len(json.loads(Path("runs/tiny/environment.json").read_text())["resumed"]) == 1


def test_run_with_a_token_budget_resumes_with_a_larger_budget() -> None:
    many = ("--set", "training.num_updates=100")
    begun = command("train", "tiny.yaml", *many, "--set", "training.num_tokens=50")
    assert begun.exit_code == 0, begun.output
    rows = [json.loads(line) for line in Path("runs/tiny/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["num_tokens"] >= 50 > rows[-2]["num_tokens"]
    assert f"update {rows[-1]['update']}/{rows[-1]['update']}" in begun.stdout
    again = ("train", "tiny.yaml", "--resume", *many, "--set")
    assert "training.num_tokens: 50 in the run, 49 now" in refused(*again, "training.num_tokens=49")
    longer = command(*again, "training.num_tokens=90")
    assert longer.exit_code == 0, longer.output
    rows = [json.loads(line) for line in Path("runs/tiny/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["num_tokens"] >= 90 > rows[-2]["num_tokens"]
    assert load_config("runs/tiny/recipe.yaml").training.num_tokens == 90
    endless = command(*again, "training.num_tokens=null", "--set", "training.num_updates=101", "--dry-run")
    assert endless.exit_code == 0, endless.output


def test_dry_run_estimates_the_updates_of_a_token_budget() -> None:
    result = command("train", "tiny.yaml", "--dry-run", "--set", "training.num_tokens=30")
    assert result.exit_code == 0, result.output
    assert re.search(r"updates +about 2 \(stops after 30 sampled tokens or 2 updates\)", result.stdout)


def test_dry_run_writes_no_files(tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    result = command("train", "tiny.yaml", "--dry-run")
    assert result.exit_code == 0, result.output
    for words in (
        "all trained",
        "10 held out",
        "GiB while sampling and",
        "8 episodes: 4 problems x 2",
        "correct_answer x 1",
        "· reward 0",
    ):
        assert words in result.stdout
    assert sorted(tmp_path.rglob("*")) == before
    for title in ("policy", "problems", "first prompt", "device"):
        assert len(re.findall(f"^{title}\\b", result.stdout, re.MULTILINE)) == 1, title


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_stops_the_run_with_a_checkpoint(tmp_path: Path, number: signal.Signals, code: int) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    # the first four calls are trial episodes, so the fifth call is in the first update
    stop = f"os.path.exists('again') or len(CALLS) == 5 and os.kill(os.getpid(), {int(number)})"
    result = command(*with_reward(tmp_path, stop))
    assert result.exit_code == code, result.output
    resume = shlex.join(["llm-reinforce", *with_reward(tmp_path, stop, "--resume")])
    saved = "runs/tiny/checkpoints/update-000001"
    assert (
        f"stopped after update 1; a checkpoint is saved, {saved}; continue with: {resume}\n" in result.stdout
    )
    assert Path("runs/tiny/checkpoints/update-000001/manifest.json").is_file()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    if number == signal.SIGINT:
        Path("again").touch()
        resumed = command(*with_reward(tmp_path, stop, "--resume"))
        assert resumed.exit_code == 0, resumed.output
        assert "update 2/2" in resumed.stdout


def test_stop_before_the_first_checkpoint_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    warm = ("train", "tiny.yaml", "--set", "training.warm_start={num_updates: 2, num_warmup_updates: 0}")
    with monkeypatch.context() as patch:
        patch.setattr("llm_reinforce.training.loop.warm_start", interrupted)
        result = command(*warm)
    assert result.exit_code == 130, result.output
    assert "stopped after update 0; there is no checkpoint yet; start again from" in result.stdout
    assert "'training.warm_start={num_updates: 2, num_warmup_updates: 0}' --resume\n" in result.stdout
    assert command(*warm, "--resume").exit_code == 0


def test_reward_that_always_fails_is_reported(tmp_path: Path) -> None:
    result = command(*with_reward(tmp_path, "raise RuntimeError('no server')"))
    assert result.exit_code == 2
    first, *traceback = result.stderr.splitlines()
    message = "fix the function or remove it from `rewards`: RuntimeError: no server"
    assert first == f"reward 'mine' failed on all 4 trial episodes; {message}"
    assert traceback[0].strip() == "Traceback (most recent call last):"
    assert "in mine" in traceback[1]
    assert not Path("runs/tiny").exists()  # so that the same command works after a fix


def test_run_with_failing_rewards_does_not_replace_a_run(tmp_path: Path, own_run: Path) -> None:
    before = {file: file.read_bytes() for file in Path("runs").rglob("*") if file.is_file()}
    assert command(*with_reward(tmp_path, "raise RuntimeError('no server')", "--overwrite")).exit_code == 2
    assert {file: file.read_bytes() for file in Path("runs").rglob("*") if file.is_file()} == before


def test_only_the_changed_setting_of_a_reward_is_reported(own_run: Path) -> None:
    message = refused(
        "train", "tiny.yaml", "--resume", "--set", "rewards=[{function: correct_answer, weight: 2.0}]"
    )
    assert "rewards.0.weight: 1.0 in the run, 2.0 now" in message
    assert "{" not in message


def test_null_argument_differs_from_a_missing_one(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def mine(completion, problem, limit=None):\n    return 1.0\n")
    rewards = f"rewards=[{{function: '{file}:mine', arguments: %s}}]"
    assert command("train", "tiny.yaml", "--set", rewards % "{limit: null}").exit_code == 0
    message = refused("train", "tiny.yaml", "--resume", "--set", rewards % "{}")
    assert "rewards.0.arguments.limit: None in the run, absent now" in message


def test_missing_policy_directory_is_reported() -> None:
    message = refused("sample", "--policy", "runs/nothing", "1+1=")
    assert "policy 'runs/nothing': no such directory or file" in message


def test_dry_run_reports_the_errors_of_the_run(tmp_path: Path, own_run: Path) -> None:
    result = command(*with_reward(tmp_path, "raise RuntimeError('no server')", "--dry-run"))
    assert result.exit_code == 2
    assert "dry run: nothing was trained" in result.stdout
    assert "reward 'mine' failed on all 4 trial episodes" in result.stderr


def test_dry_run_of_a_recipe_whose_directory_holds_a_run(own_run: Path) -> None:
    before = Path("runs/tiny/recipe.yaml").read_text()
    result = command("train", "tiny.yaml", "--dry-run")
    assert result.exit_code == 0, result.stderr
    hint = "continue this run with --resume, replace it with --overwrite, or choose another output_dir"
    assert f"runs/tiny contains a run; {hint}" in result.stdout
    assert command("train", "tiny.yaml", "--dry-run", "--overwrite").exit_code == 0
    resumed = command("train", "tiny.yaml", "--dry-run", "--resume")
    assert "no checkpoint was loaded, so the episodes are those of the initial policy" in resumed.stdout
    message = refused("train", "tiny.yaml", "--dry-run", "--resume", "--set", "seed=3")
    assert "seed: 0 in the run, 3 now" in message
    assert Path("runs/tiny/recipe.yaml").read_text() == before
    Path("runs/tiny/recipe.yaml").rename("runs/tiny/notes.txt")
    assert command("train", "tiny.yaml", "--dry-run").exit_code == 2  # holds no run


def test_dry_run_says_that_the_warm_start_is_skipped() -> None:
    sentence = "the warm start was skipped, so the episodes are those of the untrained policy"
    warm = "training.warm_start={num_updates: 1, num_warmup_updates: 0}"
    assert sentence in command("train", "tiny.yaml", "--dry-run", "--set", warm).stdout
    assert sentence not in command("train", "tiny.yaml", "--dry-run").stdout


def test_first_prompt_is_shown(trained: tuple[Path, Result]) -> None:
    for result in (command("train", "tiny.yaml", "--dry-run"), trained[1]):
        assert re.search(r"first prompt:? +Q:\d\+\d=\s", result.stdout), result.stdout


def test_settings_of_the_chat_template_on_the_command_line(finished: Path, tmp_path: Path) -> None:
    from llm_reinforce import load_policy

    policy = load_policy(finished)
    policy.tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{{ '=' if answer else ':' }}"
    )
    policy.save("chat")
    given = ["--policy", "chat", "--max-new-tokens", "2", "--system-prompt", "Q", "--chat-template-kwarg"]
    Path("sums.jsonl").write_text('{"prompt": "1+1", "answer": "2"}\n')
    for arguments in (["sample", "1+1"], ["evaluate", "--data", "sums.jsonl", "--output", "out"]):
        result = command(*arguments, *given, "answer=true", "--chat-template-date", "2026-03-01")
        assert result.exit_code == 0, result.stderr
        assert "should have the form NAME=VALUE" in refused(*arguments, *given, "answer")
        assert "has no such argument; did you mean 'answer'" in refused(*arguments, *given, "answers=1")
        message = refused(*arguments, *given, "answer=1", "--chat-template-date", "soon")
        assert "chat_template_date 'soon': should be a date such as 2026-11-29" in message
    (file,) = Path("out").glob("answers_*")
    recorded = json.loads(file.read_text().splitlines()[0])["evaluation"]
    assert recorded["chat_template_kwargs"] == {"answer": True}
    assert recorded["system_prompt"] == "Q"


def test_better_earlier_evaluation_is_reported() -> None:
    rows = [{"decoding": "greedy", "accuracy": 0.5}, {"decoding": "sampled", "accuracy": 0.4}]
    best = {"greedy": BestEvaluation(3, 0.75), "sampled": BestEvaluation(6, 0.4)}
    state = TrainState(6, best_evaluation=best)
    sentences = better_before(rows, state)
    assert sentences == ["best greedy accuracy: 75.0%, at update 3"]


def test_invalid_environment_file_is_reported(own_run: Path) -> None:
    file = own_run / "environment.json"
    for content in ("{", "[]", "3", '{"resumed": 3}', "\udcff"):
        file.write_text(content, errors="surrogateescape")
        result = command("train", "tiny.yaml", "--resume")
        assert result.exit_code == 2, content
        assert str(file) in result.stderr
    file.unlink()
    assert command("train", "tiny.yaml", "--resume").exit_code == 0


def test_second_signal_quits_immediately(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["llm_reinforce.cli.interruption"], "SAME_KEYPRESS", -1.0)
    monkeypatch.setattr(interruption, "leaving_signals", [])  # later tests are not interrupted
    # the first four calls are trial episodes, before the run starts
    result = command(*with_reward(tmp_path, "len(CALLS) > 4 and os.kill(os.getpid(), signal.SIGINT)"))
    assert result.exit_code == 130
    assert not Path("runs/tiny/checkpoints/update-000001").exists()
    where = "runs/tiny/checkpoints/update-000000"
    saved = f"interrupted\na checkpoint is saved, {where}; continue with: llm-reinforce "
    assert saved in result.stderr
    assert result.stderr.endswith(" --resume\n")


def test_the_first_line_is_printed_before_torch_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import sys; sys.modules['torch'] = None; from llm_reinforce.cli import main; main()"
    arguments = [sys.executable, "-c", script, "train", "tiny.yaml"]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert result.stdout == LOADING
    assert "torch" in result.stderr


def test_rewards_are_shown_before_and_after_training() -> None:
    row = {"decoding": "greedy", "data": "held_out", "interval": [0.1, 0.3], "correct": 2, "total": 10}
    rows = [{**row, "update": 0, "accuracy": 0.2}, {**row, "update": 50, "accuracy": 0.2}]
    console = Console(file=io.StringIO(), width=80)
    console.print(before_and_after(rows, [{"update": at, "reward": at / 100} for at in range(1, 51)]))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert re.search(r"reward +0\.105 +→ +0\.405", shown)
    assert "mean over the episodes of the first 20 and the last 20 updates" in shown


def test_rows_of_zeros_are_hidden() -> None:
    parts = {"wrong answer": Part(0.5, 0.0), "truncated": Part(0.0, 0.0)}
    comparison = Comparison("accuracy", 0.0, 0.5, (0.1, 0.9), 0.1, "mcnemar", ("1",), (), parts)
    measures = {
        name: Measure(value, (0.0, 0.9), 0.1) for name, value in (("accuracy", 0.0), ("truncated", 0.0))
    }
    answer = Answer("", 2, True, verify("3", "2"), False, False)
    evaluation = Evaluation("greedy", [Problem("1+1=", "2")], [(answer,)], measures)
    console = Console(file=io.StringIO(), width=80)
    console.print(comparison_table(comparison), measures_table("sums", [("policy", evaluation)]))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "wrong answer" in shown
    assert "accuracy" in shown
    assert "truncated" not in shown


@pytest.mark.parametrize("name", ["", "train", "evaluate", "sample", "variance", "recipes keys", "claims"])
def test_help_texts_show_no_type_for_flags_and_no_long_ranges(name: str) -> None:
    shown = command(*name.split(), "--help").stdout
    assert "--help" in shown
    assert "<bool>" not in shown
    assert " range>" not in shown
    assert "99999" not in shown


def test_too_large_seed_is_refused() -> None:
    assert "is not below" in refused("sample", "--policy", "none", "x", "--seed", "1" + 18 * "0")


def test_reward_function_that_exits_does_not_end_the_run(tmp_path: Path) -> None:
    sometimes = "completion.startswith('1') and sys.exit()"
    result = command(*with_reward(tmp_path, sometimes, "--set", "reinforce.problems_per_update=16"))
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in Path("runs/tiny/metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert sum(row["num_unscored"] for row in rows) > 0


def test_output_dir_may_start_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    arguments = ["train", "tiny.yaml", "--set", "output_dir=~/run"]
    assert command(*arguments).exit_code == 0
    assert (tmp_path / "home/run/recipe.yaml").is_file()
    assert not Path("~").exists()
    resumed = command(*arguments, "--resume")
    assert resumed.exit_code == 0, resumed.output


def test_errors_have_no_traceback_unless_debugging(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(RunDirectory, "append", full)
    result = command("train", "tiny.yaml")
    assert result.exit_code == 1
    message, advice = result.stderr.splitlines()
    assert message == "the run failed: runs/tiny: No space left on device (add --debug to see the traceback)"
    assert advice.startswith("there is no checkpoint yet; ")
    monkeypatch.setattr(RunDirectory, "append", lambda *_: {"a": 1}["key"])
    result = command("train", "tiny.yaml", "--overwrite")
    message = "the run failed: KeyError: 'key' (add --debug to see the traceback)"
    assert (result.exit_code, result.stderr.splitlines()) == (1, [message, advice])
    result = command("train", "tiny.yaml", "--overwrite", "--debug")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    result = command("train", "tiny.yaml", "--set", "seed=x", "--debug")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr


def test_all_errors_of_a_recipe_are_reported() -> None:
    result = command("train", "tiny.yaml", "--set", "seed=x", "--set", "wibble=1")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 2
    assert command("train", "tiny.yaml", "--sett", "seed=1").exit_code == 2
    assert "no such file or built-in recipe" in refused("train", "tiny.yml")


def test_evaluate_uses_the_settings_of_the_run(finished: Path, tmp_path: Path) -> None:
    data = tmp_path / "sums.jsonl"
    data.write_text("".join(f'{{"prompt": "{n}+1=", "answer": "{n + 1}"}}\n' for n in range(5)))
    arguments = ["evaluate", "--policy", str(finished), "--data", str(data), str(data), "--num-problems", "4"]
    result = command(*arguments, "--json", "--decoding", "sampled", "--samples-per-problem", "2")
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert rows[0] == rows[1]
    assert {key: rows[0][key] for key in ("data", "total", "template", "max_new_tokens", "temperature")} == {
        "data": str(data),
        "total": 8,
        "template": "Q:{prompt}",
        "max_new_tokens": 3,
        "temperature": 0.9,
    }
    given = command(*arguments, "--json", "--template", "{prompt}", "--max-new-tokens", "2")
    assert [json.loads(given.stdout.splitlines()[0])[key] for key in ("template", "max_new_tokens")] == [
        "{prompt}",
        2,
    ]
    table = command(*arguments)
    assert table.exit_code == 0, table.output
    assert "95% interval" in table.stdout
    inner = command("evaluate", "--policy", str(finished / "policy"), "--data", str(data), "--json")
    assert json.loads(inner.stdout)["template"] == "Q:{prompt}"


def test_evaluate_reads_the_given_columns(finished: Path, tmp_path: Path) -> None:
    data = tmp_path / "sums.jsonl"
    data.write_text('{"sum": "1+1=", "right": "2"}\n')
    arguments = ["evaluate", "--policy", str(finished), "--data", str(data), "--prompt-column", "sum"]
    assert "no answer column" in refused(*arguments)
    result = command(*arguments, "--answer-column", "right", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["total"] == 1


def test_invalid_evaluations_are_refused(finished: Path, tmp_path: Path) -> None:
    data = tmp_path / "sums.jsonl"
    data.write_text('{"prompt": "1+1=", "answer": "2"}\n')
    arguments = ["evaluate", "--policy", str(finished), "--data"]
    assert "no such file" in refused(*arguments, "nowhere.jsonl")
    assert "none of the given data sets has splits" in refused(*arguments, str(data), "--split", "test")
    assert "add --decoding sampled" in refused(*arguments, str(data), "--samples-per-problem", "2")
    assert "should contain {prompt}" in refused(*arguments, str(data), "--template", "x")
    assert "exceed the context of the policy (24 tokens)" in refused(
        *arguments, str(data), "--max-new-tokens", "99"
    )
    assert "loading a causal language model from the hub failed" in refused(
        "evaluate", "--policy", "no/such", "--data", str(data)
    )
    Path("half").mkdir()
    Path("half/recipe.yaml").write_text(RECIPE)
    assert "neither a policy nor an intact checkpoint" in refused(
        "evaluate", "--policy", "half", "--data", str(data)
    )


def sums(path: Path, *numbers: int) -> Path:
    path.write_text("".join(f'{{"id": "{n}", "prompt": "{n}+1=", "answer": "{n + 1}"}}\n' for n in numbers))
    return path


def test_evaluate_compares_two_policies(finished: Path, tmp_path: Path) -> None:
    assert command("train", "tiny.yaml", "--set", "seed=4").exit_code == 0
    data = sums(tmp_path / "sums.jsonl", *range(8))
    arguments = ["evaluate", "--baseline", str(finished), "--policy", "runs/tiny", str(data)]
    result = command(*arguments, "--json", "--output", "out")
    assert result.exit_code == 0, result.output
    before, after, both = (json.loads(line) for line in result.stdout.splitlines())
    assert (
        (before["policy"], after["policy"])
        == (both["baseline"], both["policy"])
        == (str(finished), "runs/tiny")
    )
    comparison = both["comparison"]["accuracy"]
    assert (comparison["before"], comparison["after"]) == (before["accuracy"], after["accuracy"])
    assert comparison["difference"] == pytest.approx(after["accuracy"] - before["accuracy"])
    parts = sum(part["difference"] for part in comparison["parts"].values())
    assert parts == pytest.approx(comparison["difference"])
    assert len(comparison["gained"]) - len(comparison["lost"]) == after["correct"] - before["correct"]
    assert comparison["test"] == "mcnemar"
    assert json.loads(Path("out/comparison.json").read_text()) == {str(data): {"accuracy": comparison}}
    for side, row in (("before", before), ("after", after)):
        results = json.loads(Path(f"out/{side}/results.json").read_text())["results"][str(data)]
        assert results["accuracy,none"] == row["accuracy"]
    table = command("evaluate", "--policy", str(finished), "--against", "runs/tiny", "--data", str(data))
    assert table.exit_code == 0, table.output
    assert "--policy runs/tiny --baseline" in table.stderr
    assert "use only --baseline" in refused(*arguments, "--against", "runs/tiny")
    assert "no data set is given" in refused("evaluate", "--policy", str(finished))
    assert "McNemar p = " in table.stdout
    assert "truncation" not in table.stdout  # rows of zeros are hidden


def test_runs_with_different_templates_need_an_explicit_template(finished: Path, tmp_path: Path) -> None:
    assert command("train", "tiny.yaml", "--set", "problems.template='{prompt}'").exit_code == 0
    data = sums(tmp_path / "sums.jsonl", 1)
    arguments = ["evaluate", "--baseline", str(finished), "--policy", "runs/tiny", str(data)]
    assert (
        "trained with different values ('Q:{prompt}' and '{prompt}'); give one value for both policies"
        in refused(*arguments)
    )
    assert command(*arguments, "--template", "{prompt}").exit_code == 0


def test_interrupted_evaluation_is_continued(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm_reinforce.evaluation import AnswerFile

    data = sums(tmp_path / "sums.jsonl", *range(8))
    arguments = ["evaluate", "--policy", str(finished), "--data", str(data), "--decoding", "sampled"]
    arguments += ["--samples-per-problem", "2", "--batch-size", "4", "--json"]
    whole = command(*arguments).stdout
    record = AnswerFile.record

    def interrupted(self: AnswerFile, index: int, *rest: Any) -> None:
        if len(self.done) == 5:
            raise KeyboardInterrupt
        record(self, index, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(AnswerFile, "record", interrupted)
        assert command(*arguments, "--output", "out").exit_code == 130
    assert not Path("out/results.json").exists()
    result = command(*arguments, "--output", "out")
    assert result.exit_code == 0, result.output
    assert "continuing after 5 of 8 problems" in result.stderr
    assert result.stdout == whole
    (answers,) = Path("out").glob("answers_*.jsonl")
    assert answers.name.endswith("_sums.jsonl_sampled.jsonl")
    assert len(answers.read_text().splitlines()) == 9
    message = refused(*arguments, "--output", "out", "--seed", "1")
    assert "contains the answers of another evaluation (seed: 0 in the file, 1 now)" in message


def test_killed_evaluation_is_continued(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm_reinforce.evaluation import AnswerFile

    data, output = sums(tmp_path / "sums.jsonl", *range(8)), tmp_path / "out"
    arguments = ["evaluate", "--policy", str(finished), "--data", str(data), "--batch-size", "2", "--json"]
    record = AnswerFile.record

    def dies(self: AnswerFile, *rest: Any) -> None:
        record(self, *rest)
        if len(self.done) == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(AnswerFile, "record", dies)
        command(*arguments, "--output", str(output))
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    (answers,) = output.iterdir()
    kept = answers.read_text().splitlines()
    assert len(kept) == 6
    result = command(*arguments, "--output", str(output))
    assert result.exit_code == 0, result.output
    assert "continuing after 5 of 8 problems" in result.stderr
    assert result.stdout == command(*arguments).stdout
    rows = answers.read_text().splitlines()
    assert rows[:6] == kept
    assert sorted(json.loads(row)["index"] for row in rows[1:]) == list(range(8))


def test_evaluate_warns_about_training_problems(finished: Path, tmp_path: Path) -> None:
    data = all_sums(tmp_path / "sums.jsonl", "answer")
    result = command("evaluate", "--policy", str(finished), "--data", str(data), "--json")
    assert result.exit_code == 0, result.output
    assert "90 of 100 evaluated problems are also training problems" in result.stderr
    assert json.loads(result.stdout)["overlap"] == {"same": 90, "masked": 0, "evaluated": 100}


def test_demonstrations_of_evaluated_problems_are_reported(tmp_path: Path) -> None:
    demonstrations = all_sums(tmp_path / "demonstrations.jsonl", "completion", before="Q:")
    warm_start = f"training.warm_start={{data: {demonstrations}, epochs: 1}}"
    result = command("train", "tiny.yaml", "--set", warm_start, "--set", "training.num_updates=1")
    assert result.exit_code == 0, result.output
    assert "training.warm_start.data: 10 of 10 evaluated problems are also training" in result.stdout
    data = all_sums(tmp_path / "sums.jsonl", "answer")
    result = command("evaluate", "--policy", "runs/tiny", "--data", str(data), "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["overlap"] == {"same": 100, "masked": 0, "evaluated": 100}
    demonstrations.unlink()
    result = command("evaluate", "--policy", "runs/tiny", "--data", str(data), "--json")
    assert "can't check whether evaluated problems are demonstrations of the run, because" in result.stderr
    assert json.loads(result.stdout)["overlap"] == {"same": 90, "masked": 0, "evaluated": 100}


def all_sums(path: Path, column: str, before: str = "") -> Path:
    """Write all sums of two one-digit numbers with their results in a column, and return the path."""
    rows = [{"prompt": f"{before}{a}+{b}=", column: str(a + b)} for a in range(10) for b in range(10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_evaluate_lists_rejected_reference_answers(finished: Path, tmp_path: Path) -> None:
    data = sums(tmp_path / "sums.jsonl", 1)
    odd = [{"id": f"odd-{n}", "prompt": f"{n}+1=", "answer": "a</think>b"} for n in range(7)]
    data.write_text(data.read_text() + "".join(json.dumps(row) + "\n" for row in odd))
    result = command("evaluate", "--policy", str(finished), "--data", str(data), "--json")
    assert result.exit_code == 0, result.output
    message = "rejects the reference answers of 7 problems (odd-0, odd-1, odd-2, odd-3, odd-4, …)"
    assert message in result.stderr.replace("\n", " ")
    assert json.loads(result.stdout)["total"] == 8


def test_few_shot_examples_are_checked(finished: Path, tmp_path: Path) -> None:
    data, more = sums(tmp_path / "a.jsonl", 1), sums(tmp_path / "b.jsonl", 1, 2)
    arguments = ["evaluate", "--policy", str(finished), "--data", str(data), "--template", "{prompt}"]
    arguments += ["--max-new-tokens", "2"]
    assert "used only with --few-shot" in refused(*arguments, "--examples", str(more))
    # the alphabet has no line feed, so this error shows that the example is part of the prompt
    assert "cannot be encoded by the policy" in refused(
        *arguments, "--few-shot", "1", "--examples", str(more)
    )
    assert "2 examples are needed, but only 1 of 2" in refused(
        *arguments, "--few-shot", "2", "--examples", str(more)
    )


def test_invalid_data_sets_are_reported(finished: Path, tmp_path: Path) -> None:
    arguments = ["evaluate", "--policy", str(finished), "--data"]
    assert "did you mean 'gsm8k'" in refused(*arguments, "gsm9k")
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    assert "empty" in refused(*arguments, str(empty))
    row = {"question": "1+1?", "answer": "so\n#### two"}
    (tmp_path / "words.jsonl").write_text(json.dumps(row) + "\n")
    assert "must contain a number" in refused(*arguments, "gsm8k=words.jsonl")
    twice = sums(tmp_path / "twice.jsonl", 1, 1)
    assert "id '1' is already used" in refused(*arguments, str(twice))
    (tmp_path / "columns.jsonl").write_text('{"sum": "1+1=", "answer": "2"}\n')
    said = refused(*arguments, "columns.jsonl")
    assert "no prompt column" in said
    assert "set --prompt-column to" in said


def test_progress_is_printed_in_lines_without_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm_reinforce.console import progress as module

    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with module.progress("sums", 100) as show:
        for done in range(10, 101, 10):  # ten problems in twenty seconds
            now[0] += 20
            show(done)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "sums: 20 of 100 problems · 0:02:40 left"
    assert len(lines) == 4


def test_note_is_printed_above_the_progress_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm_reinforce.console import progress as module

    shown = io.StringIO()
    monkeypatch.setattr(shown, "isatty", lambda: True)
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(module, "Console", lambda stderr: Console(file=shown, force_terminal=True, width=60))
    with module.progress("sums", 100) as show:
        show(10)
        note("nothing is held out: accuracy is measured on the training problems")
        show(20)
    assert capsys.readouterr().err == ""
    # the line of the progress bar is erased before the note is written
    assert re.search(
        r"\x1b\[2K[^\n]*nothing is held out: accuracy is measured on the training problems", shown.getvalue()
    )
    note("after the bar")
    assert "after the bar" in capsys.readouterr().err


def test_data_sets_with_the_same_answer_file_are_refused(finished: Path) -> None:
    for name in ("d/a.jsonl", "d_a.jsonl"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text('{"prompt": "1+1=", "answer": "2"}\n')
    message = refused(
        "evaluate", "--policy", str(finished), "--output", "out", "--data", "d/a.jsonl", "--data", "d_a.jsonl"
    )
    assert "d/a.jsonl and d_a.jsonl would both be written to answers_d_a.jsonl_greedy.jsonl" in message
    assert not Path("out").exists()


def test_run_reports_its_gain(trained: tuple[Path, Result], own_run: Path) -> None:
    for words in ("greedy answers before and after", "sampled answers before and after", "McNemar p = "):
        assert words in trained[1].stdout
    comparison = json.loads(Path("runs/tiny/comparison.json").read_text())
    assert set(comparison) == {"greedy", "sampled"}
    evaluations = [json.loads(line) for line in Path("runs/tiny/evaluations.jsonl").read_text().splitlines()]
    greedy = [row["accuracy"] for row in evaluations if row["decoding"] == "greedy"]
    of_greedy = comparison["greedy"]["accuracy"]
    assert (of_greedy["before"], of_greedy["after"]) == (greedy[0], greedy[-1])
    answers = [json.loads(line) for line in Path("runs/tiny/answers.jsonl").read_text().splitlines()]
    assert [row["update"] for row in answers] == [0] * 20 + [1] * 20 + [2] * 20
    assert command("train", "tiny.yaml", "--resume").exit_code == 0
    assert json.loads(Path("runs/tiny/comparison.json").read_text()) == comparison
    longer = ["--set", "training.num_updates=3"]
    assert command("train", "tiny.yaml", "--resume", *longer).exit_code == 0
    after = json.loads(Path("runs/tiny/comparison.json").read_text())["greedy"]["accuracy"]
    assert after["before"] == of_greedy["before"]


def test_verify_checks_reference_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    monkeypatch.setenv("COLUMNS", "300")
    good.write_text("".join(f'{{"question": "?", "answer": "so\\n#### {n},000"}}\n' for n in range(1, 70)))
    rows = [("1", "7"), ("2", ""), ("3", "NaN"), ("4", "\\sqrt{2}"), ("5", "50%"), ("6", "[red]\x1b[1m")]
    bad.write_text(
        "".join(json.dumps({"id": id, "prompt": "?", "answer": answer}) + "\n" for id, answer in rows)
    )
    accepted = command("verify", str(good))
    assert accepted.exit_code == 0, accepted.output
    assert "69 of 69 answers accepted" in accepted.stdout
    doubtful = command("verify", str(bad), str(good))
    assert doubtful.exit_code == 1
    assert "4 of 6 answers accepted" in doubtful.stdout
    assert "answers that are percentages: 1" in doubtful.stdout
    assert "compared as text: 1;" in doubtful.stdout
    assert re.search(r"2 +empty", doubtful.stdout)
    assert re.search(r"3 +NaN +plain +not_a_number", doubtful.stdout)
    assert "\x1b" not in doubtful.stdout
    as_json = command("verify", str(bad), "--json", "--num-problems", "3")
    assert as_json.exit_code == 1
    row = json.loads(as_json.stdout)
    assert (row["total"], row["kinds"]) == (3, {"number": 1, "empty": 1, "text": 1})
    assert [(doubt["id"], doubt["reason"]) for doubt in row["doubtful"]] == [
        ("2", "empty"),
        ("3", "not_a_number"),
    ]


def test_invalid_data_is_refused_by_verify(tmp_path: Path) -> None:
    data = tmp_path / "sums.jsonl"
    data.write_text('{"prompt": "1+1=", "answr": "2"}\n')
    assert "no such file" in refused("verify", "nowhere.jsonl")
    assert "did you mean 'answr'?" in refused("verify", str(data))
    assert "no DATA is read from the hub" in refused("verify", str(data), "--split", "test")
    assert command("verify", str(data), "--answer-column", "answr").exit_code == 0


def test_sample_prints_completions(finished: Path) -> None:
    result = command("sample", "--policy", str(finished), "1+1=", "2+2=", "--num", "3")
    assert result.exit_code == 0, result.output
    assert re.findall(r"^\s+(\d)  ", result.stdout, re.MULTILINE) == ["1", "2", "3"] * 2
    assert "1+1=\n" in result.stdout
    assert command("sample", "--policy", str(finished), "1+1=", "2+2=", "-n", "3").stdout == result.stdout
    greedy = command("sample", "--policy", str(finished), "Q:1+1=", "--greedy", "--no-template")
    assert greedy.stdout == command("sample", "--policy", str(finished), "1+1=", "--greedy").stdout.replace(
        "1+1=", "Q:1+1=", 1
    )
    assert "omit one of the two" in refused("sample", "-p", str(finished), "1", "--greedy", "--num", "2")
    assert "alphabet lacks 'x'" in refused("sample", "-p", str(finished), "x")


def test_recipes_list_show_copy_and_validate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "package" / "recipes"
    folder.mkdir(parents=True)
    (folder / "first.yaml").write_text(RECIPE)
    monkeypatch.setattr(recipe_module, "__file__", str(tmp_path / "package" / "config" / "recipe_file.py"))
    listed = command("recipes", "list").stdout
    assert listed.strip() == "first  Sums of one digit from random weights."
    assert command("recipes", "show", "first").stdout == RECIPE
    assert "did you mean 'first'" in refused("recipes", "show", "frist")
    assert command("recipes", "copy", "first").exit_code == 0
    assert Path("first.yaml").read_text() == RECIPE
    assert "is not overwritten" in refused("recipes", "copy", "first")
    assert "the directory no does not exist" in refused("recipes", "copy", "first", "no/where.yaml")
    assert "can't be written" in refused("recipes", "copy", "first", "tiny.yaml/mine.yaml")
    assert command("recipes", "validate", "first", "tiny.yaml").stdout.splitlines() == [
        "first: valid recipe",
        "tiny.yaml: valid recipe",
    ]
    Path("bad.yaml").write_text(RECIPE + "wibble: 1\nseed: x\n")
    result = command("recipes", "validate", "bad.yaml", "first", "worse.yaml")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 3
    assert result.stdout == "first: valid recipe\n"


def test_copied_recipe_has_its_own_output_directory_and_no_results(tmp_path: Path) -> None:
    file = tmp_path / "my sums.yaml"
    result = command("recipes", "copy", "quickstart", str(file))
    assert f"llm-reinforce train '{file}'" in result.stdout
    text = file.read_text()
    assert text.startswith("# Two-digit addition")
    assert "# Hardware:" in text
    assert "Measured" not in text
    assert "%" not in text.split("\n\n")[0]
    assert load_config(file).output_dir == "runs/my sums"
    original = load_config("quickstart").model_dump() | {"output_dir": ""}
    assert load_config(file).model_dump() | {"output_dir": ""} == original


def test_recipes_keys_lists_all_keys_of_a_section() -> None:
    shown = command("recipes", "keys", "training.warm_start").stdout
    for key, field in WarmStartConfig.model_fields.items():
        assert key in shown
        assert " ".join((field.description or "").split()[:4]) in shown
    everything = command("recipes", "keys").stdout
    assert "problems.train and problems.held_out" in everything
    assert "learning_rate" in everything
    assert "did you mean 'training'?" in refused("recipes", "keys", "trainin")
    schema = json.loads(command("recipes", "keys", "--json-schema").stdout)
    assert schema["required"] == ["policy", "problems"]
    assert "seed" in schema["properties"]


def test_runs_list_shows_state_and_accuracies(finished: Path) -> None:
    assert "no such directory" in refused("runs", "list")
    line = next(
        line for line in command("runs", "list", str(finished.parent)).stdout.splitlines() if "2 of 2" in line
    )
    assert "finished" in line
    assert "greedy 0.0% → 0.0%" in line


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("# One. Two.\n", "One."),
        ("#\n# It is 3.5\n# long!\n", "It is 3.5 long!"),
        ("seed: 1 # no\n", ""),
        ("", ""),
    ],
)
def test_first_sentence_of_a_recipe(text: str, sentence: str) -> None:
    assert first_sentence(text) == sentence


def test_fetch_uses_the_cache_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_REINFORCE_CACHE", "elsewhere")
    there = tmp_path / "cache" / "models" / "smollm2-135m"
    there.mkdir(parents=True)
    (there / "config.json").touch()
    result = command("fetch", "smollm2-135m", "--cache-dir", str(tmp_path / "cache"))
    assert result.exit_code == 0, result.output
    assert result.stdout == f"smollm2-135m is already in {there}\n"
    assert "smollm2-135m" in refused("fetch", "gpt-9")


def test_policy_saved_before_a_run_was_extended_is_not_used_silently(tmp_path: Path) -> None:
    command("train", "tiny.yaml", "--set", "training.num_updates=1")
    greedy = ["sample", "--policy", "runs/tiny", "--greedy", "1+1="]
    assert command(*greedy).stderr == ""
    extended = load_recipe("tiny.yaml", ["training.num_updates=9"]).trainer(progress=False)
    next(updates := extended.updates(resume=True))
    updates.close()
    note = "update-000002, is used instead of the older policy in runs/tiny/policy"
    assert note in command(*greedy).stderr
    assert command("sample", "--policy", "runs/tiny/policy", "--greedy", "1+1=").stderr == ""
    extended.save_policy()
    assert command(*greedy).stderr == ""


def test_stopped_run_is_sampled_and_evaluated_from_its_newest_checkpoint(tmp_path: Path) -> None:
    result = command("train", "tiny.yaml", "--set", "training.num_updates=1")
    assert result.exit_code == 0, result.output
    greedy = ["sample", "--policy", "runs/tiny", "--greedy", "1+1=", "3+5="]
    finished = command(*greedy)
    shutil.rmtree("runs/tiny/policy")
    stopped = command(*greedy)
    assert stopped.exit_code == 0, stopped.output
    assert stopped.stdout == finished.stdout
    assert "the newest checkpoint, update-000001, is used" in stopped.stderr
    data = sums(tmp_path / "sums.jsonl", 1, 2)
    evaluated = command("evaluate", str(data), "--policy", "runs/tiny", "--json")
    assert json.loads(evaluated.stdout)["total"] == 2
    checkpoint = "runs/tiny/checkpoints/update-000001"
    assert "give the directory of the run, runs/tiny" in refused("sample", "--policy", checkpoint, "1+1=")
    shutil.copytree(checkpoint, "runs/tiny/checkpoints/update-000002")
    Path("runs/tiny/checkpoints/update-000002/policy.safetensors").write_text("damaged")
    assert "update-000001, is used; skipped checkpoint update-000002: policy" in command(*greedy).stderr
    shutil.rmtree("runs/tiny/checkpoints")
    assert "llm-reinforce train runs/tiny --resume" in refused(*greedy)
