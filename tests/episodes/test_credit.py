"""Tests of converting step rewards from characters to tokens, for several kinds of tokenizers."""

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from llm_reinforce.config import ReinforceConfig
from llm_reinforce.episodes import EpisodeBatch, collect_episodes, estimate_advantages
from llm_reinforce.episodes.credit import completing_token, step_rewards_by_token
from llm_reinforce.policy import LanguagePolicy
from llm_reinforce.policy_gradient import MovingAverage, place_rewards, reward_to_go
from llm_reinforce.problems import Problem
from llm_reinforce.rewards import StepRewards, WeightedReward, intermediate_steps

CORPUS = [
    "3*4=12, so 12+30=42 😀 apples",
    "das Wörtchen »Äpfel« · 苹果 apples apples",
    "3 * 4 = 12 #### 42",
] * 3


def byte_level() -> Tokenizer:
    """Return a tokenizer like that of GPT-2, with merges within words and single bytes of rare characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def metaspace() -> Tokenizer:
    """Return a tokenizer like that of Llama 2, with ▁ before words and bytes for unknown characters."""
    pieces = ["▁", "▁so", "▁app", "les", "apples", "1", "2", "12", "=", "=12", "*", "+", "4", "3", "a", "▁=▁"]
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    vocabulary |= {
        piece: 256 + index for index, piece in enumerate(dict.fromkeys([*pieces, "p", "l", "e", "s"]))
    }
    vocabulary["<unk>"] = len(vocabulary)
    merges = [("1", "2"), ("=", "12")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def word_piece() -> Tokenizer:
    """Return a tokenizer like that of BERT, whose decoder removes spaces depending on the next token."""
    words = ["[UNK]", "don", "'", "t", "3", "4", "12", "so", ",", ".", "app", "##les", "=", "*", "!"]
    model = models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=True)
    return tokenizer


TOKENIZERS = {"byte_level": byte_level(), "metaspace": metaspace()}
SENTENCES = st.lists(
    st.sampled_from(
        [*CORPUS, "3*4=12", "😀", "👩‍👩‍👧", "苹", "ä", " ", "\n", "apples", "12", "so", "x", "�"]
    ),
    max_size=8,
).map("".join)


def decoder(tokenizer: Tokenizer) -> Callable[[Sequence[int]], str]:
    return lambda token_ids: tokenizer.decode(list(token_ids), skip_special_tokens=False)


def by_token_of(steps: StepRewards, tokens: Sequence[str], text: str) -> tuple[float, ...]:
    """Return the step rewards by token for a completion whose tokens have the texts `tokens`."""
    return step_rewards_by_token(
        [steps], text, tuple(range(len(tokens))), lambda ids: "".join(tokens[i] for i in ids)
    )


# -------------------------------------------------------------------------------- worked examples


def test_token_that_completes_a_span_has_its_reward() -> None:
    tokens = ["3*", "4=1", "2", ", so", " 1", "2", "<end>"]
    text = "3*4=12, so 12"

    def decode(token_ids: Sequence[int]) -> str:
        return "".join(tokens[index] for index in token_ids if index != 6)

    def by_token(*spans: tuple[int, int, float]) -> tuple[float, ...]:
        return step_rewards_by_token([StepRewards(spans)], text, tuple(range(7)), decode)

    assert by_token((0, 1, 1.0)) == (1, 0, 0, 0, 0, 0, 0)
    assert by_token((0, 2, 1.0)) == (1, 0, 0, 0, 0, 0, 0)
    assert by_token((0, 3, 1.0)) == (0, 1, 0, 0, 0, 0, 0)
    assert by_token((4, 5, 1.0)) == (0, 1, 0, 0, 0, 0, 0)
    assert by_token((0, 6, 1.0)) == (0, 0, 1, 0, 0, 0, 0)
    assert by_token((0, 7, 1.0), (0, 10, 0.5)) == (0, 0, 0, 1.5, 0, 0, 0)
    assert by_token((0, 13, 1.0)) == (0, 0, 0, 0, 0, 1, 0)
    assert by_token((0, 14, 1.0)) == (0, 0, 0, 0, 0, 0, 1)  # after the last character: the end token
    assert by_token() == (0,) * 7


def test_last_token_of_a_truncated_episode_has_the_reward_of_the_end_token() -> None:
    assert by_token_of(StepRewards([(0, 4, 1.0)]), ["1", "+", "1"], "1+1") == (0, 0, 1)


def test_step_rewards_of_several_functions_are_summed() -> None:
    tokens, text = ["ab", "c"], "abc"
    steps = [StepRewards([(0, 2, 1.0)]), StepRewards(by_token=[0.5, -1.0]), StepRewards()]
    assert step_rewards_by_token(steps, text, (0, 1), lambda ids: "".join(tokens[i] for i in ids)) == (
        1.5,
        -1.0,
    )


def test_result_is_empty_without_step_rewards_or_tokens() -> None:
    assert step_rewards_by_token([], "abc", (0, 1), lambda ids: "") == ()
    assert step_rewards_by_token([StepRewards([(0, 1, 1.0)])], "", (), lambda ids: "") == ()


def test_emoji_of_several_tokens_is_completed_by_its_last_byte() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    text = "x👩y"
    token_ids = tuple(tokenizer.encode(text).ids)
    pieces = [tokenizer.decode([token_id]) for token_id in token_ids]
    assert (pieces[0], pieces[-1]) == ("x", "y")
    assert pieces.count("�") >= 2
    assert completing_token(2, text, token_ids, decoder(tokenizer)) == len(token_ids) - 2
    assert completing_token(1, text, token_ids, decoder(tokenizer)) == 0


# -------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("name", list(TOKENIZERS))
@given(text=SENTENCES, data=st.data())
def test_completing_token_is_the_first_after_which_the_span_is_decoded(
    name: str, text: str, data: st.DataObject
) -> None:
    tokenizer = TOKENIZERS[name]
    decode = decoder(tokenizer)
    token_ids = tuple(tokenizer.encode(text).ids)
    text = decode(token_ids)
    if not text:
        return
    end = data.draw(st.integers(1, len(text)))
    t = completing_token(end, text, token_ids, decode)
    assert decode(token_ids[: t + 1])[:end] == text[:end]
    assert decode(token_ids[:t])[:end] != text[:end]


@pytest.mark.parametrize("name", list(TOKENIZERS))
@given(token_ids=st.lists(st.integers(0, 255), min_size=1, max_size=12).map(tuple), data=st.data())
def test_token_sequences_that_no_text_encodes_to_are_supported(
    name: str, token_ids: tuple[int, ...], data: st.DataObject
) -> None:
    decode = decoder(TOKENIZERS[name])  # a policy may sample incomplete characters
    text = decode(token_ids)
    end = data.draw(st.integers(1, len(text) + 1))
    t = completing_token(end, text, token_ids, decode)
    assert end > len(text) or decode(token_ids[: t + 1])[:end] == text[:end]


@given(st.lists(st.integers(1, 14), min_size=1, max_size=10).map(tuple), st.data())
def test_decoder_that_changes_earlier_text_is_supported(
    token_ids: tuple[int, ...], data: st.DataObject
) -> None:
    decode = decoder(word_piece())
    text = decode(token_ids)
    end = data.draw(st.integers(1, len(text) + 1))
    rewards = step_rewards_by_token([StepRewards([(0, end, 1.0)])], text, token_ids, decode)
    assert sorted(rewards) == [0.0] * (len(token_ids) - 1) + [1.0]


@given(st.text(alphabet="0123456789+=", min_size=1, max_size=20), st.data())
def test_single_character_tokens_have_the_reward_of_their_span(text: str, data: st.DataObject) -> None:
    end = data.draw(st.integers(1, len(text)))
    rewards = by_token_of(StepRewards([(0, end, 2.0)]), text, text)
    assert rewards == tuple(2.0 * (t == end - 1) for t in range(len(text)))


# ------------------------------------------------------------------------------------------ returns


def test_return_of_an_action_is_the_sum_of_later_step_rewards() -> None:
    text = "1+1=2;2+2=5;4"
    steps = intermediate_steps()(text, Problem("", ""))
    assert isinstance(steps, StepRewards)
    by_action = torch.tensor([by_token_of(steps, [*text, ""], text)])
    rewards = place_rewards(torch.tensor([1.0]), torch.tensor([14]), 14, by_action)
    # 1 for the semicolon after 1+1=2, -1 for the one after 2+2=5, and 1 for the end token (the answer)
    assert rewards.tolist() == [[0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, -1, 0, 1]]
    assert reward_to_go(rewards, 1.0).tolist() == [[1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1]]
    assert reward_to_go(rewards, 0.5)[0, 11:].tolist() == [-1 + 0.25, 0.5, 1.0]


def test_step_rewards_of_collected_episodes_are_part_of_their_returns(tiny_policy: LanguagePolicy) -> None:
    def digits(completion: str, problem: Problem) -> StepRewards:
        return StepRewards(
            [(place, place + 1, int(digit)) for place, digit in enumerate(completion) if digit.isdigit()]
        )

    rewards = [
        WeightedReward("digits", digits, 0.5),
        WeightedReward("length", lambda completion, problem: float(len(completion))),
    ]
    batch: EpisodeBatch = collect_episodes(
        tiny_policy,
        [Problem("1+1=", "2"), Problem("2+2=", "4")],
        rewards,
        episodes_per_problem=4,
        max_new_tokens=6,
        generator=torch.Generator().manual_seed(0),
    )
    settings = ReinforceConfig(baseline="none", discount=0.5)
    returns = estimate_advantages(batch, settings, MovingAverage()).returns
    for row, episode in enumerate(batch.episodes):
        text, num_actions = episode.completion.text, len(episode.completion.token_ids)
        by_hand = [0.5 * int(c) if c.isdigit() else 0.0 for c in text] + [0.0] * (num_actions - len(text))
        assert list(episode.step_rewards) == by_hand
        by_hand[-1] += len(text)
        assert episode.total_reward == pytest.approx(sum(by_hand))
        expected = [
            sum(0.5 ** (later - t) * by_hand[later] for later in range(t, num_actions))
            for t in range(num_actions)
        ]
        assert returns[row, :num_actions].tolist() == pytest.approx(expected)
