"""The update does not depend on padding, order or micro-batches, and the end token always gets a gradient."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from llm_reinforce import Problem
from llm_reinforce.config import ReinforceConfig, SamplingConfig, TrainingConfig
from llm_reinforce.episodes import Episode, EpisodeBatch, estimate_advantages
from llm_reinforce.policy import (
    LanguagePolicy,
    TokenIds,
    character_tokenizer,
    log_probs,
    sample_completions,
    token_log_probs,
)
from llm_reinforce.policy.fast_path.packed_forward import packable_model
from llm_reinforce.policy_gradient import MovingAverage, action_mask, reinforce_loss
from llm_reinforce.training import TrainingLoop
from llm_reinforce.verifier import verify

PROMPTS = ("1+2=", "10+20=", "7=", "10+20=", "1+2=", "33+44+55=", "7=")
ACTIONS = ("3", "30", "", "1234", "5", "132", "77777")  # the last one is truncated: it has no end token
ADVANTAGES = (1.0, -0.5, 2.0, 0.3, -1.2, 0.7, 0.9)
TOLERANCE = {torch.float64: 1e-10, torch.float32: 5e-6}  # rounding errors are about 1e-15 and 1e-6


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def policy(request, exact_policy, tiny_policy) -> LanguagePolicy:
    return exact_policy() if request.param == torch.float64 else tiny_policy


def episodes_of(policy: LanguagePolicy) -> tuple[list[TokenIds], list[TokenIds]]:
    """Return the prompts and completions above as token ids."""
    completions = [policy.encode_completion(text) for text in ACTIONS]
    completions[-1] = completions[-1][:-1]
    return [policy.encode_prompt(prompt) for prompt in PROMPTS], completions


def loss_of(policy: LanguagePolicy, rows: list[int], *, extra_padding: int = 0) -> Tensor:
    """Return the contribution of some episodes to the loss of all seven.

    `extra_padding` pads the batch further by adding a longer episode that is masked completely.
    """
    prompts, completions = episodes_of(policy)
    lengths = torch.tensor([len(completions[row]) for row in rows])
    masked = [(prompts[0], (0,) * (int(lengths.max()) + extra_padding))] if extra_padding else []
    scores = token_log_probs(
        policy.model,
        [prompts[row] for row in rows] + [prompt for prompt, _ in masked],
        [completions[row] for row in rows] + [completion for _, completion in masked],
        pad_token_id=policy.pad_token_id,
    )
    log_probs = scores.log_probs[: len(rows)]
    mask = action_mask(lengths, log_probs.shape[1])
    values = torch.tensor(ADVANTAGES, dtype=log_probs.dtype)[rows][:, None].expand_as(log_probs)
    return reinforce_loss(log_probs, values, mask, len(ACTIONS))


def loss_and_gradient(policy: LanguagePolicy, parts: list[list[int]], **options: int) -> tuple[float, Tensor]:
    """Return the loss and its gradient, summed over micro-batches."""
    policy.model.zero_grad()
    total = 0.0
    for rows in parts:
        loss = loss_of(policy, rows, **options)
        loss.backward()
        total += loss.item()
    return total, torch.cat([parameter.grad.flatten() for parameter in policy.model.parameters()])


ALL = list(range(len(ACTIONS)))


@pytest.mark.parametrize(
    "parts",
    [
        [[6, 2, 4, 0, 5, 1, 3]],
        [[row] for row in ALL],
        [[0, 1, 2], [3, 4, 5], [6]],
        [[1, 3], [0, 4], [2, 6], [5]],
    ],
    ids=["another order", "one at a time", "three at a time", "each prompt on its own"],
)
def test_update_does_not_depend_on_order_and_micro_batches(policy, parts):
    tolerance = TOLERANCE[next(policy.model.parameters()).dtype]
    loss, gradient = loss_and_gradient(policy, [ALL])
    other_loss, other_gradient = loss_and_gradient(policy, parts)
    assert other_loss == pytest.approx(loss, abs=tolerance)
    assert (other_gradient - gradient).abs().max().item() <= tolerance * gradient.abs().max().item()


@pytest.mark.parametrize("extra_padding", [1, 9])
def test_update_does_not_depend_on_padding(policy, extra_padding):
    tolerance = TOLERANCE[next(policy.model.parameters()).dtype]
    loss, gradient = loss_and_gradient(policy, [ALL])
    other_loss, other_gradient = loss_and_gradient(policy, [ALL], extra_padding=extra_padding)
    assert other_loss == pytest.approx(loss, abs=tolerance)
    assert (other_gradient - gradient).abs().max().item() <= tolerance * gradient.abs().max().item()


def test_pad_token_has_no_effect_and_the_end_token_gets_a_gradient_if_it_is_the_pad_token(exact_policy):
    policy = exact_policy()
    end = policy.end_token_ids[0]
    assert policy.pad_token_id == end
    _, gradient = loss_and_gradient(policy, [ALL])
    end_row = policy.model.lm_head.weight.grad[end].clone()
    _, other_gradient = loss_and_gradient(replace(policy, pad_token_id=policy.encode_prompt("9")[0]), [ALL])
    assert (other_gradient - gradient).abs().max().item() <= 1e-10
    assert end_row.abs().max().item() > 1e-3


def test_episode_of_only_the_end_token_trains_that_token(exact_policy):
    policy = exact_policy()  # pad token = end token
    loss_and_gradient(policy, [[2]])  # "7=" -> <end>, advantage 2
    gradient = policy.model.lm_head.weight.grad
    with torch.no_grad():
        prompt = torch.tensor([policy.encode_prompt("7=")])
        hidden = policy.model.model(prompt).last_hidden_state[0, -1]
        chances = policy.model(prompt).logits[0, -1].softmax(-1)
    # ∂L/∂w_a = -(A/D) (1[a is the end token] - π(a|s)) h
    expected = -2.0 / 7 * (torch.nn.functional.one_hot(torch.tensor(12), 13) - chances)[:, None] * hidden
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


def test_padding_gets_no_gradient(exact_policy):
    # "8" is in no prompt and in no completion; as the pad token it must not get a gradient
    policy = exact_policy()
    eight = policy.encode_prompt("8")[0]
    loss_and_gradient(replace(policy, pad_token_id=eight), [ALL])
    embedding = policy.model.model.embed_tokens.weight.grad
    assert embedding[eight].abs().max().item() == 0.0
    assert embedding[policy.encode_prompt("7")[0]].abs().max().item() > 1e-3


# --------------------------------------------------------------------------------- the trainer


def batch_of(policy: LanguagePolicy) -> EpisodeBatch:
    """Return four sampled episodes of each of two problems, with arbitrary rewards and one unscored."""
    problems = [Problem(prompt="1+2=", answer="3"), Problem(prompt="10+20=", answer="30")]
    prompts = [policy.encode_prompt(problem.prompt) for problem in problems]
    generator = torch.Generator().manual_seed(0)
    completions = sample_completions(
        policy, prompts, num_completions=4, max_new_tokens=6, temperature=0.9, generator=generator
    )
    rewards = [1.0, 0.0, 0.25, None, -0.5, 1.0, 0.0, 0.0]
    return EpisodeBatch.of(
        tuple(
            Episode(
                problem=problems[index // 4],
                group=index // 4,
                prompt_ids=prompts[index // 4],
                completion=completion,
                verdict=verify(completion.text, problems[index // 4].answer),
                rewards={"arbitrary": rewards[index]},
                reward=rewards[index],
            )
            for index, completion in enumerate(completions)
        )
    )


def trainer_of(policy: LanguagePolicy, micro_batch_tokens: int, entropy_coefficient: float):
    return TrainingLoop(
        policy,
        [Problem(prompt="1+2=", answer="3")],
        TrainingConfig(
            num_updates=1, learning_rate=0.01, micro_batch_tokens=micro_batch_tokens, max_grad_norm=None
        ),
        reinforce=ReinforceConfig(
            discount=0.9,
            entropy_coefficient=entropy_coefficient,
            problems_per_update=2,
            episodes_per_problem=4,
        ),
        sampling=SamplingConfig(max_new_tokens=6, temperature=0.9),
    )


def parameters_of(policy: LanguagePolicy) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in policy.model.parameters()])


@pytest.mark.parametrize("entropy_coefficient", [0.0, 0.1])
def test_update_of_the_trainer_does_not_depend_on_micro_batches(exact_policy, entropy_coefficient):
    start, weights, losses = parameters_of(exact_policy()), [], []
    for micro_batch_tokens in (4096, 1, 20):
        policy = exact_policy()
        trainer = trainer_of(policy, micro_batch_tokens, entropy_coefficient)
        batch = batch_of(policy)
        outcome = trainer.gradient_step(batch, estimate_advantages(batch, trainer.reinforce, MovingAverage()))
        weights.append(parameters_of(policy))
        losses.append(outcome.loss)
    assert (weights[0] - start).abs().max().item() > 1e-3
    for other_weights, other_loss in zip(weights[1:], losses[1:], strict=True):
        assert other_loss == pytest.approx(losses[0], abs=1e-10)
        assert (other_weights - weights[0]).abs().max().item() <= 1e-10


def test_repeated_episodes_count_once_in_a_micro_batch(exact_policy):
    policy = exact_policy()
    one, *others = batch_of(policy).episodes
    step = trainer_of(policy, len(one.prompt_ids) + len(one.completion.token_ids), 0.0).gradient_step
    assert step.micro_batches(EpisodeBatch.of([one] * 5), range(5)) == [[0, 1, 2, 3, 4]]
    other = next(each for each in others if each.completion.token_ids != one.completion.token_ids)
    assert step.micro_batches(EpisodeBatch.of([one, one, other, one]), range(4)) == [[0, 1], [2], [3]]


def test_gradient_of_the_trainer_equals_the_definition(exact_policy):
    # computed from the definition: leave_one_out over scored episodes, γ = 0.9, seven of eight scored
    policy = exact_policy()
    batch, trainer = batch_of(policy), trainer_of(policy, 3, 0.0)
    total = torch.zeros((), dtype=torch.float64)
    returns = [
        None if episode.reward is None else 0.9 ** (len(episode.completion.token_ids) - 1) * episode.reward
        for episode in batch.episodes
    ]
    for row, episode in enumerate(batch.episodes):
        if episode.reward is None:
            continue
        others = [
            value
            for other, value in enumerate(returns)
            if other != row and batch.episodes[other].group == episode.group and value is not None
        ]
        token_ids = episode.completion.token_ids
        for t, action in enumerate(token_ids):
            state = torch.tensor([[*episode.prompt_ids, *token_ids[:t]]])
            log_prob = (policy.model(state).logits[0, -1] / 0.9).log_softmax(-1)[action]
            g_t = 0.9 ** (len(token_ids) - 1 - t) * episode.reward
            total = total - 0.9**t * (g_t - sum(others) / len(others)) * log_prob / 7
    expected = torch.cat([p.flatten() for p in torch.autograd.grad(total, list(policy.model.parameters()))])
    outcome = trainer.gradient_step(batch, estimate_advantages(batch, trainer.reinforce, MovingAverage()))
    gradient = torch.cat([parameter.grad.flatten() for parameter in policy.model.parameters()])
    # rewards are float32 in an EpisodeBatch
    assert outcome.loss == pytest.approx(total.item(), abs=1e-6)
    assert (gradient - expected).abs().max().item() <= 1e-6 * expected.abs().max().item()


# ------------------------------------------------------------- log-probabilities in sampling and in training

SHAPE = {"vocab_size": 13, "bos_token_id": None, "eos_token_id": 12, "pad_token_id": None}
LLAMA_LIKE = {
    **SHAPE,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.25,
}
MODELS: dict[str, Callable[[], torch.nn.Module]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA_LIKE)),
    "gpt2, absolute positions": lambda: GPT2LMHeadModel(
        GPT2Config(**SHAPE, n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.5)
    ),
    "qwen2, tied": lambda: Qwen2ForCausalLM(Qwen2Config(**LLAMA_LIKE, tie_word_embeddings=True)),
    "gemma2, tied, sliding window": lambda: Gemma2ForCausalLM(
        Gemma2Config(**LLAMA_LIKE, tie_word_embeddings=True, sliding_window=4)
    ),
}


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
@pytest.mark.parametrize("name", MODELS)
def test_log_probs_of_sampling_and_training_agree(name, temperature):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = MODELS[name]().eval()
    policy = LanguagePolicy(model, character_tokenizer("0123456789+="), end_token_ids=(12,), pad_token_id=12)
    prompts = [policy.encode_prompt(prompt) for prompt in ("7=", "10+20=", "33+44+55=")]  # left-padded
    samples = sample_completions(
        policy,
        prompts,
        num_completions=16,
        max_new_tokens=12,
        temperature=temperature,
        generator=torch.Generator().manual_seed(0),
    )
    lengths = torch.tensor([len(sample.token_ids) for sample in samples])
    assert len(set(lengths.tolist())) > 3  # different lengths, so rows leave the batch at different times
    scores = token_log_probs(
        model,
        [prompt for prompt in prompts for _ in range(16)],
        [sample.token_ids for sample in samples],
        pad_token_id=12,
        temperature=temperature,
        with_entropies=True,
    )
    for row, sample in enumerate(samples):
        length = int(lengths[row])
        torch.testing.assert_close(
            scores.log_probs[row, :length].detach(), torch.tensor(sample.log_probs), rtol=0, atol=1e-4
        )
        torch.testing.assert_close(
            scores.entropies[row, :length].detach(), torch.tensor(sample.entropies), rtol=0, atol=1e-4
        )


@pytest.mark.parametrize("with_entropies", [False, True])
def test_shared_prompts_change_neither_log_probs_nor_gradients(
    exact_policy: Callable[..., LanguagePolicy], monkeypatch: pytest.MonkeyPatch, with_entropies: bool
) -> None:
    policy = exact_policy()
    long, short = policy.encode_prompt("12+34="), policy.encode_prompt("7=")
    prompts = [long, short, long, short, long]
    completions = [(4, 6, 12), (7, 12), (4, 12), (1, 2, 3, 4), (12,)]
    mask = action_mask(torch.tensor([len(completion) for completion in completions]), 4)
    weights = torch.linspace(-1, 1, 20, dtype=torch.float64).reshape(5, 4).masked_fill(~mask, 0.0)

    def scored_and_gradient(way: str) -> tuple[Tensor, Tensor]:
        monkeypatch.setattr(
            log_probs, "fast_model", packable_model if way == "packed" else lambda model: None
        )
        batching = "shared prompts" if way == "shared" else "padded rows"
        monkeypatch.setattr(log_probs, "scoring_batching", lambda *arguments, **settings: batching)
        policy.model.zero_grad()
        scores = token_log_probs(
            policy.model,
            prompts,
            completions,
            pad_token_id=policy.pad_token_id,
            temperature=0.7,
            with_entropies=with_entropies,
        )
        values = scores.log_probs if scores.entropies is None else scores.log_probs * scores.entropies
        values = values.masked_fill(~mask, 0.0)
        (weights * values).sum().backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in policy.model.parameters()])
        return values.detach(), gradient

    plain, plain_gradient = scored_and_gradient("row by row")
    for way in ("shared", "packed"):
        values, gradient = scored_and_gradient(way)
        assert torch.allclose(values, plain, rtol=0, atol=1e-12)
        assert torch.allclose(gradient, plain_gradient, rtol=0, atol=1e-12)
