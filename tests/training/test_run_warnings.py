"""Tests of the warnings and the record of a whole run."""

import json
from pathlib import Path
from typing import Any

from small_runs import Watcher

from llm_reinforce import RandomInitConfig, ReinforceTrainer
from llm_reinforce.config import GenerateConfig


def test_a_constant_reward_is_reported_and_the_run_is_recorded(tmp_path: Path) -> None:
    watcher = Watcher()
    result = ReinforceTrainer(
        RandomInitConfig(num_layers=1, num_heads=2, hidden_size=16, intermediate_size=32, max_length=16),
        GenerateConfig(digits=(1,)),
        lambda completion, problem: 0.25,
        output_dir=tmp_path / "run",
        progress=watcher,
        num_held_out=25,
        max_new_tokens=4,
        problems_per_update=4,
        episodes_per_problem=2,
        num_updates=3,
        evaluation={"every": 2},
    ).train()
    (sentence,) = [line for line in watcher.warnings if "have the reward 0.25" in line]
    assert sentence.removeprefix("warning: ") in result.warnings
    recorded = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert "0.25" in recorded["rewards"]["0"]["source"]
    assert recorded["data"]["held_out"]["num_problems"] == 25
    assert recorded["paths"][str(tmp_path / "run")] == str(tmp_path / "run")

    def rows(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (tmp_path / "run" / name).read_text().splitlines()]

    answers = [row["update"] for row in rows("answers.jsonl") if row["decoding"] == "greedy"]
    assert [answers.count(update) for update in (0, 2, 3)] == [25, 20, 25]
    assert all(row["wall_time"] > 1.7e9 for row in rows("metrics.jsonl"))
    for row in rows("episodes.jsonl"):
        assert len(row["tokens"]) == len(row["entropies"]) == len(row["token_ids"])
    assert result.before["greedy"].total == result.after["greedy"].total == 25
