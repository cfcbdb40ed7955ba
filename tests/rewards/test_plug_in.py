"""Tests of loading reward functions by name, and of the error messages if loading fails."""

import sys
from pathlib import Path

import pytest

from llm_reinforce.errors import InputError
from llm_reinforce.problems import Problem
from llm_reinforce.rewards import JudgedCompletion, combine_rewards, load_reward

PROBLEM = Problem(prompt="1+1=", answer="2", columns={"level": 3})
FILE = """\
from __future__ import annotations

from dataclasses import dataclass

@dataclass
class Scale:
    factor: float = 2.0

def length(completion, problem):
    return float(len(completion)) * Scale().factor

def level(completion, problem, bonus=0.0, *, factor=1.0):
    return problem.columns["level"] * factor + bonus

def broken(completion, problem):
    raise RuntimeError("not today")

number = 7
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Current directory with two files of reward functions, one of which is in a subfolder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    Path("mine.py").write_text(FILE)
    Path("deeper").mkdir()
    Path("deeper/mine.py").write_text("def length(completion, problem):\n    return -1.0\n")
    return tmp_path


def error_of(function: str, **arguments: object) -> str:
    with pytest.raises(InputError) as caught:
        load_reward(function, arguments=arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_function_is_loaded_from_a_file_in_the_current_directory(folder: Path) -> None:
    reward = load_reward("mine.py:length", weight=0.5)
    assert (reward.name, reward.weight) == ("length", 0.5)
    assert reward.function("abc", PROBLEM) == 6.0
    assert load_reward(f"{folder}/mine.py:length").function("abc", PROBLEM) == 6.0
    assert load_reward("./mine.py:length").function("abc", PROBLEM) == 6.0


def test_files_with_the_same_name_are_separate_modules() -> None:
    near, far = load_reward("mine.py:length"), load_reward("deeper/mine.py:length")
    assert (near.function("a", PROBLEM), far.function("a", PROBLEM)) == (2.0, -1.0)
    assert load_reward("mine.py:length").function("a", PROBLEM) == 2.0


def test_function_is_loaded_from_a_file_in_the_home_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder / "deeper"))
    assert load_reward("~/mine.py:length").function("a", PROBLEM) == -1.0


def test_function_is_loaded_from_a_module_in_the_current_directory(folder: Path) -> None:
    Path("package_of_rewards").mkdir()
    Path("package_of_rewards/inner.py").write_text(FILE)
    Path("package_of_rewards/__init__.py").touch()
    assert load_reward("package_of_rewards.inner:length").function("ab", PROBLEM) == 4.0
    assert load_reward("package_of_rewards.inner:level").function("ab", PROBLEM) == 3.0
    assert sys.path.count(str(folder)) == 1  # the directory stays there for later imports


@pytest.mark.parametrize("name", ["no_such_module", "module_that_fails"])
def test_failed_import_leaves_the_search_path_unchanged(name: str) -> None:
    Path("module_that_fails.py").write_text("1/0\n")
    before = sys.path.copy()
    assert f"cannot import {name}" in error_of(f"{name}:length")
    assert sys.path == before


def test_function_receives_the_problem_and_its_arguments() -> None:
    assert load_reward("mine.py:level").function("", PROBLEM) == 3.0
    with_both = load_reward("mine.py:level", arguments={"factor": 2.0, "bonus": 0.5})
    assert with_both.function("", PROBLEM) == 6.5


def test_episode_is_unscored_if_the_function_raises() -> None:
    (scored,) = combine_rewards([JudgedCompletion(PROBLEM, "")], [load_reward("mine.py:broken")]).scored
    assert (scored.total, scored.failure) == (None, "broken: RuntimeError: not today")


def test_built_in_functions_accept_arguments() -> None:
    assert load_reward("correct_answer").function("2", PROBLEM) == 1.0
    concise = load_reward("conciseness", arguments={"max_tokens": 4}).function
    assert concise("2", PROBLEM, completion_ids=[1]) == 0.75
    assert "invalid arguments" in error_of("conciseness", max_words=3)
    assert "invalid arguments" in error_of("conciseness", max_tokens="many")


def test_unknown_arguments_are_rejected_when_the_function_is_loaded() -> None:
    message = error_of("mine.py:level", factr=2.0)
    assert "mine.py:level" in message
    assert "factr" in message
    assert "length" in error_of("mine.py:length", factor=2.0)


def test_function_with_another_signature_is_rejected_when_it_is_loaded() -> None:
    Path("odd.py").write_text("def one(text, gold):\n    return 1.0\n")
    message = error_of("odd.py:one")
    assert "odd.py:one" in message
    assert "functions receive (parameters: text, gold)" in message
    assert "completion, prompt, problem, verdict, answer" in message


@pytest.mark.parametrize(
    "parameters", ["prompts, completions, **kwargs", "completions, **kwargs", "completions"]
)
def test_function_with_trl_signature_is_accepted_unchanged(parameters: str) -> None:
    Path("trl.py").write_text(f"def reward({parameters}):\n    return [1.0 for _ in completions]\n")
    reward = load_reward("trl.py:reward", conversational=True)
    assert reward.conversational
    assert [one.total for one in combine_rewards([JudgedCompletion(PROBLEM, "a")] * 2, [reward]).scored] == [
        1.0,
        1.0,
    ]


def test_conversational_is_rejected_for_a_plain_function() -> None:
    Path("plain.py").write_text("def reward(completion, problem):\n    return 1.0\n")
    with pytest.raises(InputError, match="`conversational` is used only for functions with TRL's signature"):
        load_reward("plain.py:reward", conversational=False)


def test_function_with_trl_signature_accepts_arguments() -> None:
    Path("trl.py").write_text(
        "def plain(completions, factor=1.0):\n    return [factor for _ in completions]\n"
        "def open_(completions, **kwargs):\n    return [kwargs['factor'] for _ in completions]\n"
    )
    for name in ("plain", "open_"):
        reward = load_reward(f"trl.py:{name}", arguments={"factor": 3.0})
        assert combine_rewards([JudgedCompletion(PROBLEM, "a")], [reward]).scored[0].total == 3.0
    assert "did you mean 'factor'" in error_of("trl.py:plain", factr=1.0)
    assert "'prompts' is passed by the trainer" in error_of("trl.py:plain", prompts=1.0)
    Path("trl.py").write_text("def asks(completions, prompt='', **kwargs):\n    return [len(prompt)]\n")
    reward = load_reward("trl.py:asks", arguments={"prompt": "grade:"})
    assert combine_rewards([JudgedCompletion(PROBLEM, "a")], [reward]).scored[0].total == 6.0


def test_callable_objects_methods_and_asynchronous_functions_are_accepted() -> None:
    Path("forms.py").write_text(
        "class Judge:\n"
        "    def __call__(self, completion, problem):\n        return 1.0\n"
        "    async def later(self, completion, problem):\n        return 2.0\n"
        "judge = Judge()\nlater = judge.later\n"
    )
    rewards = [load_reward("forms.py:judge"), load_reward("forms.py:later")]
    assert combine_rewards([JudgedCompletion(PROBLEM, "a")], rewards).scored[0].parts == {
        "judge": 1.0,
        "later": 2.0,
    }


def test_message_about_an_unknown_name_suggests_the_nearest() -> None:
    assert "did you mean 'correct_answer'" in error_of("corect_answer")
    assert "did you mean 'length'" in error_of("mine.py:lenght")


@pytest.mark.parametrize("name", ["number", "nothing"])
def test_name_that_is_not_a_function_is_rejected(name: str) -> None:
    assert f"no function {name!r} in mine.py" in error_of(f"mine.py:{name}")


def test_message_about_a_missing_file_names_the_current_directory(folder: Path) -> None:
    message = error_of("yours.py:length")
    assert "yours.py" in message
    assert str(folder) in message


def test_message_about_a_missing_module_names_it() -> None:
    assert "no_such_module" in error_of("no_such_module:length")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1/0\n", "ZeroDivisionError"),
        ("def f(:\n", "SyntaxError"),
        ("import no_such_module\n", "ModuleNotFoundError"),
        ("raise SystemExit(3)\n", "SystemExit"),
    ],
)
def test_message_about_a_file_that_raises_names_the_error(text: str, expected: str) -> None:
    Path("bad.py").write_text(text)
    message = error_of("bad.py:f")
    assert "bad.py" in message
    assert expected in message
