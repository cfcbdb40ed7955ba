"""The prompts of a run: they are shown at its start, checked, and equal in a run that is resumed later."""

import datetime
from pathlib import Path
from typing import Any

import pytest

from llm_reinforce import (
    InputError,
    LanguagePolicy,
    RandomInitConfig,
    ReinforceTrainer,
    random_policy,
)
from llm_reinforce.config import load_config
from llm_reinforce.console.run_display import Silent
from llm_reinforce.policy import load_policy

PROBLEMS = [{"prompt": f"{digit}=", "answer": str(digit)} for digit in range(4)]
TEMPLATE = (
    "{{ strftime_now('%Y-%m-%d') }}:{% for message in messages %}{{ message.content }}.{% endfor %}"
    "{% if enable_thinking %}T{% endif %}A"
)
SETTINGS: dict[str, Any] = {
    "num_updates": 2,
    "problems_per_update": 2,
    "episodes_per_problem": 2,
    "max_new_tokens": 2,
    "num_held_out": 0,
    "checkpoint_every": 1,
    "learning_rate": 1e-3,
}


class Messages(Silent):
    """Display that records its messages."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, sentence: str) -> None:
        self.said.append(sentence)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a tiny policy whose chat template prints the date."""
    shape = RandomInitConfig(
        alphabet="0123456789=-:.AST",
        num_layers=1,
        num_heads=2,
        hidden_size=8,
        intermediate_size=8,
        max_length=32,
    )
    directory = tmp_path_factory.mktemp("policy")
    made = random_policy(shape)
    made.tokenizer.chat_template = TEMPLATE
    made.save(directory)
    return directory


@pytest.fixture
def today(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Function that changes the date of today."""

    def set_to(text: str) -> None:
        class Fixed(datetime.date):
            @classmethod
            def today(cls) -> "Fixed":
                return cls.fromisoformat(text)

        monkeypatch.setattr("llm_reinforce.policy.prompt_checks.datetime.date", Fixed)

    return set_to


def text_of(policy: LanguagePolicy) -> str:
    return policy.decode(policy.encode_prompt("1="))


@pytest.mark.parametrize("is_object", [False, True])
def test_resumed_run_keeps_the_date_of_its_prompts(
    policy: Path, tmp_path: Path, today: Any, is_object: bool
) -> None:
    def trainer() -> ReinforceTrainer:
        given = load_policy(policy) if is_object else policy
        return ReinforceTrainer(given, PROBLEMS, output_dir=tmp_path / "run", **SETTINGS)

    today("2026-03-01")
    first = trainer()
    for _ in first.updates():
        break
    assert load_config(tmp_path / "run").policy.chat_template_date == "2026-03-01"
    today("2026-03-02")
    resumed = trainer()
    assert text_of(resumed.policy) == "2026-03-02:1=.A"
    resumed.train(resume=True)
    assert text_of(resumed.policy) == "2026-03-01:1=.A"
    assert text_of(load_policy(tmp_path / "run", chat_template_date="2026-03-01")) == "2026-03-01:1=.A"
    with pytest.raises(InputError, match=r"policy.chat_template_date: 2026-03-01 in the run, 2026-03-05 now"):
        ReinforceTrainer(
            policy if not is_object else str(tmp_path / "run" / "initial_policy"),
            None,
            config=load_config(tmp_path / "run"),
            chat_template_date="2026-03-05",
        ).train(resume=True)


def test_first_prompt_and_settings_of_the_chat_template_are_shown_and_recorded(
    policy: Path, tmp_path: Path
) -> None:
    chat = {"chat_template_date": "2026-03-01", "chat_template_kwargs": {"enable_thinking": True}}
    settings = {**SETTINGS, **chat, "system_prompt": "S", "progress": (shown := Messages())}
    trainer = ReinforceTrainer(policy, PROBLEMS, output_dir=tmp_path / "run", **settings)
    assert "first prompt: 2026-03-01:S.0=.TA" in shown.said
    assert trainer.preview().prompt == "2026-03-01:S.0=.TA"
    assert any("ends the messages of the assistant with" in sentence for sentence in shown.said)
    trainer.train()
    recorded = load_config(tmp_path / "run").policy
    assert {name: getattr(recorded, name) for name in chat} == chat
    assert trainer.config.policy == recorded


def test_problems_that_the_chat_template_drops_are_refused(policy: Path) -> None:
    loaded = load_policy(policy)
    loaded.tokenizer.chat_template = "S:A"
    with pytest.raises(
        InputError, match="prompt '0=': the chat template of the policy drops or changes the prompt"
    ):
        ReinforceTrainer(loaded, PROBLEMS, **SETTINGS)
