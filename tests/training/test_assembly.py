"""From the config to the objects of a run: incompatible settings are found before training."""

import json
from pathlib import Path

import pytest

from llm_reinforce.config import AdapterConfig, Config, PolicyConfig, RandomInitConfig, load_config
from llm_reinforce.console.run_display import Silent
from llm_reinforce.errors import InputError
from llm_reinforce.policy import LanguagePolicy, check_prompts_fit, policy_from_config, random_policy
from llm_reinforce.problems import Problem, problems_from_config
from llm_reinforce.rewards import reward_from_config
from llm_reinforce.training.assembly import build_loop

RECIPE = """\
policy:
  random_init: {num_layers: 1, num_heads: 2, hidden_size: 8, intermediate_size: 16, max_length: 16}
problems:
  generate: {digits: [1]}
  num_held_out: 10
sampling: {max_new_tokens: 4}
reinforce: {problems_per_update: 4, episodes_per_problem: 2}
training: {num_updates: 2, learning_rate: 1e-3}
"""


class MessageRecorder(Silent):
    """Record all messages."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def say(self, sentence: str) -> None:
        self.messages.append(sentence)


def recipe(tmp_path: Path, *overrides: str) -> Config:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return load_config(path, overrides)


def write_sums(path: Path, prompts: list[str], **columns: str) -> Path:
    path.write_text(
        "".join(json.dumps({"prompt": prompt, "answer": "1", **columns}) + "\n" for prompt in prompts)
    )
    return path


def test_generated_problems_depend_on_template_and_seed(tmp_path: Path) -> None:
    split = problems_from_config(recipe(tmp_path, "problems.template='+{prompt}-{prompt}'"))
    assert len(split.held_out) == 10
    for problem in (*split.train, *split.held_out):
        plain = problem.id.removeprefix("addition-") + "="
        assert problem.prompt == f"+{plain}-{plain}"
    assert problems_from_config(recipe(tmp_path, "seed=0")) == problems_from_config(recipe(tmp_path))
    assert problems_from_config(recipe(tmp_path, "seed=1")) != problems_from_config(recipe(tmp_path))


def test_one_file_is_split_and_columns_are_kept(tmp_path: Path) -> None:
    data = write_sums(tmp_path / "a.jsonl", [f"{number}=" for number in range(9)], kind="sum")
    source = f"problems={{train: {{data: {data}}}, num_held_out: 3, template: '{{prompt}}?'}}"
    split = problems_from_config(recipe(tmp_path, source))
    assert (len(split.train), len(split.held_out)) == (6, 3)
    assert {problem.prompt for problem in (*split.train, *split.held_out)} == {f"{n}=?" for n in range(9)}
    assert split.train[0].columns == {"kind": "sum"}


def test_algebra_is_set_by_the_recipe_and_requires_math_verify(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_sums(tmp_path / "a.jsonl", ["1=", "2=", "3="])
    source = f"problems={{train: {{data: {data}, algebra: true}}, num_held_out: 1}}"
    monkeypatch.setattr("llm_reinforce.verifier.algebra.find_spec", lambda name: object())
    split = problems_from_config(recipe(tmp_path, source))
    assert all(problem.algebra for problem in (*split.train, *split.held_out))
    plain = problems_from_config(recipe(tmp_path, source.replace(", algebra: true", "")))
    assert not any(problem.algebra for problem in (*plain.train, *plain.held_out))
    monkeypatch.setattr("llm_reinforce.verifier.algebra.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"math-verify, which is not installed; .*llm-reinforce\[algebra\]"):
        problems_from_config(recipe(tmp_path, source))


def test_held_out_problems_are_removed_from_the_training_problems(tmp_path: Path) -> None:
    train = write_sums(tmp_path / "a.jsonl", ["1=", "2=", "3=", "  2=", "4="])
    held_out = write_sums(tmp_path / "b.jsonl", ["2=", "5=", "4= "])
    source = f"problems={{train: {{data: {train}}}, held_out: {{data: {held_out}}}, num_held_out: 2}}"
    recorder = MessageRecorder()
    split = problems_from_config(recipe(tmp_path, source), recorder.say)
    assert [problem.prompt for problem in split.train] == ["1=", "3="]
    assert len(split.held_out) == 2
    assert recorder.messages == [
        "3 training problems are also held-out problems, so they are not used for training"
    ]


def test_training_on_the_evaluated_problems_is_reported(tmp_path: Path) -> None:
    data = write_sums(tmp_path / "a.jsonl", ["1=", "2=", "3="])
    same = f"problems={{train: {{data: {data}}}, held_out: {{data: {data}}}, num_held_out: 3}}"
    recorder = MessageRecorder()
    split = problems_from_config(recipe(tmp_path, same), recorder.say)
    assert {problem.prompt for problem in split.train} == {problem.prompt for problem in split.held_out}
    assert "evaluated on its training problems" in recorder.messages[0]
    assert "3 of 3 evaluated problems are also training problems" in recorder.messages[1]
    recorder = MessageRecorder()
    problems_from_config(
        recipe(tmp_path, f"problems={{train: {{data: {data}}}, num_held_out: 0}}"), recorder.say
    )
    assert recorder.messages == ["no problems are held out, so accuracy is measured on the training problems"]


def test_near_copies_of_held_out_problems_are_reported(tmp_path: Path) -> None:
    words = "How many apples has Tom"
    train = write_sums(tmp_path / "a.jsonl", [f"{words}, 1 or 2?", "1+1="])
    held_out = write_sums(tmp_path / "b.jsonl", [f"{words}: 1 or 2", f"{words}, 3 or 4?", "3+1="])
    recorder = MessageRecorder()
    source = f"problems={{train: {{data: {train}}}, held_out: {{data: {held_out}}}, num_held_out: 3}}"
    problems_from_config(recipe(tmp_path, source), recorder.say)
    assert [sentence.partition(" (")[0] for sentence in recorder.messages] == [
        "1 of 3 evaluated problems are also training problems, so the policy may have memorized their "
        "answers",
        "1 of 3 evaluated problems differ from training problems only in their numbers",
    ]


def test_held_out_problems_have_their_own_template_and_examples(tmp_path: Path) -> None:
    data = write_sums(tmp_path / "a.jsonl", [f"{number}=" for number in range(9)])
    source = f"problems={{train: {{data: {data}}}, num_held_out: 3}}"
    evaluation = "evaluation={few_shot: 2, template: 'Q{prompt}'}"
    split = problems_from_config(recipe(tmp_path, source, evaluation))
    assert all(problem.prompt[0] != "Q" for problem in split.train)
    before = {problem.prompt.rpartition("Q")[0] for problem in split.held_out}
    assert len(before) == 1
    shown = before.pop()
    assert shown.count("\n\n") == shown.count("Q") == 2
    own = {problem.prompt.rpartition("Q")[2] for problem in split.held_out}
    assert not any(f"Q{prompt}" in shown for prompt in own)
    with pytest.raises(InputError, match="few_shot: 7 examples are needed, but only 6 of 6"):
        problems_from_config(recipe(tmp_path, source, "evaluation={few_shot: 7}"))
    for settings in ("few_shot: 1", "template: 'Q{prompt}'"):
        with pytest.raises(InputError, match="used only for held-out problems"):
            recipe(
                tmp_path,
                f"problems={{train: {{data: {data}}}, num_held_out: 0}}",
                f"evaluation={{{settings}}}",
            )


def test_a_recipe_reads_a_named_data_set(tmp_path: Path) -> None:
    data = tmp_path / "train.jsonl"
    data.write_text("".join(f'{{"question": "{n} and 1?", "answer": "#### {n + 1}"}}\n' for n in range(5)))
    source = f"problems={{train: {{data: gsm8k={data}}}, num_held_out: 2}}"
    split = problems_from_config(recipe(tmp_path, source))
    assert {problem.answer for problem in (*split.train, *split.held_out)} == set("12345")
    with pytest.raises(InputError, match="not used for a file"):
        recipe(tmp_path, f"problems={{train: {{data: gsm8k={data}, split: test}}}}")
    with pytest.raises(InputError, match="did you mean 'gsm8k'"):
        problems_from_config(recipe(tmp_path, "problems={train: {data: gsm9k}}"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("data: nowhere.jsonl", "no such file"),
        ("data: ~/nowhere.json", "no such file"),
        ("data: nowhere.json, config: main", "not used for a file"),
        ("data: a.txt, config: main", "not used for a file"),
        ("data: a.txt, split: test", "not used for a file"),
    ],
)
def test_file_names_are_never_looked_up_on_the_hub(
    tmp_path: Path, settings: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").touch()
    with pytest.raises(InputError, match=message):
        problems_from_config(recipe(tmp_path, f"problems={{train: {{{settings}}}}}"))


def test_rewards_get_their_weights_and_arguments(tmp_path: Path) -> None:
    settings = "rewards=[{function: conciseness, weight: 0.5, arguments: {max_tokens: 10}}]"
    reward = reward_from_config(recipe(tmp_path, settings).rewards[0])
    assert (reward.name, reward.weight) == ("conciseness", 0.5)
    assert reward.function("2", Problem("1+1=", "2"), completion_ids=[7]) == pytest.approx(0.9)


def test_characters_outside_the_alphabet_are_found_before_a_model_is_built(tmp_path: Path) -> None:
    data = write_sums(tmp_path / "a.jsonl", ["1=", "2?", "3="])
    source = f"problems={{train: {{data: {data}}}, num_held_out: 1}}"
    with pytest.raises(InputError, match=r"alphabet lacks '\?', found in the prompt '2\?'"):
        build_loop(recipe(tmp_path, source))
    write_sums(data, ["1=", "2=", "3="], solution="three")
    with pytest.raises(InputError, match=r"found in the solution or answer of .*, on which the warm start"):
        build_loop(recipe(tmp_path, source, "training.warm_start.num_updates=20"))


def test_answers_with_unknown_characters_are_reported(tmp_path: Path) -> None:
    recorder = MessageRecorder()
    overrides = ["problems.generate.operations=[subtraction]", "policy.random_init.alphabet='0123456789-='"]
    build_loop(recipe(tmp_path, *overrides), display=recorder)
    assert not any("have an answer with characters" in sentence for sentence in recorder.messages)
    data = tmp_path / "a.jsonl"
    data.write_text(
        '{"prompt": "1", "answer": "a"}\n{"prompt": "2", "answer": "2"}\n{"prompt": "3", "answer": "b"}\n'
    )
    build_loop(recipe(tmp_path, f"problems={{train: {{data: {data}}}, num_held_out: 1}}"), display=recorder)
    assert any(
        "training problems have an answer with characters" in sentence for sentence in recorder.messages
    )


def test_the_prompt_with_the_most_tokens_is_found_among_many_longer_texts(
    tiny_policy: LanguagePolicy,
) -> None:
    tiny_policy.tokenizer.add_tokens(["1" * 8])
    tiny_policy.model.resize_token_embeddings(len(tiny_policy.tokenizer))  # type: ignore[operator]
    problems = [Problem("1" * 64, "1")] * 300 + [Problem("2" * 30, "1", id="short")]
    with pytest.raises(InputError, match="problem 'short': its prompt has 30 tokens"):
        check_prompts_fit(tiny_policy, problems, 4)


def test_prompts_with_tokens_outside_the_embedding_are_rejected(tiny_policy: LanguagePolicy) -> None:
    tiny_policy.tokenizer.add_tokens(["<new>"])
    with pytest.raises(InputError, match=r"token '<new>' \(id 13\) has no embedding: .* 0 to 12"):
        check_prompts_fit(tiny_policy, [Problem("1", "1"), Problem("1<new>2", "1")], 4)


def test_prompts_that_leave_no_room_for_a_completion_are_rejected(
    tmp_path: Path, tiny_policy: LanguagePolicy
) -> None:
    check_prompts_fit(tiny_policy, [Problem("1" * 28, "1")], 4)
    with pytest.raises(
        InputError,
        match=r"problem 'long': its prompt has 29 tokens, .* exceed the context of the policy \(32",
    ):
        check_prompts_fit(tiny_policy, [Problem("1", "1"), Problem("1" * 29, "1", id="long")], 4)
    with pytest.raises(InputError, match=r"exceed the context of the policy \(16 tokens"):
        build_loop(recipe(tmp_path, "problems.generate={digits: [7], num_train: 9}"))


def test_build_loop_uses_the_settings_of_the_recipe(tmp_path: Path) -> None:
    recorder = MessageRecorder()
    trainer = build_loop(recipe(tmp_path, "seed=7"), display=recorder)
    assert (trainer.seed, trainer.sampling.max_new_tokens, len(trainer.held_out)) == (7, 4, 10)
    assert recorder.messages[0] == f"problems: {len(trainer.problems)} to train on, 10 held out"
    assert recorder.messages[1].startswith("policy: llama, ")
    assert "parameters, all trained; a completion ends with" in recorder.messages[1]
    assert trainer.train().num_updates == 2


@pytest.mark.parametrize(("training", "is_noted"), [({}, True), ({"learning_rate": 1e-5}, False)])
def test_default_learning_rate_of_an_adapter_in_a_directory_is_noted(
    tmp_path: Path, training: dict[str, float], is_noted: bool
) -> None:
    shape = RandomInitConfig(num_layers=1, num_heads=2, hidden_size=8, intermediate_size=16, max_length=16)
    random_policy(shape).save(tmp_path / "base")
    base = PolicyConfig(name_or_path=str(tmp_path / "base"), lora=AdapterConfig(rank=2))
    policy_from_config(base, seed=0).save(tmp_path / "adapter")
    settings = {
        "policy": {"name_or_path": str(tmp_path / "adapter")},
        "problems": {"generate": {"digits": [1]}, "num_held_out": 10},
        "sampling": {"max_new_tokens": 4},
        "training": training,
    }
    recorder = MessageRecorder()
    build_loop(Config.model_validate(settings), display=recorder)
    assert any("training.learning_rate=0.0001" in message for message in recorder.messages) is is_noted
