"""Model card of a trained policy."""

from pathlib import Path

import pytest
import yaml

from llm_reinforce import ReinforceTrainer, random_policy
from llm_reinforce.config import AdapterConfig, RandomInitConfig, load_config
from llm_reinforce.runs import RunDirectory
from llm_reinforce.runs.model_card import model_card

SUMS = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(5) for b in range(5)]
SHAPE = RandomInitConfig(
    alphabet="0123456789+=", num_layers=1, num_heads=2, hidden_size=8, intermediate_size=16
)


def front_matter(card: str) -> dict[str, object]:
    return yaml.safe_load(card.split("---\n")[1])


def test_card_of_an_adapter_replaces_the_template_of_peft(tmp_path: Path) -> None:
    random_policy(SHAPE).save(tmp_path / "secret_folder" / "base")
    run = tmp_path / "secret_folder" / "run"
    trainer = ReinforceTrainer(
        str(tmp_path / "secret_folder" / "base"),
        SUMS,
        output_dir=run,
        lora=AdapterConfig(rank=2),
        num_updates=1,
        max_new_tokens=3,
        problems_per_update=4,
    )
    trainer.train()
    card = (run / "policy" / "README.md").read_text(encoding="utf-8")
    assert front_matter(card) == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["llm-reinforce", "reinforcement-learning", "lora"],
    }
    assert "More Information Needed" not in card
    assert "secret_folder" not in card
    assert "**Base model:** `base`" in card
    assert "| greedy | 0.0% [0.0, " in card
    assert "`correct_answer` × 1" in card
    assert "rank: 2" in card


def test_card_of_a_run_with_a_warm_start_names_it(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "policy: {name_or_path: org/model}\nproblems: {train: {data: sums.jsonl}}\n"
        "training: {warm_start: {num_updates: 128, batch_size: 16}}\n"
    )
    assert "**Warm start:** 128 supervised updates with 16 examples each" in model_card(
        RunDirectory(tmp_path)
    )


@pytest.mark.parametrize(("name", "base"), [("org/model", "org/model"), ("smollm2-135m", None)])
def test_base_model_is_named_for_the_hub(tmp_path: Path, name: str, base: str | None) -> None:
    (tmp_path / "recipe.yaml").write_text(
        f"policy: {{name_or_path: {name}}}\n"
        "problems: {train: {data: '/home/me/`odd` name.jsonl'}, template: \"Q: {prompt}\\nA:\"}\n"
    )
    card = model_card(RunDirectory(tmp_path))
    assert front_matter(card).get("base_model") == base
    assert "**Problems:** `` `odd` name.jsonl ``" in card
    assert "/home/me" not in card
    assert "    Q: {prompt}\n    A:\n" in card
    settings = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert settings["policy"] == {"name_or_path": name}
    assert load_config(tmp_path).policy.name_or_path == name
