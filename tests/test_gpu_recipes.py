"""Dry runs of the recipes that need a GPU, with small models of the same architectures and random weights."""

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from typer.testing import CliRunner

from llm_reinforce.cli import app
from llm_reinforce.policy import LanguagePolicy, character_tokenizer

# like the templates of the three models; that of Qwen3 ends a prompt with an empty reasoning block
CHAT = """{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant: """
WITHOUT_THINKING = CHAT + "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
ALPHABET = "".join(map(chr, range(32, 127))) + "\n"
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 2, "head_dim": 4, "vocab_size": len(ALPHABET) + 1}
NO_ARGUMENTS = ["policy.chat_template_kwargs={}"]
MODELS = {
    "smollm2": ("gsm8k_smollm2", lambda: LlamaForCausalLM(LlamaConfig(**SMALL)), CHAT, []),
    "qwen3": ("gsm8k_qwen3", lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL)), WITHOUT_THINKING, []),
    "qwen2": ("gsm8k_qwen3", lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL)), CHAT, NO_ARGUMENTS),
}


@pytest.mark.parametrize("name", MODELS)
def test_dry_run_with_a_small_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe, make, template, overrides = MODELS[name]
    torch.manual_seed(0)
    tokenizer = character_tokenizer(ALPHABET)
    tokenizer.chat_template = template
    end = tokenizer.eos_token_id
    LanguagePolicy(make(), tokenizer, end_token_ids=(end,), pad_token_id=end).save("model")
    rows = [{"question": f"What is {n} plus 1?", "answer": f"{n}+1={n + 1}\n#### {n + 1}"} for n in range(12)]
    Path("train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    command = ["train", recipe, "--dry-run"]
    for override in (
        *overrides,
        "policy.name_or_path=model",
        "problems.train.data=train.jsonl",
        "problems.train.config=null",
        "problems.num_held_out=4",
        "sampling.max_new_tokens=4",
        "reinforce.problems_per_update=2",
        "reinforce.episodes_per_problem=2",
    ):
        command += ["--set", override]
    dry = CliRunner().invoke(app, command)
    assert dry.exit_code == 0, dry.output
    assert ("</think>" in dry.stdout) == (name == "qwen3")
