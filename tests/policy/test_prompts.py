"""What the policy reads and writes: chat templates, added tokens, dates, reasoning, unknown tokens."""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM

from llm_reinforce import InputError, LanguagePolicy, Problem, evaluate, verify
from llm_reinforce.episodes import collect_episodes
from llm_reinforce.evaluation import sample
from llm_reinforce.policy import (
    ChatSettings,
    character_tokenizer,
    check_prompts,
    first_prompt,
    policy_from_model,
    with_chat_settings,
)
from llm_reinforce.problems import problems_from
from llm_reinforce.rewards import StepRewards, WeightedReward

ALPHABET = "0123456789+=-: \nWhatis?Umfoknge<>/T.2yNvDcbrJ&|_w"
LETTERS = "".join(dict.fromkeys(ALPHABET))
USER = "{% for message in messages %}U{{ message.content }}{{ end }}{% endfor %}".replace(
    "{{ end }}", "<|im_end|>\n"
)
CHAT = USER + "{% if add_generation_prompt %}T:{% endif %}"
THINKING = USER + "{% if add_generation_prompt %}T:{% if enable_thinking %}<think>\n{% endif %}{% endif %}"
DATED = "{{ strftime_now('%Y-%m-%d') }}\n" + CHAT
NUM_SPARE = 3  # token ids of the model that the tokenizer does not have


def new_policy(
    template: str | None = CHAT, tags: Sequence[str] = ("<|im_end|>", "<think>"), **chat: Any
) -> LanguagePolicy:
    """Return a tiny policy whose tokenizer has added tokens and whose vocabulary is padded."""
    tokenizer = character_tokenizer(LETTERS)
    tokenizer.add_tokens(list(tags), special_tokens=True)
    tokenizer.chat_template = template
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer) + NUM_SPARE,
                hidden_size=8,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=8,
                max_position_embeddings=128,
                bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id,
            )
        )
    return policy_from_model(model, tokenizer, **chat)


def ids(policy: LanguagePolicy, text: str) -> list[int]:
    encoded: list[int] = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
    return encoded


# ------------------------------------------------------------------------------------ tokens without text


def test_token_ids_that_the_tokenizer_does_not_know_are_visible() -> None:
    policy = new_policy(None)
    one, five = ids(policy, "1"), ids(policy, "5")
    for unknown in (len(policy.tokenizer), len(policy.tokenizer) + NUM_SPARE - 1, 10**6):
        text = policy.decode([*one, unknown, *five])
        assert text == "1\ufffd5"
        assert not verify(text, "15").correct
    assert policy.decode([*one, *five, policy.end_token_ids[0]]) == "15"
    assert policy.decode([]) == ""


@pytest.mark.parametrize("text", ["1\ufffd5", "1<pad>5", "1<|im_end|>5", "1<pad><pad>5", "#### 1\ufffd5"])
@pytest.mark.parametrize("answer", ["15", "5", "1"])
def test_number_around_a_token_without_text_is_unreadable(text: str, answer: str) -> None:
    assert not verify(text, answer).correct


@pytest.mark.parametrize(
    "text", ["5\ufffd", "\ufffd5", "the answer is 5\ufffd", "#### 5\ufffd", "\\boxed{\ufffd5}"]
)
def test_number_beside_a_token_without_text_is_unreadable(text: str) -> None:
    assert verify(text, "5").reason in ("not_a_number", "no_answer")


def test_number_with_markup_is_read() -> None:
    for text in ("<b>5</b>", "5<br>", "1 + 4 = 5<|im_end|>", "\ufffd The answer is 5", "5<eos>."):
        assert verify(text, "5").correct, text


def test_added_token_within_a_number_is_visible() -> None:
    policy = new_policy(None)
    assert policy.decode(ids(policy, "1<think>5")) == "1<think>5"


def test_spaces_are_not_cleaned_up() -> None:
    policy = new_policy(None)
    policy.tokenizer.clean_up_tokenization_spaces = True
    assert policy.decode(ids(policy, "3 .5")) == "3 .5"


# ------------------------------------------------------------------------------- beginning and end of prompts


def appending(tokenizer: Any, *, single: str) -> None:
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=single, special_tokens=[("<end>", tokenizer.eos_token_id)]
    )


