"""Step rewards, given in characters, lie on the tokens that earned them, whatever the tokenizer is."""

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
    """As GPT-2 has it: merges within words, and the bytes of rare characters one by one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def metaspace() -> Tokenizer:
    """As Llama 2 has it: words begin with ▁, what is unknown falls back to bytes."""
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
    """As BERT has it: its decoder takes back spaces that it has written, once it sees what follows."""
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


def laid(steps: StepRewards, tokens: Sequence[str], text: str) -> tuple[float, ...]:
    """Where a token's number is its place among `tokens`, and the text all of them."""
    return step_rewards_by_token(
        [steps], text, tuple(range(len(tokens))), lambda ids: "".join(tokens[i] for i in ids)
    )


# ------------------------------------------------------------------------------------------- by hand


def test_the_token_that_completes_a_span_earns_its_value() -> None:
    tokens = ["3*", "4=1", "2", ", so", " 1", "2", "<end>"]
    text = "3*4=12, so 12"

    def decode(token_ids: Sequence[int]) -> str:
        return "".join(tokens[index] for index in token_ids if index != 6)

    def lay(*spans: tuple[int, int, float]) -> tuple[float, ...]:
        return step_rewards_by_token([StepRewards(spans)], text, tuple(range(7)), decode)

    assert lay((0, 1, 1.0)) == (1, 0, 0, 0, 0, 0, 0)
    assert lay((0, 2, 1.0)) == (1, 0, 0, 0, 0, 0, 0)
    assert lay((0, 3, 1.0)) == (0, 1, 0, 0, 0, 0, 0)
    assert lay((4, 5, 1.0)) == (0, 1, 0, 0, 0, 0, 0)
    assert lay((0, 6, 1.0)) == (0, 0, 1, 0, 0, 0, 0)
    assert lay((0, 7, 1.0), (0, 10, 0.5)) == (0, 0, 0, 1.5, 0, 0, 0)
    assert lay((0, 13, 1.0)) == (0, 0, 0, 0, 0, 1, 0)
    assert lay((0, 14, 1.0)) == (0, 0, 0, 0, 0, 0, 1)  # behind the last character: the end token's
    assert lay() == (0,) * 7


def test_of_a_truncated_episode_the_last_token_takes_what_the_end_would() -> None:
    assert laid(StepRewards([(0, 4, 1.0)]), ["1", "+", "1"], "1+1") == (0, 0, 1)


def test_several_functions_add_up() -> None:
    tokens, text = ["ab", "c"], "abc"
    steps = [StepRewards([(0, 2, 1.0)]), StepRewards(by_token=[0.5, -1.0]), StepRewards()]
    assert step_rewards_by_token(steps, text, (0, 1), lambda ids: "".join(tokens[i] for i in ids)) == (
        1.5,
        -1.0,
    )


def test_where_there_are_none_nothing_is_laid() -> None:
    assert step_rewards_by_token([], "abc", (0, 1), lambda ids: "") == ()
    assert step_rewards_by_token([StepRewards([(0, 1, 1.0)])], "", (), lambda ids: "") == ()


def test_an_emoji_in_pieces_is_complete_with_its_last_byte() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    text = "x👩y"
    token_ids = tuple(tokenizer.encode(text).ids)
    pieces = [tokenizer.decode([token_id]) for token_id in token_ids]
    assert (pieces[0], pieces[-1]) == ("x", "y")
    assert pieces.count("�") >= 2
    assert completing_token(2, text, token_ids, decoder(tokenizer)) == len(token_ids) - 2
    assert completing_token(1, text, token_ids, decoder(tokenizer)) == 0


# ---------------------------------------------------------------------------------------- by their law


@pytest.mark.parametrize("name", list(TOKENIZERS))
@given(text=SENTENCES, data=st.data())
def test_the_tokens_up_to_there_hold_the_span_and_without_the_last_they_do_not(
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
def test_tokens_that_no_text_has_are_credited_too(
    name: str, token_ids: tuple[int, ...], data: st.DataObject
) -> None:
    decode = decoder(TOKENIZERS[name])  # a policy samples halves of characters
    text = decode(token_ids)
    end = data.draw(st.integers(1, len(text) + 1))
    t = completing_token(end, text, token_ids, decode)
    assert end > len(text) or decode(token_ids[: t + 1])[:end] == text[:end]


@given(st.lists(st.integers(1, 14), min_size=1, max_size=10).map(tuple), st.data())
def test_a_decoder_that_changes_what_it_wrote(token_ids: tuple[int, ...], data: st.DataObject) -> None:
    decode = decoder(word_piece())
    text = decode(token_ids)
    end = data.draw(st.integers(1, len(text) + 1))
    rewards = step_rewards_by_token([StepRewards([(0, end, 1.0)])], text, token_ids, decode)
    assert sorted(rewards) == [0.0] * (len(token_ids) - 1) + [1.0]


@given(st.text(alphabet="0123456789+=", min_size=1, max_size=20), st.data())
def test_characters(text: str, data: st.DataObject) -> None:
    end = data.draw(st.integers(1, len(text)))
    rewards = laid(StepRewards([(0, end, 2.0)]), text, text)
    assert rewards == tuple(2.0 * (t == end - 1) for t in range(len(text)))


# ------------------------------------------------------------------------- the whole way to the returns


def test_the_return_of_an_action_is_the_steps_still_to_be_completed() -> None:
    text = "1+1=2;2+2=5;4"
    steps = intermediate_steps()(text, Problem("", ""))
    assert isinstance(steps, StepRewards)
    by_action = torch.tensor([laid(steps, [*text, ""], text)])
    rewards = place_rewards(torch.tensor([1.0]), torch.tensor([14]), 14, by_action)
    # 1+1=2; has 1 with its semicolon, 2+2=5; -1 with its own, and the end token the answer's 1
    assert rewards.tolist() == [[0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, -1, 0, 1]]
    assert reward_to_go(rewards, 1.0).tolist() == [[1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1]]
    assert reward_to_go(rewards, 0.5)[0, 11:].tolist() == [-1 + 0.25, 0.5, 1.0]


def test_collected_episodes_have_them_through_to_their_returns(tiny_policy: LanguagePolicy) -> None:
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
