"""Files of a run that was not trained, for tests of its report."""

import json
from pathlib import Path
from typing import Any

from llm_reinforce.config import Config, dump_config

REASONS = {True: "equal", False: "different"}


def write_run(
    directory: Path, *, num_updates: int = 12, num_tokens: int = 4, text: str = "7", **settings: Any
) -> Path:
    """Write the files of a run with two episodes per update, three evaluations and 25 held-out problems.

    Args:
        directory: directory of the run.
        num_updates: number of updates.
        num_tokens: number of tokens of an episode.
        text: text of the first token of each episode, and of the prompts and answers.
        settings: settings that differ from the defaults.
    """
    directory.mkdir(parents=True)
    config = Config.model_validate(
        {"policy": {"random_init": {}}, "problems": {"generate": {}}, "output_dir": str(directory)} | settings
    )
    (directory / "recipe.yaml").write_text(dump_config(config), "utf-8")
    (directory / "environment.json").write_text(json.dumps({"device": "cpu", "command": [text]}), "utf-8")
    _write(directory / "metrics.jsonl", [_metrics(update) for update in range(1, num_updates + 1)])
    episodes = [
        _episode(update, place, num_tokens, text)
        for update in range(1, num_updates + 1)
        for place in range(2)
    ]
    _write(directory / "episodes.jsonl", episodes)
    evaluated = [0, num_updates // 2, num_updates]
    _write(directory / "evaluations.jsonl", [_evaluation(update) for update in evaluated])
    _write(
        directory / "answers.jsonl",
        [_answer(update, index, text) for update in evaluated for index in range(25)],
    )
    return directory


def _write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def _metrics(update: int) -> dict[str, Any]:
    return {
        "update": update,
        "reward": 0.1 * update,
        "rewards/correct_answer/mean": 0.1 * update,
        "accuracy": 0.1,
        "entropy": 1.0 / update,
        "grad_norm": None,
        "completions/mean_length": 4.0,
        "verdicts/equal": 0.5,
        "num_unscored": 0,
        "num_tokens": 100 * update,
        "wall_time": 1000.0 + 2 * update,
        "step_time": 2.0,
    }


def _episode(update: int, place: int, num_tokens: int, text: str) -> dict[str, Any]:
    correct = (update + place) % 2 == 0
    return {
        "update": update,
        "problem": f"problem-{place}",
        "group": place,
        "prompt": f"{text} + {place} =",
        "completion": text,
        "answer": "7",
        "correct": correct,
        "extracted": text,
        "reason": REASONS[correct],
        "terminated": True,
        "reward": None if update == 3 else float(correct),
        "rewards": {"correct_answer": None if update == 3 else float(correct)},
        "failure": f"ValueError: {text}" if update == 3 else None,
        "tokens": [text, *(f"t{index}" for index in range(num_tokens - 2)), "<end>"],
        "behavior_log_probs": [-0.25] * num_tokens,
        "entropies": [0.5 + 0.01 * index for index in range(num_tokens)],
        "returns": [float(correct)] * num_tokens,
        "advantages": [2.0 * correct - 1.0] * num_tokens,
    }


def _evaluation(update: int) -> dict[str, Any]:
    accuracy = 0.2 + 0.02 * update
    return {
        "update": update,
        "data": "held_out",
        "decoding": "greedy",
        "total": 25,
        "accuracy": accuracy,
        "interval": [accuracy - 0.1, accuracy + 0.1],
    }


def _answer(update: int, index: int, text: str) -> dict[str, Any]:
    correct = index == 1 if update == 0 else index in (2, 3)
    answer = {"text": text, "terminated": True, "correct": correct, "extracted": text, "num_tokens": 3}
    return {
        "update": update,
        "decoding": "greedy",
        "index": index,
        "id": f"held-out-{index}",
        "prompt": f"{text} × {index} =",
        "answer": "7",
        "completions": [{**answer, "reason": REASONS[correct], "strict": False, "flexible": correct}],
    }
