"""Tests of the diagnosis: each symptom is recognized, and a healthy run has none."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from llm_reinforce import Finding, InputError, RandomInitConfig, ReinforceTrainer, diagnose
from llm_reinforce.config import GenerateConfig
from llm_reinforce.reports import report
from llm_reinforce.reports.evaluation_signs import gap_interval, problems_needed
from llm_reinforce.reports.recorded_run import RecordedRun
from llm_reinforce.reports.trend_signs import noise_scale
from llm_reinforce.runs import RunSummary
from tests.reports.made_up_run import write_run

SETTINGS = {"reinforce": {"problems_per_update": 16, "episodes_per_problem": 8}}


def healthy(update: int, random: Random, **changes: Any) -> dict[str, Any]:
    """Return the metrics of an update of a run that learns."""
    accuracy = min(1.0, 0.2 + 0.01 * update + random.gauss(0, 0.02))
    row = {
        "update": update,
        "reward": accuracy,
        "rewards/correct_answer/mean": accuracy,
        "reward_std": 0.4,
        "accuracy": accuracy,
        "frac_reward_zero_std": 0.3,
        "entropy": 0.5,
        "grad_norm": 1.0 + random.gauss(0, 0.1),
        "num_unscored": 0,
        "completions/clipped_ratio": 0.02,
        "completions/mean_length": 4.0,
        "completions/max_length": 8.0,
        "learning_rate": 1e-3,
        "num_skipped_updates": 0,
        "sampling/sampling_logp_difference/max": 1e-6,
        "step/relative_norm": 1e-3,
        "step/signal_share": 0.05 + random.gauss(0, 0.02),
        "verdicts/equal": accuracy,
        "verdicts/different": 1.0 - accuracy,
    }
    return row | {name: value(update) if callable(value) else value for name, value in changes.items()}


def episode(update: int, **changes: Any) -> dict[str, Any]:
    row = {"update": update, "prompt": "1+2=", "completion": "4", "answer": "3", "correct": False}
    return {**row, "reason": "different", "terminated": True, "reward": 0.0, "extracted": "4", **changes}


def recorded(
    num_updates: int = 60,
    *,
    max_updates: int | None = None,
    files: dict[str, Any] | None = None,
    **changes: Any,
) -> RecordedRun:
    """Return a healthy run with changed metrics; a function of the update gives a metric of each update.

    The run is finished, or it is stopped and `max_updates` updates are planned.
    """
    random = Random(0)
    given: dict[str, Any] = {
        "settings": SETTINGS,
        "environment": {"data": {"training": {"num_problems": 500}}},
        "metrics": [healthy(update, random, **changes) for update in range(1, num_updates + 1)],
        "episodes": [episode(update) for update in range(1, num_updates + 1)],
        "num_episode_updates": num_updates,
        "evaluations": [],
        "answers": [],
        "comparison": {},
        "variance": {},
    }
    state: Any = "stopped" if max_updates else "finished"
    summary = RunSummary(Path("run"), state, num_updates, max_updates or num_updates, {}, 0.0)
    return RecordedRun("run", "run", summary, **(given | (files or {})))


def only(run: RecordedRun) -> Finding:
    (found,) = diagnose(run)
    return found


def noise(level: float, size: float = 0.01) -> Any:
    random = Random(1)
    return lambda update: level + random.gauss(0, size)


def test_healthy_run_has_no_finding() -> None:
    assert diagnose(recorded()) == ()
    assert diagnose(recorded(0)) == ()


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("not_finite", {"grad_norm": lambda update: math.nan if update > 50 else 1.0}),
        ("no_reward", {"reward": 0.0, "reward_std": 0.0, "accuracy": 0.0, "frac_reward_zero_std": 1.0}),
        ("equal_rewards", {"reward": 0.7, "reward_std": 0.0, "grad_norm": 0.0}),
        ("zero_gradient", {"grad_norm": 0.0}),
        ("collapse", {"accuracy": lambda update: 0.4 if update < 40 else 0.0, "reward": 0.3}),
        (
            "collapse",
            {"entropy": 1e-4, "accuracy": 0.2, "reward": noise(0.2, 0.001), "frac_reward_zero_std": 1.0},
        ),
        ("truncation", {"completions/clipped_ratio": 0.7}),
        ("unscored", {"num_unscored": 32, "rewards/mine/num_failed": 32}),
        ("no_spread", {"frac_reward_zero_std": 0.99, "accuracy": 0.4, "reward": noise(0.4)}),
        ("steps_rounded", {"frac_weights_changed": 0.03}),
        ("sampler_mismatch", {"sampling/sampling_logp_difference/max": 0.3}),
        (
            "exploding_gradient",
            {"grad_norm": lambda update: 1.1**update, "accuracy": noise(0.4), "reward": 0.4},
        ),
        ("learning_rate_high", {"step/relative_norm": 0.05, "accuracy": noise(0.4), "reward": noise(0.4)}),
        ("learning_rate_low", {"step/relative_norm": 1e-6, "accuracy": noise(0.4), "reward": noise(0.4)}),
        ("noisy_updates", {"step/signal_share": noise(0.0), "accuracy": noise(0.4), "reward": noise(0.4)}),
        (
            "reward_hacking",
            {"accuracy": noise(0.3), "reward": lambda update: 0.02 * update, "entropy": 0.4},
        ),
        (
            "reward_hacking",  # within a few updates, and then nothing changes
            {
                "accuracy": lambda update: 0.12 if update < 4 else 0.0,
                "reward": lambda update: 0.36 if update < 4 else 1.0,
                "entropy": lambda update: 0.8 if update < 4 else 1e-4,
                "frac_reward_zero_std": lambda update: 0.0 if update < 4 else 1.0,
            },
        ),
    ],
)
def test_symptom_in_the_metrics(kind: str, changes: dict[str, Any]) -> None:
    found = only(recorded(**changes))
    assert found.kind == kind
    assert found.evidence
    assert found.updates


def test_a_symptom_that_has_passed_is_not_reported() -> None:
    assert not diagnose(recorded(**{"completions/clipped_ratio": lambda update: 0.9 if update < 20 else 0.0}))
    long = diagnose(recorded(**{"completions/clipped_ratio": lambda update: 0.9 if update < 50 else 0.0}))
    assert [(each.kind, each.updates) for each in long] == [("truncation", (1, 49))]


def test_flat_reward_that_is_measured_too_early_is_no_symptom() -> None:
    flat = {"step/relative_norm": 1e-6, "accuracy": noise(0.4), "reward": noise(0.4)}
    assert only(recorded(40, **flat)).kind == "learning_rate_low"
    assert diagnose(recorded(40, max_updates=1000, **flat)) == ()


def test_proposed_learning_rate_is_higher_than_the_current_one() -> None:
    # the path of all steps is 0.00096, just below the limit of 0.001
    flat = {"step/relative_norm": 1.6e-5, "accuracy": noise(0.4), "reward": noise(0.4)}
    proposal = only(recorded(60, **flat, learning_rate=1e-5)).advice
    assert "raise training.learning_rate from 1e-05 to 1.1e-05 or more" in proposal


def test_right_answers_explain_equal_rewards_and_flat_rewards() -> None:
    solved = {"accuracy": 1.0, "reward": 1.0, "reward_std": 0.0, "grad_norm": 0.0}
    assert diagnose(recorded(frac_reward_zero_std=1.0, entropy=1e-5, **solved)) == ()


def test_rewards_never_above_zero_are_explained_by_verdicts_and_an_example() -> None:
    zero = {"reward": 0.0, "reward_std": 0.0, "accuracy": 0.0, "frac_reward_zero_std": 1.0, "grad_norm": 0.0}
    verdicts = {"verdicts/equal": 0.0, "verdicts/different": 0.25, "verdicts/no_answer": 0.75}
    episodes = [
        episode(60),
        episode(60, completion="I think\n\x1b[2Jso", reason="no_answer", extracted=None),
        episode(60, completion="hm", reason="no_answer", extracted=None),
    ]
    found = only(recorded(files={"episodes": episodes}, **zero, **verdicts))
    assert "verdicts: no_answer 75.0%, different 25.0%" in found.evidence
    assert found.example is not None
    assert "completion 'hm'" in found.example
    shown = only(recorded(files={"episodes": episodes[:2]}, **zero, **verdicts)).example
    assert shown is not None
    assert "\x1b" not in shown


def test_equal_rewards_of_right_and_wrong_answers_show_a_right_answer() -> None:
    episodes = [episode(60, completion="3", correct=True, reward=0.0), episode(60)]
    found = only(recorded(files={"episodes": episodes}, reward=0.0, reward_std=0.0, accuracy=0.11))
    assert "although 11.0% of the answers are correct" in found.sentence
    assert "fix the reward function" in found.advice
    assert found.example is not None
    assert "completion '3'" in found.example


def test_accuracy_that_falls_with_a_curriculum_is_no_collapse() -> None:
    falling = {"accuracy": lambda update: 0.4 if update < 40 else 0.1, "reward": 0.3}
    settings = {"reinforce": {**SETTINGS["reinforce"], "curriculum": {"pools": {}}}}
    assert only(recorded(**falling)).kind == "collapse"
    assert "collapse" not in {
        each.kind for each in diagnose(recorded(files={"settings": settings}, **falling))
    }


def test_accuracy_after_refill_does_not_show_memorized_problems() -> None:
    files: dict[str, Any] = {"evaluations": [evaluation(60, 0.3, 400)]}
    assert only(recorded(files=files)).kind == "memorized"
    settings = {"reinforce": {**SETTINGS["reinforce"], "refill": 1}}
    assert diagnose(recorded(files={**files, "settings": settings})) == ()


def test_collapse_says_when_it_began_and_which_learning_rate_would_be_low_enough() -> None:
    found = only(
        recorded(
            accuracy=lambda update: 0.4 if update < 4 else 0.0,
            reward=0.3,
            learning_rate=lambda update: 0.05 / update,
            **{"step/relative_norm": lambda update: 0.5 / update},
        )
    )
    assert "fell below half of this value in update 4" in found.sentence
    # a step is 10 times the learning rate, and a step of 0.01 is not too long
    assert "of at most 0.001 (in this run, it is 0.05)" in found.advice


def test_failures_of_few_rewards_are_minor() -> None:
    failed = {"rewards/mine/mean": 0.4, "rewards/mine/num_failed": lambda update: 3 if update == 7 else 0}
    row = episode(7, reward=None, failure="mine: ValueError: '12+'")
    found = only(recorded(files={"episodes": [row]}, **failed))
    assert (found.kind, found.severity) == ("reward_failures", "minor")
    assert "the reward function mine failed" in found.sentence
    assert found.example is not None
    assert "ValueError" in found.example


def test_failures_of_a_function_that_never_scores_an_episode_are_found() -> None:
    found = only(recorded(**{"rewards/mine/num_failed": lambda update: 3 if update > 1 else 0}))
    assert found.kind == "reward_failures"


def test_example_without_a_reference_answer_has_no_verdict() -> None:
    failed = {"rewards/mine/mean": 0.4, "rewards/mine/num_failed": lambda update: 3 if update == 7 else 0}
    unverified = {"answer": None, "correct": None, "reason": None, "extracted": None}
    row = episode(7, **unverified, reward=None, failure="mine: ValueError: '12+'")
    example = only(recorded(files={"episodes": [row]}, **failed)).example
    assert example is not None
    assert "not verified, because there is no reference answer" in example
    assert "judged" not in example


def test_reward_hacking_shows_a_wrong_completion_with_a_high_reward() -> None:
    episodes = [
        episode(50, completion="3", correct=True, reward=9.0),
        episode(50, completion="very long", reward=0.0, step_rewards=[0.0, 3.0, 2.0]),
        episode(50, completion="short", reward=4.0),
    ]
    found = only(
        recorded(
            files={"episodes": episodes},
            accuracy=lambda update: 0.5 - 0.005 * update,
            reward=lambda update: 0.02 * update,
            **{"rewards/length/mean": lambda update: float(update)},
        )
    )
    assert "the accuracy falls (" in found.sentence
    assert any(line.startswith("rewards/length/mean: ") for line in found.evidence)
    assert found.example is not None
    assert "completion 'very long'" in found.example
    assert found.example.endswith("reward 5")


def test_reward_hacking_is_found_after_20_updates_and_other_trends_after_30() -> None:
    hacked = {"accuracy": noise(0.1), "reward": lambda update: 0.05 * update}
    assert diagnose(recorded(19, **hacked)) == ()
    assert only(recorded(20, **hacked)).kind == "reward_hacking"
    exploding = {"grad_norm": lambda update: 1.3**update, "accuracy": noise(0.4), "reward": 0.4}
    assert diagnose(recorded(29, **exploding)) == ()
    assert only(recorded(30, **exploding)).kind == "exploding_gradient"


def evaluation(update: int, accuracy: float, total: int, decoding: str = "sampled") -> dict[str, Any]:
    return {
        "update": update,
        "data": "held_out",
        "decoding": decoding,
        "total": total,
        "accuracy": accuracy,
        "interval": [0.0, 1.0],
    }


def test_memorized_problems() -> None:
    def found(held_out: float, total: int) -> tuple[Finding, ...]:
        return diagnose(recorded(files={"evaluations": [evaluation(60, held_out, total)]}))

    (one,) = found(0.3, 400)  # the accuracy on training problems is about 80%
    assert one.kind == "memorized"
    assert one.updates == (56, 60)
    assert "80 training problems and 400 held-out problems" in one.evidence[0]
    assert found(0.75, 400) == ()
    assert found(0.5, 10) == ()  # chance
    assert gap_interval(0.7, 80, 0.4, 100) == pytest.approx((0.1544, 0.4272), abs=1e-4)


def test_one_answer_to_all_problems() -> None:
    answers = [
        {
            "update": 60,
            "decoding": "greedy",
            "index": index,
            "answer": str(index),
            "completions": [{"extracted": "7"}],
        }
        for index in range(40)
    ]
    assert only(recorded(files={"answers": answers})).kind == "one_answer"
    same = [{**row, "answer": "7"} for row in answers]
    assert diagnose(recorded(files={"answers": same})) == ()


def test_evaluation_that_is_too_small_for_the_gain() -> None:
    def found(gained: int, lost: int, total: int, interval: list[float]) -> tuple[Finding, ...]:
        paired = {
            "difference": (gained - lost) / total,
            "interval": interval,
            "gained": ["g"] * gained,
            "lost": ["l"] * lost,
        }
        files = {
            "comparison": {"greedy": {"accuracy": paired}},
            "evaluations": [evaluation(60, 0.8, total, "greedy")],
        }
        return diagnose(recorded(files=files))

    (one,) = found(4, 2, 40, [-0.08, 0.18])
    assert one.kind == "small_evaluation"
    assert "evaluate on 469 problems or more" in one.advice
    assert found(20, 2, 40, [0.2, 0.6]) == ()
    assert found(2, 4, 40, [-0.18, 0.08]) == ()


def test_evaluation_with_several_completions_that_is_too_small_for_the_gain() -> None:
    # the standard error is 1.5 points, so 200 ((1.96 + 0.8416) 1.5 / 1.7)² problems are needed
    paired = {"difference": 0.017, "interval": [-0.0124, 0.0464], "test": "sign_flip", "gained": ["g"] * 134}
    evaluated = {**evaluation(60, 0.8, 1600), "samples_per_problem": 8}
    files = {"comparison": {"sampled": {"accuracy": paired}}, "evaluations": [evaluated]}
    assert "evaluate on 1,223 problems or more" in only(recorded(files=files)).advice


def test_number_of_problems_needed_has_the_stated_power() -> None:
    assert problems_needed(0.15, 0.05) == 469  # ((1.96 √0.15 + 0.8416 √0.1475) / 0.05)²
    gained, lost = 0.10, 0.05
    counts = np.random.default_rng(0).multinomial(469, [gained, lost, 1 - gained - lost], size=20_000)
    statistic = (counts[:, 0] - counts[:, 1]) / np.sqrt(counts[:, 0] + counts[:, 1])
    assert float((statistic > 1.96).mean()) == pytest.approx(0.8, abs=0.015)


def test_steps_and_episodes_of_several_updates_per_batch() -> None:
    shape = {"problems_per_update": 16, "episodes_per_problem": 8, "updates_per_batch": 4}
    settings: dict[str, Any] = {"files": {"settings": {"reinforce": shape}}, "max_updates": 240}
    flat = {"accuracy": noise(0.4), "reward": noise(0.4)}
    # each of the 60 rows describes 4 steps
    found = only(recorded(**flat, **settings, **{"step/relative_norm": 4e-6}))
    assert "at most 0.00096 of their norm" in found.sentence
    assert diagnose(recorded(**flat, **settings, **{"step/relative_norm": 8e-6})) == ()
    found = only(recorded(**flat, **settings, **{"step/signal_share": noise(0.0)}))
    assert any("an update has 32 episodes" in line for line in found.evidence)


def test_batches_of_several_updates_are_not_called_updates() -> None:
    shape = {"problems_per_update": 16, "episodes_per_problem": 8, "updates_per_batch": 4}
    files = {
        "settings": {"reinforce": shape},
        "environment": {"data": {"training": {"num_problems": 3}}},
    }
    accuracy: dict[str, Any] = {"accuracy": lambda update: 0.4 if update < 40 else 0.0, "reward": 0.3}
    run = recorded(max_updates=240, files=files, grad_norm=math.nan, **accuracy)
    metrics = [{**row, "update": 4 * row["update"]} for row in run.metrics]
    not_finite, collapse, few = diagnose(replace(run, metrics=metrics))
    assert "of 60 of 60 batches in updates 1–240 are not finite" in not_finite.sentence
    assert not_finite.updates == (1, 240)
    assert "fell below half of this value in updates 157–160" in collapse.sentence
    assert few.sentence.startswith("a batch needs 16 problems")


def test_noise_scale() -> None:
    assert noise_scale(0.5, 64) == 64
    assert noise_scale(0.2, 100) == pytest.approx(400)


def test_findings_are_ordered_by_severity() -> None:
    changes = {"completions/clipped_ratio": 0.9, "sampling/sampling_logp_difference/max": 0.3}
    few = {"environment": {"data": {"training": {"num_problems": 3}}}}
    kinds = [each.kind for each in diagnose(recorded(files=few, **changes))]
    assert kinds == ["sampler_mismatch", "truncation", "few_problems"]


def test_run_and_doctor_say_the_same(tmp_path: Path) -> None:
    result = ReinforceTrainer(
        RandomInitConfig(num_layers=1, num_heads=2, hidden_size=16, intermediate_size=32, max_length=16),
        GenerateConfig(digits=(1,)),
        lambda completion, problem: 0.0,
        output_dir=tmp_path / "run",
        progress=False,
        max_new_tokens=4,
        num_held_out=4,
        problems_per_update=4,
        episodes_per_problem=2,
        num_updates=3,
    ).train()
    found = diagnose(tmp_path / "run")
    assert found[0].text in result.warnings
    assert "have the reward 0" in found[0].sentence
    page = report(tmp_path / "run").read_text("utf-8")
    assert "Diagnosis" in page
    assert found[0].kind in {"no_reward", "equal_rewards"}
    assert found[0].severity in page


def test_damaged_and_missing_runs(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "recipe.yaml").write_text("[", "utf-8")
    diagnose(run)
    with pytest.raises(InputError, match="no such directory"):
        diagnose(tmp_path / "none")


def test_diagnosis_does_not_import_torch(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    code = f"import sys, llm_reinforce; llm_reinforce.diagnose({str(run)!r}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def doctor(*arguments: str) -> tuple[int, str]:
    from typer.testing import CliRunner

    from llm_reinforce.cli import app

    result = CliRunner().invoke(app, ["doctor", *arguments])
    return result.exit_code, result.stdout


def test_command_prints_text_or_json(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", text="7\x1b[2J")
    code, text = doctor(str(run))
    assert code == 0
    assert "severe: the gradients of" in text
    assert "what to do: " in text
    assert "\x1b[2J" not in text
    code, text = doctor(str(run), "--json")
    assert code == 0
    assert [row["kind"] for row in json.loads(text)] == [each.kind for each in diagnose(run)]
    assert doctor(str(tmp_path / "none"))[0] == 2


def test_command_without_a_run_checks_the_installation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LLM_REINFORCE_CACHE", str(tmp_path / "cache"))
    code, text = doctor("--json")
    checks = {row["name"]: row for row in json.loads(text)}
    assert code == (1 if any(row["state"] == "failed" for row in checks.values()) else 0)
    assert {"llm-reinforce", "python", "torch", "cpu", "cuda", "cache of fetched models"} <= {*checks} | {
        "cuda"
    }
    assert str(tmp_path / "cache") in checks["cache of fetched models"]["value"]
    assert not (tmp_path / "cache").exists()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLM_REINFORCE_CACHE", str(tmp_path / "file" / "cache"))
    code, text = doctor()
    assert code == 1
    assert "not writable" in text