def test_end_token_that_the_tokenizer_appends_is_removed() -> None:
    policy = new_policy(None)
    appending(policy.tokenizer, single="$A <end>")
    assert policy.encode_prompts(["1+2=", "3="]) == [tuple(ids(policy, "1+2=")), tuple(ids(policy, "3="))]
    (note,) = check_prompts(policy, [Problem("1+2=", "3"), Problem("3=", "3")])
    assert (
        note == "the tokenizer adds special tokens to each text (<end>), which are removed from the prompts"
    )


def test_bos_token_occurs_once() -> None:
    policy = new_policy(None)
    policy.tokenizer.add_special_tokens({"bos_token": "<think>"})
    policy.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<think> $A", special_tokens=[("<think>", policy.tokenizer.bos_token_id)]
    )
    expected = (policy.tokenizer.bos_token_id, *ids(policy, "1="))
    assert policy.encode_prompt("1=") == policy.encode_prompt("<think>1=") == expected


def test_prompt_that_ends_in_an_end_token_is_rejected() -> None:
    with pytest.raises(InputError, match=r"prompt '1=<end>': ends in the end token <end>; remove the end"):
        new_policy(None).encode_prompt("1=<end>")
    for template in (USER, USER + "{{ eos_token }}"):
        policy = new_policy(template)
        with pytest.raises(
            InputError, match=r"ends in the end token .*does not begin a message of the assistant"
        ):
            policy.encode_prompt("1=")


def test_token_that_ends_turns_is_an_end_token() -> None:
    policy = new_policy(CHAT)
    end_of_turn = policy.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert policy.end_token_ids == (end_of_turn, policy.tokenizer.eos_token_id)
    assert policy.encode_completion("3")[-1] == end_of_turn
    assert new_policy(CHAT, use_chat_template=False).end_token_ids == (policy.tokenizer.eos_token_id,)
    assert check_prompts(policy, [Problem("1=", "1")]) == []


@pytest.mark.parametrize(
    ("ending", "expected"), [("&& ", "with '&&', which is not an end token"), ("", "without a token")]
)
def test_turns_that_end_in_no_token_are_reported(ending: str, expected: str) -> None:
    policy = new_policy(CHAT.replace("<|im_end|>\n", ending))
    (note,) = check_prompts(policy, [Problem("1=", "1")])
    start = f"the chat template ends the messages of the assistant {expected}"
    assert note == f"{start}; a completion ends only with <end>"


# ------------------------------------------------------------------------------------------ chat templates


@pytest.mark.parametrize(
    "template",
    ["U What is 1+1?\nT:", "{% for m in messages %}U{{ m.content | replace('2', '3') }}{% endfor %}T:"],
)
def test_chat_template_that_drops_or_changes_the_text_is_rejected(template: str) -> None:
    with pytest.raises(
        InputError, match=r"What is 2731 \+ 8465\?': the chat template of the policy drops or changes"
    ):
        new_policy(template)


def test_chat_template_that_drops_some_texts_is_rejected() -> None:
    policy = new_policy("{% for m in messages %}{{ m.content.split('=')[0] }}?{% endfor %}T:")
    assert policy.encode_prompt("12")
    with pytest.raises(InputError, match="drops or changes the prompt; the policy would read '12"):
        policy.encode_prompt("12=3")


def test_prompts_that_become_the_same_tokens_are_reported() -> None:
    policy = new_policy(None)
    policy.tokenizer.backend_tokenizer.normalizer = _replacing("[0-9]", "0")
    with pytest.raises(
        InputError, match="all prompts become the same tokens, '0=', although their texts differ"
    ):
        check_prompts(policy, [Problem("1=", "1"), Problem("2=", "2")])
    note, _ = check_prompts(policy, [Problem(text, "1") for text in ("1=", "2=", "3+")])
    assert note.startswith("3 different prompts become only 2 different sequences of tokens")


def _replacing(pattern: str, text: str) -> Any:
    from tokenizers import Regex, normalizers

    return normalizers.Replace(Regex(pattern), text)


def test_prompts_that_the_tokenizer_changes_are_reported() -> None:
    policy = new_policy(None)
    problems = [Problem("3-4=", "-1"), Problem("3+4=", "7")]
    assert check_prompts(policy, problems) == []
    policy.tokenizer.backend_tokenizer.normalizer = _replacing("-", "")
    (note,) = check_prompts(policy, problems)
    assert note == "the tokenizer changes the text of prompts (1 of 2): it reads '3-4=' as '34='"


