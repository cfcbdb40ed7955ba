"""A user's own reward: found by its name, given what it asks for, and told what is wrong with it."""

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
    """The current directory, with a file of rewards in it and one in a folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    Path("mine.py").write_text(FILE)
    Path("deeper").mkdir()
    Path("deeper/mine.py").write_text("def length(completion, problem):\n    return -1.0\n")
    return tmp_path


def refusal(function: str, **arguments: object) -> str:
    with pytest.raises(InputError) as caught:
        load_reward(function, arguments=arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_from_a_file_of_the_current_directory(folder: Path) -> None:
    reward = load_reward("mine.py:length", weight=0.5)
    assert (reward.name, reward.weight) == ("length", 0.5)
    assert reward.function("abc", PROBLEM) == 6.0
    assert load_reward(f"{folder}/mine.py:length").function("abc", PROBLEM) == 6.0
    assert load_reward("./mine.py:length").function("abc", PROBLEM) == 6.0


def test_files_of_one_name_do_not_mix() -> None:
    near, far = load_reward("mine.py:length"), load_reward("deeper/mine.py:length")
    assert (near.function("a", PROBLEM), far.function("a", PROBLEM)) == (2.0, -1.0)
    assert load_reward("mine.py:length").function("a", PROBLEM) == 2.0


def test_from_a_file_of_the_home_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder / "deeper"))
    assert load_reward("~/mine.py:length").function("a", PROBLEM) == -1.0


def test_from_a_module_of_the_current_directory(folder: Path) -> None:
    Path("package_of_rewards").mkdir()
    Path("package_of_rewards/inner.py").write_text(FILE)
    Path("package_of_rewards/__init__.py").touch()
    assert load_reward("package_of_rewards.inner:length").function("ab", PROBLEM) == 4.0
    assert load_reward("package_of_rewards.inner:level").function("ab", PROBLEM) == 3.0
    assert sys.path.count(str(folder)) == 1  # for what it imports later


@pytest.mark.parametrize("name", ["no_such_module", "module_that_fails"])
def test_a_module_that_cannot_be_imported_leaves_the_search_path_as_it_was(name: str) -> None:
    Path("module_that_fails.py").write_text("1/0\n")
    before = sys.path.copy()
    assert f"can't import {name}" in refusal(f"{name}:length")
    assert sys.path == before


def test_the_problem_and_the_arguments_arrive() -> None:
    assert load_reward("mine.py:level").function("", PROBLEM) == 3.0
    with_both = load_reward("mine.py:level", arguments={"factor": 2.0, "bonus": 0.5})
    assert with_both.function("", PROBLEM) == 6.5


def test_a_failing_function_leaves_episodes_unscored() -> None:
    (scored,) = combine_rewards([JudgedCompletion(PROBLEM, "")], [load_reward("mine.py:broken")]).scored
    assert (scored.total, scored.failure) == (None, "broken: RuntimeError: not today")


def test_built_in_names_with_arguments() -> None:
    assert load_reward("correct_answer").function("2", PROBLEM) == 1.0
    concise = load_reward("conciseness", arguments={"max_tokens": 4}).function
    assert concise("2", PROBLEM, completion_ids=[1]) == 0.75
    assert "don't fit" in refusal("conciseness", max_words=3)
    assert "don't fit" in refusal("conciseness", max_tokens="many")


def test_arguments_that_a_function_does_not_take_are_told_before_training() -> None:
    message = refusal("mine.py:level", factr=2.0)
    assert "mine.py:level" in message
    assert "factr" in message
    assert "length" in refusal("mine.py:length", factor=2.0)


def test_a_function_that_does_not_take_completion_and_problem_is_told_before_training() -> None:
    Path("odd.py").write_text("def one(completion):\n    return 1.0\n")
    assert "odd.py:one" in refusal("odd.py:one")


@pytest.mark.parametrize(
    "parameters", ["prompts, completions, **kwargs", "completions, **kwargs", "completions"]
)
def test_a_function_with_trl_s_signature_is_taken_as_it_is(parameters: str) -> None:
    Path("trl.py").write_text(f"def reward({parameters}):\n    return [1.0 for _ in completions]\n")
    reward = load_reward("trl.py:reward", conversational=True)
    assert reward.conversational
    assert [one.total for one in combine_rewards([JudgedCompletion(PROBLEM, "a")] * 2, [reward]).scored] == [
        1.0,
        1.0,
    ]


def test_a_plain_function_is_given_no_messages() -> None:
    Path("plain.py").write_text("def reward(completion, problem):\n    return 1.0\n")
    with pytest.raises(InputError, match="conversational is read only by a function with TRL's signature"):
        load_reward("plain.py:reward", conversational=False)


def test_arguments_of_a_function_with_trl_s_signature() -> None:
    Path("trl.py").write_text(
        "def plain(completions, factor=1.0):\n    return [factor for _ in completions]\n"
        "def open_(completions, **kwargs):\n    return [kwargs['factor'] for _ in completions]\n"
    )
    for name in ("plain", "open_"):
        reward = load_reward(f"trl.py:{name}", arguments={"factor": 3.0})
        assert combine_rewards([JudgedCompletion(PROBLEM, "a")], [reward]).scored[0].total == 3.0
    assert "did you mean 'factor'" in refusal("trl.py:plain", factr=1.0)
    assert "'prompts' is given by the trainer" in refusal("trl.py:plain", prompts=1.0)
    Path("trl.py").write_text("def asks(completions, prompt='', **kwargs):\n    return [len(prompt)]\n")
    reward = load_reward("trl.py:asks", arguments={"prompt": "grade:"})
    assert combine_rewards([JudgedCompletion(PROBLEM, "a")], [reward]).scored[0].total == 6.0


def test_classes_methods_and_asynchronous_functions_are_callables_too() -> None:
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


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    assert "did you mean 'correct_answer'" in refusal("corect_answer")
    assert "did you mean 'length'" in refusal("mine.py:lenght")


@pytest.mark.parametrize("name", ["number", "nothing"])
def test_what_is_no_function(name: str) -> None:
    assert f"no function {name!r} in mine.py" in refusal(f"mine.py:{name}")


def test_a_missing_file_tells_where_it_was_sought(folder: Path) -> None:
    message = refusal("yours.py:length")
    assert "yours.py" in message
    assert str(folder) in message


def test_a_missing_module() -> None:
    assert "no_such_module" in refusal("no_such_module:length")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("1/0\n", "ZeroDivisionError"),
        ("def f(:\n", "SyntaxError"),
        ("import no_such_module\n", "ModuleNotFoundError"),
        ("raise SystemExit(3)\n", "SystemExit"),
    ],
)
def test_a_file_that_fails_as_it_loads(text: str, told: str) -> None:
    Path("bad.py").write_text(text)
    message = refusal("bad.py:f")
    assert "bad.py" in message
    assert told in message
