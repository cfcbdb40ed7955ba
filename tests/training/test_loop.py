"""The training loop: files of a run, order of problems, learning rates, and updates without a step."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import (
    COPY,
    Watcher,
    new_run,
    rows,
    same,
    sevens,
    small_policy,
    trainer,
    weights,
)

from llm_reinforce.config import (
    AdapterConfig,
    EvaluationConfig,
    ReinforceConfig,
    SamplingConfig,
    TrainingConfig,
)
from llm_reinforce.errors import InputError, RunStoppedError
from llm_reinforce.policy import LanguagePolicy, load_policy, sampling
from llm_reinforce.policy.fast_path import step_graph
from llm_reinforce.problems import Problem
from llm_reinforce.rewards import StepRewards, WeightedReward
from llm_reinforce.runs import RunDirectory
from llm_reinforce.training import TrainingLoop, loop
from llm_reinforce.training.gradient_step import GradientStep


def test_adapters_are_trained_and_base_weights_are_not(tmp_path: Path) -> None:
    small_policy().save(tmp_path / "base")
    policy = load_policy(tmp_path / "base", lora=AdapterConfig(rank=2))
    before = weights(policy)
    trainer(policy, num_updates=2, run_directory=(directory := new_run(tmp_path / "run"))).train()
    for name, value in weights(policy).items():
        assert torch.equal(value, before[name]) == ("lora_" not in name), name
    assert same(weights(load_policy(directory.path)), weights(policy))


def test_runs_depend_on_the_seed_only() -> None:
    def trained(seed: int) -> dict[str, torch.Tensor]:
        policy = small_policy()
        trainer(policy, seed=seed).train()
        return weights(policy)

    torch.manual_seed(1)
    first = trained(0)
    torch.manual_seed(2)
    assert same(first, trained(0))
    assert not same(first, trained(1))


def test_an_empty_list_of_problems_is_rejected() -> None:
    with pytest.raises(InputError, match="no training problems"):
        TrainingLoop(small_policy(), [], TrainingConfig(num_updates=1, learning_rate=1e-3))


def test_cuda_graphs_need_a_gpu_and_are_used_for_the_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = SamplingConfig(max_new_tokens=4, cuda_graphs=True)
    with pytest.raises(InputError, match=r"sampling\.cuda_graphs needs a GPU .*device is cpu"):
        trainer(sampling=graphs)
    recorded: list[Any] = []

    def record(function: Any, inputs: torch.Tensor) -> Any:
        recorded.append(function)
        return (lambda: None), function(inputs)

    monkeypatch.setattr(step_graph, "record", record)
    for module in (sampling, loop):
        monkeypatch.setattr(module, "check_cuda_graphs", lambda policy: None)
    trainer(sampling=graphs, num_updates=1).train()
    assert recorded


# ----------------------------------------------------------------------------------- files of a run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingLoop, Watcher, RunDirectory]:
    """Return a run of four updates that has written all its files."""
    directory = new_run(tmp_path_factory.mktemp("finished") / "run")
    watcher = Watcher()
    done = trainer(
        held_out=COPY[:2],
        evaluation=EvaluationConfig(every=2, decodings=("greedy", "sampled"), samples_per_problem=2),
        training={"checkpoint_every": 1, "num_checkpoints_kept": 2, "logged_episodes": 5},
        run_directory=directory,
        display=watcher,
    )
    assert done.train().num_updates == 4
    return done, watcher, directory


def test_files_of_a_finished_run(finished: tuple[TrainingLoop, Watcher, RunDirectory]) -> None:
    _, _, directory = finished
    written = {entry.name for entry in directory.path.iterdir()}
    assert written == {
        "recipe.yaml",
        "metrics.jsonl",
        "episodes.jsonl",
        "evaluations.jsonl",
        "answers.jsonl",
        "comparison.json",
        "checkpoints",
        "policy",
    }
    kept = sorted(entry.name for entry in directory.checkpoints.iterdir())
    assert kept == ["update-000003", "update-000004"]


def test_the_saved_policy_is_the_trained_one(
    finished: tuple[TrainingLoop, Watcher, RunDirectory],
) -> None:
    done, _, directory = finished
    assert same(weights(load_policy(directory.path)), weights(done.policy))


def test_metrics_have_one_line_per_update(finished: tuple[TrainingLoop, Watcher, RunDirectory]) -> None:
    done, watcher, directory = finished
    lines = rows(directory)
    assert lines == watcher.metrics
    assert [line["update"] for line in lines] == [1, 2, 3, 4]
    documented = {
        "update reward reward_std accuracy frac_reward_zero_std baseline advantage_std num_unscored entropy "
        "completions/mean_length completions/max_length completions/clipped_ratio loss grad_norm "
        "learning_rate num_tokens num_skipped_updates step_time "
        "step_time/collect step_time/update rewards/sevens/mean rewards/sevens/std answers/wrong "
        "answers/unparseable answers/truncated wall_time step/relative_norm"
    }
    for line in lines:
        plain = {name for name in line if not name.startswith("verdicts/")}
        first = line["update"] == 1
        others = {"sampling/sampling_logp_difference/max"} if first else {"step/signal_share"}
        assert plain == set(" ".join(documented).split()) | others
        shares = [value for name, value in line.items() if name.startswith("verdicts/")]
        assert sum(shares) == pytest.approx(1.0)
        failed = sum(line[f"answers/{kind}"] for kind in ("wrong", "unparseable", "truncated"))
        assert failed == pytest.approx(1.0 - line["accuracy"])
        assert line["step_time"] >= line["step_time/collect"] >= 0
    assert 0 < lines[0]["sampling/sampling_logp_difference/max"] < 1e-5
    assert lines[-1]["num_tokens"] == done.state.num_tokens


def test_metrics_match_the_episodes(finished: tuple[TrainingLoop, Watcher, RunDirectory]) -> None:
    _, watcher, _ = finished
    num_tokens = 0
    for metrics, episodes in zip(watcher.metrics, watcher.episodes, strict=True):
        assert len(episodes) == 12
        lengths = [len(episode.completion.token_ids) for episode in episodes]
        num_tokens += sum(lengths)
        rewards = torch.tensor([float(episode.reward or 0) for episode in episodes])
        assert metrics["reward"] == pytest.approx(float(rewards.mean()), abs=1e-6)
        assert metrics["reward_std"] == pytest.approx(float(rewards.std(correction=0)), abs=1e-6)
        assert metrics["accuracy"] == sum(episode.verdict.correct for episode in episodes) / 12
        assert metrics["completions/mean_length"] == pytest.approx(sum(lengths) / 12)
        assert metrics["completions/max_length"] == max(lengths)
        truncated = sum(not episode.completion.terminated for episode in episodes)
        assert metrics["completions/clipped_ratio"] == truncated / 12
        assert metrics["num_tokens"] == num_tokens


def test_episode_rows_have_a_number_per_token(
    finished: tuple[TrainingLoop, Watcher, RunDirectory],
) -> None:
    _, watcher, directory = finished
    lines = rows(directory, "episodes.jsonl")
    assert Counter(line["update"] for line in lines) == dict.fromkeys((1, 2, 3, 4), 5)
    for index, line in enumerate(lines):
        episode = watcher.episodes[line["update"] - 1][index % 5]
        length = len(episode.completion.token_ids)
        for name in ("token_ids", "behavior_log_probs", "returns", "advantages"):
            assert len(line[name]) == length, name
        assert line["completion"] == episode.completion.text
        assert line["reward"] == episode.reward
        assert line["returns"] == pytest.approx([episode.reward] * length)  # a terminal reward, γ = 1
        group = [e.reward for e in watcher.episodes[line["update"] - 1] if e.group == episode.group]
        baseline = (sum(group) - episode.reward) / 2  # type: ignore[arg-type, operator]
        assert line["advantages"] == pytest.approx([episode.reward - baseline] * length, abs=1e-6)  # type: ignore[operator]


def test_evaluations_are_made_at_the_start_periodically_and_at_the_end(
    finished: tuple[TrainingLoop, Watcher, RunDirectory],
) -> None:
    _, watcher, directory = finished
    lines = rows(directory, "evaluations.jsonl")
    assert [(line["update"], line["decoding"], line["total"]) for line in lines] == [
        (update, decoding, total)
        for update in (0, 2, 4)
        for decoding, total in (("greedy", 2), ("sampled", 4))
    ]
    assert {line["data"] for line in lines} == {"held_out"}
    assert [line["accuracy"] for line in lines] == watcher.accuracies


@pytest.mark.parametrize(
    ("held_out", "num_problems", "total"), [((), None, 3), ((), 2, 2), ((), 4, 4), (COPY, None, 4)]
)
def test_training_problems_are_evaluated_if_none_are_held_out(
    held_out: list[Problem],
    num_problems: int | None,
    total: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llm_reinforce.training.run_evaluations.NUM_TRAINING_PROBLEMS_EVALUATED", 3)
    directory, evaluation = new_run(tmp_path / "run"), EvaluationConfig(num_problems=num_problems)
    trainer(num_updates=1, held_out=held_out, evaluation=evaluation, run_directory=directory).train()
    lines = rows(directory, "evaluations.jsonl")
    data = "held_out" if held_out else "training"
    assert [(line["data"], line["total"]) for line in lines] == [(data, total)] * 2


def test_the_moving_average_covers_the_previous_updates() -> None:
    watcher = Watcher()
    reinforce = ReinforceConfig(
        problems_per_update=4, episodes_per_problem=3, baseline="moving_average", moving_average_decay=0.5
    )
    trainer(num_updates=3, reinforce=reinforce, display=watcher).train()
    first, second, _ = (metrics["reward"] for metrics in watcher.metrics)
    # (0.25 r_1 + 0.5 r_2) / 0.75 after two updates, at a decay of one half
    expected = [0.0, first, (0.25 * first + 0.5 * second) / 0.75]
    assert [metrics["baseline"] for metrics in watcher.metrics] == pytest.approx(expected, abs=1e-6)


# ----------------------------------------------------------------------------- the order of problems


@pytest.mark.parametrize("per_update", [1, 3, 7])
def test_each_problem_is_drawn_once_per_epoch(per_update: int) -> None:
    watcher = Watcher()
    trainer(
        num_updates=12,
        reinforce=ReinforceConfig(problems_per_update=per_update, episodes_per_problem=2),
        sampling=SamplingConfig(max_new_tokens=1),
        display=watcher,
    ).train()
    drawn = [episode.problem.id for episodes in watcher.episodes for episode in episodes[::2]]
    assert len(drawn) == 12 * per_update
    epochs = [tuple(drawn[start : start + 4]) for start in range(0, len(drawn) - 3, 4)]
    assert all(sorted(epoch) == ["0", "1", "2", "3"] for epoch in epochs)
    assert len(epochs) < 3 or len(set(epochs)) > 1  # each epoch has its own order
    for episodes in watcher.episodes:  # a problem that is drawn twice has two groups
        assert [episode.group for episode in episodes] == [i for i in range(per_update) for _ in range(2)]


# ---------------------------------------------------------------------------------- learning rates


def rates_of_steps(one: TrainingLoop, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list to which each optimizer step of the trainer appends its learning rate."""
    used: list[float] = []
    step = one.optimizer.step

    def recorded(*arguments: Any) -> Any:
        used.append(one.optimizer.param_groups[0]["lr"])
        return step(*arguments)

    monkeypatch.setattr(one.optimizer, "step", recorded)
    return used