def test_prompts_that_are_already_rendered_are_reported() -> None:
    problems = [Problem("U3+4=<|im_end|>\nT:", "7"), Problem("3+5=", "8")]
    (note,) = check_prompts(new_policy(), problems)
    assert note.startswith("1 of 2 prompts contain special tokens, such as <|im_end|>")
    assert check_prompts(new_policy(None), problems) == []


@pytest.mark.parametrize("choice", ["{{ range(99)|random }}", "{{ lipsum(1) }}"])
def test_template_that_renders_at_random_is_rejected(choice: str) -> None:
    with pytest.raises(InputError, match="renders the same prompt differently each time"):
        new_policy(choice + CHAT)


@pytest.mark.parametrize("error", ["{{ 1 / 0 }}", "{% if %}", "{{ a.b.c }}", "{{ messages[5].content }}"])
def test_template_with_an_error_is_rejected(error: str) -> None:
    with pytest.raises(InputError, match="does not accept user messages") as caught:
        new_policy(error + CHAT)
    assert "system_prompt" not in str(caught.value)  # there is none to remove


def test_template_arguments_reach_the_template() -> None:
    for value, expected in ((True, "U1=<|im_end|>\nT:<think>\n"), (False, "U1=<|im_end|>\nT:")):
        policy = new_policy(THINKING, chat_template_kwargs={"enable_thinking": value})
        assert policy.decode(policy.encode_prompt("1=")) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"enable_thinkin": True}, "no such argument; did you mean 'enable_thinking'"),
        ({"tokenize": True}, "tokenize: the toolkit sets this argument; remove it"),
        ({"messages": []}, "messages: the toolkit sets this argument"),
    ],
)
def test_template_argument_without_effect_is_rejected(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        new_policy(THINKING, chat_template_kwargs=arguments)


def test_settings_of_a_chat_template_without_one_are_rejected() -> None:
    with pytest.raises(InputError, match=r"policy.chat_template_kwargs has no effect"):
        new_policy(None, chat_template_kwargs={"enable_thinking": True})


def test_system_prompt_that_the_template_drops_is_rejected() -> None:
    template = "{% for m in messages if m.role == 'user' %}U{{ m.content }}{% endfor %}T:"
    with pytest.raises(
        InputError, match=r"system_prompt: the chat template of the policy drops or changes the system prompt"
    ):
        new_policy(template, system_prompt="What")


# ------------------------------------------------------------------------------------------------ the date


def test_date_of_the_chat_template_is_fixed() -> None:
    policy = new_policy(DATED, chat_template_date="2025-02-03")
    assert policy.decode(policy.encode_prompt("1=")).startswith("2025-02-03\nU1=")
    assert new_policy(DATED).chat_template_date == datetime.date.today()
    assert new_policy(CHAT, chat_template_date="2025-02-03").chat_template_date is None
    with pytest.raises(InputError, match=r"chat_template_date '3 May': should be a date such as 2026-11-29"):
        new_policy(DATED, chat_template_date="3 May")


def test_date_has_the_format_of_the_template(monkeypatch: pytest.MonkeyPatch) -> None:
    formats = "%d %b %Y|%-d %B|%A %j|%H:%M|100%%d|%y-%m-%d"
    template = (
        "\n{% set now = strftime_now('" + formats + "') %}{% macro year() %}{{ strftime_now('%Y')|int + 1 }}"
    )
    template += "{% endmacro %}{{ now }}|{{ year() }}" + CHAT
    policy = new_policy(template)
    dated = with_chat_settings(policy, ChatSettings(chat_template_date=datetime.date(2025, 2, 3)))
    expected = datetime.datetime(2025, 2, 3).strftime(formats)
    assert dated.render_prompt("1=") == f"\n{expected}|2026U1=<|im_end|>\nT:"


# ------------------------------------------------------------------------------------------ open reasoning


def cut_off(policy: LanguagePolicy, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Make every completion of the policy be `text`, truncated."""
    tokens = ids(policy, text)

    def step(self: Any, temperature: float) -> None:
        original(self, temperature)
        for slot in self.active:
            column = int(self.lengths[slot]) - 1
            self.token_ids[slot, column] = tokens[column]
            self.is_running[slot] = column + 1 < len(tokens)

    from llm_reinforce.policy.sampling import Generation

    original = Generation.step
    monkeypatch.setattr(Generation, "step", step)


PROBLEM = Problem("3+4=", "7", id="a")


def user_reward(completion: str, problem: Problem) -> float:
    return float(verify(completion, problem.answer).correct)


@pytest.mark.parametrize(
    ("completion", "thinks", "expected"),
    [("so 7", True, False), ("so 7", False, True), ("no</think>7", True, True), ("7</think>8", True, False)],
)
def test_reasoning_that_the_prompt_opens_is_open(
    completion: str, thinks: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = new_policy(THINKING, chat_template_kwargs={"enable_thinking": thinks})
    cut_off(policy, monkeypatch, completion)
    reward = WeightedReward("mine", user_reward)
    length = len(ids(policy, completion))
    batch = collect_episodes(policy, [PROBLEM], [reward], episodes_per_problem=2, max_new_tokens=length)
    assert {episode.verdict.correct for episode in batch.episodes} == {expected}
    assert {episode.reward for episode in batch.episodes} == {float(expected)}  # rewards verify too
    notes = check_prompts(policy, [PROBLEM])
    assert any("open reasoning block, '<think>\\n'" in note for note in notes) == thinks
    evaluation = evaluate(policy, [PROBLEM], max_new_tokens=length, stop=["\n"])
    assert evaluation.accuracy == float(expected)
    ((first, *_),) = sample(policy, [PROBLEM.prompt], max_new_tokens=length)
    assert first.text == ("<think>\n" if thinks else "") + completion


def test_step_rewards_count_the_characters_of_the_open_reasoning(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = new_policy(THINKING, chat_template_kwargs={"enable_thinking": True})
    cut_off(policy, monkeypatch, "so 7")

    def steps(completion: str, problem: Problem) -> StepRewards:
        assert completion == "<think>\nso 7"
        return StepRewards([(0, 3, 1.0), (0, completion.index("o") + 1, 2.0)])

    batch = collect_episodes(
        policy, [PROBLEM], [WeightedReward("steps", steps)], episodes_per_problem=1, max_new_tokens=4
    )
    assert batch.episodes[0].step_rewards == (1.0, 2.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("3+4=\n<think>\n", "<think>\n"),
        ("3+4=<think>", "<think>"),
        ("begin with <think>.\n3+4=", ""),
        ("<think>a</think>3+4=", ""),
    ],
)
def test_reasoning_is_opened_by_the_end_of_a_plain_prompt(prompt: str, expected: str) -> None:
    policy = new_policy(None)
    assert policy.opened_reasoning(policy.encode_prompt(prompt)) == expected


def test_tag_in_the_turn_of_the_user_opens_no_reasoning() -> None:
    policy = new_policy(CHAT)
    assert policy.opened_reasoning(policy.encode_prompt("Use <think>")) == ""
    policy = new_policy(CHAT + "{% if add_generation_prompt %}<think>\nNo{% endif %}")
    assert policy.opened_reasoning(policy.encode_prompt("Use <think>")) == "<think>\nNo"


@pytest.mark.parametrize(
    "opening",
    [
        "<think>",
        "[THINK]",
        "<seed:think>",
        "◁think▷",
        "<|begin_of_thought|>",
        "<|channel|>analysis<|message|>",
        "<THINK>",
        "<Thought>",
        "<longcat_think>",
        "<|START_THINKING|>",
        "<|think_start|>",
        "<scratchpad>",
        "<reflection>",
    ],
)
def test_answer_within_open_reasoning_is_no_answer(opening: str) -> None:
    assert verify(f"{opening}\n3 + 4 = 7", "7").reason == "no_answer"


def test_closed_reasoning_is_skipped() -> None:
    for text in (
        "[THINK]6[/THINK]7",
        "<Thought>6</thought>7",
        "<|START_THINKING|>6<|END_THINKING|>7",
        "<|begin_of_thought|>6<|end_of_thought|>7",
        "<|channel|>analysis<|message|>6<|end|><|channel|>final<|message|>7",
    ):
        assert verify(text, "7").correct


# ----------------------------------------------------------------------------- evaluation and sampling


@pytest.fixture(scope="module")
def dated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a policy whose chat template prints the date, and has an argument."""
    directory = tmp_path_factory.mktemp("dated")
    new_policy(DATED + "{% if enable_thinking %}{% endif %}").save(directory)
    return directory


def test_settings_of_the_chat_template_can_be_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = new_policy(
        "{% for m in messages %}{{ m.content }};{% endfor %}".replace(";", "&") + "{{ suffix }}T:"
    )
    seen: list[str] = []
    encode = LanguagePolicy.encode_prompts

    def recorded(self: LanguagePolicy, prompts: Sequence[str]) -> list[tuple[int, ...]]:
        seen.extend(self.render_prompt(prompt) for prompt in prompts)
        return encode(self, prompts)

    monkeypatch.setattr(LanguagePolicy, "encode_prompts", recorded)
    arguments: dict[str, Any] = {"system_prompt": "Whats", "chat_template_kwargs": {"suffix": "U"}}
    evaluate(policy, [PROBLEM], max_new_tokens=2, **arguments)
    sample(policy, ["1="], num_completions=1, max_new_tokens=2, **arguments)
    assert {"Whats&3+4=&UT:", "Whats&1=&UT:"} == set(seen)


def test_interrupted_evaluation_keeps_its_date(dated: Path, tmp_path: Path) -> None:
    problems = [PROBLEM, Problem("1=", "1", id="b")]
    settings: dict[str, Any] = {"max_new_tokens": 2, "output_dir": tmp_path}
    before = evaluate(dated, problems, chat_template_date="2025-02-03", **settings)
    (file,) = tmp_path.glob("answers_*.jsonl")
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:2]) + "\n")
    after = evaluate(dated, problems, **settings)
    assert after.answers == before.answers
    assert file.read_text().splitlines()[0] == lines[0]
    with pytest.raises(InputError, match="chat_template_date: '2025-02-03' in the file, '2025-02-04' now"):
        evaluate(dated, problems, chat_template_date="2025-02-04", **settings)


