"""The rows of a batch do not depend on each other, for models of many families."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import (
    AdaptionPromptConfig,
    LoraConfig,
    PromptTuningConfig,
    TrainableTokensConfig,
    get_peft_model,
)
from transformers import (
    BartConfig,
    BartForCausalLM,
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianForCausalLM,
    NemotronConfig,
    NemotronForCausalLM,
    PegasusConfig,
    PegasusForCausalLM,
    RobertaConfig,
    RobertaForCausalLM,
    XLNetConfig,
    XLNetLMHeadModel,
)

from llm_reinforce.errors import InputError
from llm_reinforce.policy import (
    LanguagePolicy,
    action_features,
    character_tokenizer,
    policy_from_model,
    sample_completions,
    token_log_probs,
)

SEQ2SEQ: dict[str, Any] = {
    "vocab_size": 13,
    "d_model": 16,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 16,
    "init_std": 0.5,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "eos_token_id": 12,
    "is_decoder": True,
    "is_encoder_decoder": False,
}
BERT: dict[str, Any] = {
    "vocab_size": 13,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "initializer_range": 0.5,
    "max_position_embeddings": 64,
    "eos_token_id": 12,
}
LLAMA: dict[str, Any] = {**BERT, "max_position_embeddings": 16, "num_key_value_heads": 2}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 8}
LONG |= {"short_factor": [1.0] * 4, "long_factor": [3.0, 4.0, 5.0, 6.0]}


class MeanOfBatch(GPT2LMHeadModel):
    """A model in which each row depends on the other rows, as in a mixture of experts with a capacity."""

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        output = super().forward(*arguments, **keywords)
        output.logits = output.logits + output.logits.mean(dim=0, keepdim=True)
        return output


MODELS: dict[str, Callable[[], Any]] = {
    "bart": lambda: BartForCausalLM(BartConfig(**SEQ2SEQ)),
    "pegasus": lambda: PegasusForCausalLM(PegasusConfig(**SEQ2SEQ)),
    "marian": lambda: MarianForCausalLM(MarianConfig(**SEQ2SEQ)),
    "roberta": lambda: RobertaForCausalLM(RobertaConfig(**BERT, is_decoder=True, pad_token_id=1)),
    "dynamic positions": lambda: LlamaForCausalLM(
        LlamaConfig(**LLAMA, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0})
    ),
    "longrope": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA, rope_parameters=LONG)),
    "partial rotation": lambda: NemotronForCausalLM(NemotronConfig(**{**LLAMA, "head_dim": 8})),
    "mean of the batch": lambda: MeanOfBatch(
        GPT2Config(vocab_size=13, n_embd=16, n_layer=1, n_head=2, n_positions=64, initializer_range=0.5)
    ),
}
PROMPTS = [(4, 5), (4, 5), tuple(range(2, 12)) * 2, (3,) * 9, (4, 5)]
COMPLETIONS = [(6, 7, 8), (7, 6), (5, 5, 8), (3, 3, 3, 3, 9), (6, 7, 8)]


def model_of(name: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MODELS[name]().eval()


def policy_of(model: Any) -> LanguagePolicy:
    return LanguagePolicy(model, character_tokenizer("0123456789+="), end_token_ids=(12,), pad_token_id=1)


def gradient(model: Any, log_probs: torch.Tensor) -> torch.Tensor:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    parts = torch.autograd.grad(log_probs.sum(), trained, allow_unused=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize("name", MODELS)
def test_scores_do_not_depend_on_the_other_episodes(name: str) -> None:
    model = model_of(name)
    together = token_log_probs(model, PROMPTS, COMPLETIONS, pad_token_id=1, with_entropies=True)
    features = action_features(model, PROMPTS, COMPLETIONS, pad_token_id=1)
    assert together.entropies is not None
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        alone = token_log_probs(model, [prompt], [completion], pad_token_id=1, with_entropies=True)
        assert alone.entropies is not None
        width = len(completion)
        torch.testing.assert_close(together.log_probs[row, :width], alone.log_probs[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(together.entropies[row, :width], alone.entropies[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            gradient(model, together.log_probs[row, :width]),
            gradient(model, token_log_probs(model, [prompt], [completion], pad_token_id=1).log_probs),
            rtol=1e-3,
            atol=1e-3,
        )
        own = action_features(model, [prompt], [completion], pad_token_id=1)[0]
        torch.testing.assert_close(features[row, :width], own, rtol=1e-4, atol=1e-4)
        together = token_log_probs(model, PROMPTS, COMPLETIONS, pad_token_id=1, with_entropies=True)


@pytest.mark.parametrize("name", MODELS)
def test_completions_do_not_depend_on_the_other_prompts(name: str) -> None:
    policy = policy_of(model_of(name))

    def sampled(prompts: list[tuple[int, ...]]) -> list[Any]:
        generator = torch.Generator().manual_seed(4)
        return sample_completions(
            policy, prompts, num_completions=3, max_new_tokens=5, temperature=2.0, generator=generator
        )

    alone, together = sampled([PROMPTS[0]]), sampled([PROMPTS[0], PROMPTS[2], PROMPTS[3]])
    for one, other in zip(alone, together[:3], strict=True):
        assert one.token_ids == other.token_ids
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-4)
    # the cached keys of changing positions are not recomputed, and RoBERTa skips its pad token in positions
    if name in ("dynamic positions", "longrope", "roberta"):
        return
    prompts = [prompt for prompt in (PROMPTS[0], PROMPTS[2], PROMPTS[3]) for _ in range(3)]
    for prompt, completion in zip(prompts, together, strict=True):
        tokens = [completion.token_ids]
        found = token_log_probs(policy.model, [prompt], tokens, pad_token_id=1, temperature=2.0).log_probs
        assert completion.log_probs == pytest.approx(found[0].tolist(), abs=1e-4)


def test_notice_names_the_model_and_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = character_tokenizer("0123456789+=")
    policy_from_model(model_of("bart"), tokenizer)
    message = capsys.readouterr().err
    assert "padding changes the log-probabilities of a BartForCausalLM" in message
    policy_from_model(model_of("mean of the batch"), tokenizer)
    assert "other sequences of a batch change the log-probabilities" in capsys.readouterr().err
    policy_from_model(model_of("partial rotation"), tokenizer)
    assert capsys.readouterr().err == ""


def llama() -> LlamaForCausalLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**LLAMA)).eval()


@pytest.mark.parametrize(
    "adapter",
    [
        LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["embed_tokens"], init_lora_weights=False),
        TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=[3], target_modules=["embed_tokens"]),
        AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=2, adapter_layers=1),
    ],
    ids=lambda adapter: type(adapter).__name__,
)
def test_adapters_that_replace_layers_are_supported(adapter: Any) -> None:
    model = get_peft_model(llama(), adapter).eval()
    policy = policy_from_model(model, character_tokenizer("0123456789+="))
    together = token_log_probs(policy.model, PROMPTS, COMPLETIONS, pad_token_id=1)
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        logits = model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0]
        expected = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, torch.tensor(completion)[:, None])
        torch.testing.assert_close(
            together.log_probs[row, : len(completion)], expected[:, 0], rtol=1e-4, atol=1e-4
        )


def test_check_changes_neither_gradients_nor_the_mode_of_the_model() -> None:
    model = model_of("bart").train()
    model.model.decoder.layers[0].fc1.bias.requires_grad_(False)
    before = [parameter.requires_grad for parameter in model.parameters()]
    with torch.no_grad():
        token_log_probs(model, PROMPTS, COMPLETIONS, pad_token_id=1)
    assert model.training
    assert [parameter.requires_grad for parameter in model.parameters()] == before
    assert all(parameter.grad is None for parameter in model.parameters())


# ---------------------------------------------------------------------------------------- refusals


def refusal(model: Any) -> str:
    with pytest.raises(InputError) as caught:
        policy_from_model(model, character_tokenizer("0123456789+="))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_encoder_is_rejected() -> None:
    torch.manual_seed(0)  # with about one of 300 seeds, the log-probabilities hardly depend on later tokens
    message = refusal(BertLMHeadModel(BertConfig(**BERT)))
    assert "depends on later tokens" in message
    assert "is_decoder: true" in message
    with pytest.raises(InputError, match="depends on later tokens"):
        token_log_probs(BertLMHeadModel(BertConfig(**BERT)), [(4, 5)], [(6, 7)], pad_token_id=1)


def test_adapter_with_virtual_tokens_is_rejected_by_its_type() -> None:
    adapter = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    assert "adapters of type PROMPT_TUNING are not supported" in refusal(get_peft_model(llama(), adapter))


def test_model_without_a_cache_of_keys_and_values_is_rejected() -> None:
    class NoCache(GPT2LMHeadModel):
        def forward(self, *arguments: Any, **keywords: Any) -> Any:
            output = super().forward(*arguments, **keywords)
            output.past_key_values = None
            return output

    model = NoCache(GPT2Config(vocab_size=13, n_embd=16, n_layer=1, n_head=2, n_positions=64))
    assert "returns no cache of keys and values" in refusal(model)
    # scoring needs no cache
    assert token_log_probs(model, [(4, 5)], [(6, 7)], pad_token_id=1).log_probs.shape == (1, 2)


def test_model_that_needs_more_than_token_ids_is_rejected_with_its_error() -> None:
    class NeedsMore(GPT2LMHeadModel):
        def forward(self, *arguments: Any, **keywords: Any) -> Any:
            raise TypeError("unsupported operand: Tensor and NoneType")

    message = refusal(NeedsMore(GPT2Config(vocab_size=13, n_embd=16, n_layer=1, n_head=2, n_positions=64)))
    assert "a forward pass with token ids alone fails (TypeError: unsupported operand" in message


def test_model_that_reads_both_ways_is_rejected() -> None:
    model = XLNetLMHeadModel(XLNetConfig(vocab_size=13, d_model=16, n_layer=1, n_head=2, d_inner=16))
    assert "depends on later tokens" in refusal(model) or "no cache" in refusal(model)