@pytest.mark.parametrize(
    ("schedule", "num_warmup_updates", "shares"),
    [
        ("constant", 0, [1, 1, 1, 1]),
        ("constant_with_warmup", 0, [1, 1, 1, 1]),
        ("constant_with_warmup", 3, [0.25, 0.5, 0.75, 1]),
        ("linear", 0, [1, 0.75, 0.5, 0.25]),
        ("linear", 1, [0.5, 1, 2 / 3, 1 / 3]),
    ],
)
def test_every_update_has_a_positive_learning_rate(
    schedule: str, num_warmup_updates: int, shares: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = trainer(training={"schedule": schedule, "num_warmup_updates": num_warmup_updates})
    used = rates_of_steps(one, monkeypatch)
    one.train()
    assert used == pytest.approx([1e-2 * share for share in shares])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_logged_learning_rate_is_that_of_the_update(
    schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher = Watcher()
    one = trainer(training={"schedule": schedule}, display=watcher)
    used = rates_of_steps(one, monkeypatch)
    one.train()
    assert all(rate > 0 for rate in used)
    assert [metrics["learning_rate"] for metrics in watcher.metrics] == used


# --------------------------------------------------------------------- updates without a step


def fails(completion: str, problem: Problem) -> float:
    raise RuntimeError("the judge failed")


def test_updates_without_a_scored_episode_are_skipped(tmp_path: Path) -> None:
    calls = 0
    after: list[dict[str, torch.Tensor]] = []

    def fails_later(completion: str, problem: Problem) -> float:
        nonlocal calls
        calls += 1
        # 4 trial episodes, 12 episodes of the first update
        return sevens(completion, problem) if calls <= 16 else fails(completion, problem)

    class Copying(Watcher):
        def update(self, *arguments: Any) -> None:
            after.append(weights(policy))

    policy = small_policy()
    directory = new_run(tmp_path / "run")
    rewards = (WeightedReward("fails", fails_later),)
    watcher = Copying()
    settings = {"max_unscored_share": 1.0}
    state = trainer(
        policy, 3, rewards=rewards, run_directory=directory, display=watcher, training=settings
    ).train()
    assert same(after[1], after[0])
    assert same(after[2], after[0])
    assert (state.num_updates, state.num_skipped_updates) == (3, 2)
    lines = rows(directory)
    assert [(line["num_unscored"], line["num_skipped_updates"]) for line in lines] == [
        (0, 0),
        (12, 1),
        (12, 2),
    ]
    assert "rewards/fails/num_failed" not in lines[0]
    for line in lines[1:]:
        assert line["rewards/fails/num_failed"] == 12
        assert "reward" not in line
        assert "rewards/fails/mean" not in line
        assert "accuracy" in line
    episode = rows(directory, "episodes.jsonl")[-1]
    assert (episode["failure"], episode["reward"]) == ("fails: RuntimeError: the judge failed", None)
    # 24 failures are reported once, with the traceback
    reported = [line for line in watcher.said if "could not be scored" in line]
    assert reported == [
        "an episode could not be scored and is left out of the update: fails: RuntimeError: the judge failed"
    ]
    traceback = "\n".join(watcher.said)
    assert traceback.count("Traceback") == 1
    assert "in fails_later" in traceback
    assert "calls.py" not in traceback


def test_too_many_unscored_episodes_stop_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    is_broken = False

    def fails_later(completion: str, problem: Problem) -> float:
        return fails(completion, problem) if is_broken else sevens(completion, problem)

    class Breaking(Watcher):
        def update(self, num_updates: int, *arguments: Any) -> None:
            nonlocal is_broken
            is_broken = num_updates == 2

    rewards = (WeightedReward("fails", fails_later),)
    directory = new_run(tmp_path / "run")
    stopped = trainer(small_policy(), 4, rewards=rewards, run_directory=directory, display=Breaking())
    with pytest.raises(RunStoppedError, match=r"100% .* update 3 .* the judge failed.*resume"):
        stopped.train()
    assert [path.name for path in directory.checkpoints.iterdir()] == ["update-000002"]
    is_broken = False
    resumed, undisturbed = small_policy(), small_policy()
    trainer(resumed, 4, rewards=rewards, run_directory=directory).train(resume=True)
    trainer(undisturbed, 4, rewards=rewards).train()
    assert same(weights(resumed), weights(undisturbed))


def test_rewards_are_tried_before_training(tmp_path: Path) -> None:
    def hopeless(completion: str, problem: Problem) -> float:
        raise KeyError("no such column")

    directory = new_run(tmp_path / "run")
    hopeful = (WeightedReward("sevens", sevens), WeightedReward("hopeless", hopeless))
    with pytest.raises(InputError) as caught:
        trainer(rewards=hopeful, run_directory=directory).train()
    message = str(caught.value)
    assert "reward 'hopeless' failed on all 4 trial episodes" in message
    assert "in hopeless" in message
    assert not directory.checkpoints.exists()
    assert not (directory.path / "metrics.jsonl").exists()


def test_step_rewards_are_credited_to_their_actions() -> None:
    def first_character(completion: str, problem: Problem) -> StepRewards:
        return StepRewards([(0, 1, 2.0)] if completion else [])

    watcher = Watcher()
    rewards = (WeightedReward("sevens", sevens), WeightedReward("first", first_character, weight=0.5))
    trainer(num_updates=1, rewards=rewards, display=watcher).train()
    for episode in watcher.episodes[0]:
        if episode.completion.text:
            assert episode.step_rewards[0] == 1.0
            assert not any(episode.step_rewards[1:])
            assert episode.rewards["first"] == 2.0
            assert episode.total_reward == 1.0 + sevens(episode.completion.text, episode.problem)
    totals = [episode.total_reward for episode in watcher.episodes[0]]
    assert watcher.metrics[0]["reward"] == pytest.approx(sum(totals) / len(totals))


def test_a_first_update_without_a_scored_episode_stops_the_run() -> None:
    policy = small_policy()
    before = weights(policy)
    nothing = WeightedReward("nothing", lambda completion, problem: None)
    with pytest.raises(
        InputError, match=r"first update could be scored \(every reward function returned None"
    ):
        trainer(policy, rewards=(nothing,)).train()
    assert same(weights(policy), before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_update_whose_gradient_is_not_finite_is_skipped(bad: float, tmp_path: Path) -> None:
    policy = small_policy()
    calls = 0

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return torch.full_like(gradient, bad) if calls == 2 else gradient

    policy.model.lm_head.weight.register_hook(spoil)  # type: ignore[union-attr, operator]
    after: list[dict[str, torch.Tensor]] = []

    class Copying(Watcher):
        def update(self, *arguments: Any) -> None:
            after.append(weights(policy))

    directory = new_run(tmp_path / "run")
    state = trainer(policy, num_updates=3, display=Copying(), run_directory=directory).train()
    assert calls == 3
    assert (state.num_updates, state.num_skipped_updates) == (3, 1)
    assert same(after[1], after[0])
    assert not same(after[2], after[1])
    assert all(bool(value.isfinite().all()) for value in after[2].values())
    assert [line["num_skipped_updates"] for line in rows(directory)] == [0, 1, 1]
    assert rows(directory)[1]["grad_norm"] is None  # JSON has no NaN


def test_repeated_logits_that_are_not_finite_stop_the_run(tmp_path: Path) -> None:
    policy = small_policy()
    is_broken = False

    def spoil(module: Any, arguments: Any, output: Any) -> Any:
        return output * float("nan") if is_broken else output

    policy.model.lm_head.register_forward_hook(spoil)  # type: ignore[union-attr, operator]
    after: list[dict[str, torch.Tensor]] = []

    class Breaking(Watcher):
        def update(self, num_updates: int, *arguments: Any) -> None:
            nonlocal is_broken
            is_broken = num_updates >= 2
            after.append(weights(policy))

    directory, watcher = new_run(tmp_path / "run"), Breaking()
    one = trainer(policy, 9, display=watcher, run_directory=directory, training={"max_not_finite": 3})
    with pytest.raises(RunStoppedError, match=r"3 updates in a row were not finite.*new run.*learning_rate"):
        one.train()
    assert one.state.num_updates == 5
    assert all(same(copy, after[1]) for copy in after[2:])
    assert all(bool(value.isfinite().all()) for value in after[-1].values())
    assert len([line for line in watcher.said if "update 3 is skipped" in line]) == 1
    assert [path.name for path in directory.checkpoints.iterdir()] == ["update-000005"]
    is_broken = False
    resumed = small_policy()
    state = trainer(resumed, 9, run_directory=directory).train(resume=True)
    assert (state.num_updates, state.num_skipped_updates, state.num_not_finite_in_a_row) == (9, 3, 0)


def test_unscored_episodes_are_excluded_from_the_update() -> None:
    def picky(completion: str, problem: Problem) -> float:
        if problem.id == "0":
            raise RuntimeError
        return sevens(completion, problem)

    def absent(completion: str, problem: Problem) -> float | None:
        return None if problem.id == "0" else sevens(completion, problem)

    results = []
    for reward in (picky, absent):
        policy, watcher = small_policy(), Watcher()
        trainer(policy, num_updates=2, rewards=(WeightedReward("r", reward),), display=watcher).train()
        assert [metrics["num_unscored"] for metrics in watcher.metrics] == [3, 3]
        results.append(weights(policy))
    assert same(*results)


def test_skipping_rows_without_an_advantage_does_not_change_the_gradient(
    exact_policy: Callable[..., LanguagePolicy], monkeypatch: pytest.MonkeyPatch
) -> None:
    def rare(completion: str, problem: Problem) -> float:
        return float("1" in completion)

    sizes: list[int] = []
    chosen = GradientStep.rows_with_gradient

    def counted(self: GradientStep, batch: Any, estimate: Any) -> list[int]:
        sizes.append(len(chosen(self, batch, estimate)))
        return chosen(self, batch, estimate)

    def everything(self: GradientStep, batch: Any, estimate: Any) -> list[int]:
        return list(range(len(batch)))

    results = []
    for choice in (counted, everything):
        monkeypatch.setattr(GradientStep, "rows_with_gradient", choice)
        policy = exact_policy("0123=")
        trainer(policy, num_updates=3, rewards=(WeightedReward("rare", rare),)).train()
        results.append(policy)
    assert min(sizes) < 12
    assert max(sizes) > 1  # some rows have an advantage and some do not
    for one, other in zip(*(policy.model.parameters() for policy in results), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=0, atol=1e-9)
        assert torch.allclose(one, other, rtol=0, atol=1e-7)


def test_equal_rewards_do_not_change_the_weights() -> None:
    policy = small_policy()
    before = weights(policy)
    watcher = Watcher()
    trainer(
        policy, num_updates=2, rewards=(WeightedReward("one", lambda completion: 1.0),), display=watcher
    ).train()
    assert same(weights(policy), before)
    assert [metrics["frac_reward_zero_std"] for metrics in watcher.metrics] == [1.0, 1.0]


@pytest.mark.parametrize("micro_batch_tokens", [1, 20])
def test_micro_batches_do_not_change_the_update(micro_batch_tokens: int) -> None:
    policies = [small_policy(), small_policy()]
    for policy, size in zip(policies, (4096, micro_batch_tokens), strict=True):
        trainer(policy, num_updates=1, training={"micro_batch_tokens": size}).train()
    for one, other in zip(*(policy.model.parameters() for policy in policies), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=0, atol=1e-6)


def test_metric_names_have_simple_characters() -> None:
    watcher = Watcher()
    trainer(num_updates=1, display=watcher).train()
    assert all(re.fullmatch(r"[a-z0-9_/]+", name) for name in watcher.metrics[0])