# ------------------------------------------------------------------------------------------ chats as prompts

ROLES = CHAT.replace("U{{", "<{{ message.role[0] | replace('u', 'U') }}>{{")
SYSTEM, QUESTION = {"role": "system", "content": "Whats"}, {"role": "user", "content": "1+1"}
TURNS = (SYSTEM, {"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4"}, QUESTION)


def test_messages_of_a_chat_are_used_unchanged() -> None:
    policy = new_policy(ROLES, system_prompt="Umfo")
    starts = [f"<{each['role'][0].replace('u', 'U')}>{each['content']}<|im_end|>\n" for each in TURNS]
    assert policy.render_prompt(TURNS) == "".join(starts) + "T:"
    own = "<s>Umfo<|im_end|>\n"
    assert policy.render_prompt([QUESTION]) == policy.render_prompt("1+1") == f"{own}{starts[3]}T:"


def test_chat_without_a_chat_template_is_refused() -> None:
    policy = new_policy(None)
    assert policy.render_prompt([QUESTION]) == "1+1"
    with pytest.raises(InputError, match=r"several messages \(system, user\), but the policy uses no chat"):
        policy.render_prompt([SYSTEM, QUESTION])


def test_chat_template_that_drops_a_system_message_is_refused() -> None:
    silent = USER.replace("U{{", "{% if message.role == 'user' %}U{{").replace("}}<", "}}{% endif %}<")
    with pytest.raises(InputError, match="prompt 'Whats': the chat template of the policy drops or changes"):
        new_policy(silent).render_prompt([SYSTEM, QUESTION])


def test_chats_reach_the_policy_and_reward_functions() -> None:
    seen: list[Any] = []

    def of_chat(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        seen.extend([prompts[0], completions[0][0]["role"]])
        return [0.0] * len(prompts)

    policy = new_policy(ROLES)
    problem = problems_from([{"prompt": list(TURNS), "answer": "2"}])[0]
    batch = collect_episodes(
        policy, [problem], [WeightedReward("f", of_chat)], episodes_per_problem=1, max_new_tokens=2
    )
    assert seen == [list(TURNS), "assistant"]
    assert policy.decode(batch.episodes[0].prompt_ids) == policy.render_prompt(TURNS)
    assert check_prompts(policy, [problem]) == []
    assert first_prompt(policy, [problem]) == policy.render_prompt(TURNS)
