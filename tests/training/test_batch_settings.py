"""Runs with settings of batches: truncated episodes, KL, entropy, refills, curriculum, target accuracy."""

from dataclasses import replace
from pathlib import Path
from statistics import pstdev
from typing import Any

import pytest
import torch
from small_runs import (
    COPY,
    KilledError,
    Killer,
    Watcher,
    adapted_policy,
    new_run,
    rows,
    same,
    sevens,
    small_policy,
    timeless,
    trainer,
    weights,
)

from llm_reinforce.config import (
    CurriculumConfig,
    EvaluationConfig,
    PoolsConfig,
    ReinforceConfig,
    TrainingConfig,
    WarmStartConfig,
)
from llm_reinforce.episodes import Episode, EpisodeBatch
from llm_reinforce.errors import InputError, RunStoppedError
from llm_reinforce.evaluation import Evaluation
from llm_reinforce.evaluation.answers import measures_of
from llm_reinforce.policy import Activations, LanguagePolicy, token_log_probs, trainable_parameters
from llm_reinforce.problems import Problem
from llm_reinforce.rewards import StepRewards, WeightedReward
from llm_reinforce.runs import RunDirectory, TrainState, summarize_run
from llm_reinforce.training import TrainingLoop
from llm_reinforce.training.batch_sampler import BatchSampler
from llm_reinforce.training.gradient_step import GradientStep
from llm_reinforce.training.problem_order import draw_by_pass_rate, pass_rate, with_episodes
from llm_reinforce.training.refill import groups_with_one_accuracy
from llm_reinforce.verifier import Verdict


def batches(**settings: Any) -> ReinforceConfig:
    return ReinforceConfig(**{"problems_per_update": 4, "episodes_per_problem": 3, **settings})


def log_probs(policy: LanguagePolicy, episode: Episode) -> torch.Tensor:
    with torch.no_grad():
        return token_log_probs(
            policy.model,
            [episode.prompt_ids],
            [episode.completion.token_ids],
            pad_token_id=policy.pad_token_id,
        ).log_probs[0]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[EpisodeBatch, Any]]:
    """Return a list to which the arguments of each gradient step are added."""
    found: list[tuple[EpisodeBatch, Any]] = []
    plain = GradientStep.__call__

    def watched(step: GradientStep, batch: Any, estimate: Any, *rest: Any, **options: Any) -> Any:
        found.append((batch, estimate))
        return plain(step, batch, estimate, *rest, **options)

    monkeypatch.setattr(GradientStep, "__call__", watched)
    return found


# ------------------------------------------------------------------------------------ truncated episodes


def test_masked_truncated_episodes_are_left_out(steps) -> None:
    trainer(num_updates=2, reinforce=batches(truncated="mask", denominator="tokens")).train()
    for batch, estimate in steps:
        terminated = batch.terminated
        assert 0 < terminated.sum() < len(batch)
        assert torch.equal(estimate.mask.any(dim=1), terminated)
        assert not estimate.advantages[~terminated].any()
        assert estimate.denominator == float(batch.lengths[terminated].sum())


def test_a_first_update_without_a_terminated_episode_is_rejected(monkeypatch) -> None:
    one = trainer(reinforce=batches(truncated="mask"))
    monkeypatch.setattr(EpisodeBatch, "terminated", property(lambda batch: torch.zeros(len(batch)) > 0))
    with pytest.raises(InputError, match=r"all scored episodes of the first .* 'mask' excludes"):
        one.train()


def test_length_penalty_is_a_reward() -> None:
    watcher = Watcher()
    settings = batches(truncated={"penalty": 2.0, "from": 2}, baseline="greedy")
    trainer(num_updates=1, reinforce=settings, display=watcher).train()
    penalties = []
    for episode in watcher.episodes[0]:
        length = len(episode.completion.token_ids)
        penalties.append({1: 0.0, 2: 0.0, 3: 1.0, 4: 2.0}[length])
        assert episode.rewards["length_penalty"] == -penalties[-1]
        assert episode.reward == pytest.approx(episode.rewards["sevens"] - penalties[-1])
    assert len(set(penalties)) > 1
    logged = watcher.metrics[0]
    assert logged["rewards/length_penalty/mean"] == pytest.approx(-sum(penalties) / len(penalties))
    assert logged["rewards/length_penalty/std"] == pytest.approx(pstdev(penalties))
    assert logged["reward"] == pytest.approx(
        logged["rewards/sevens/mean"] + logged["rewards/length_penalty/mean"]
    )


# -------------------------------------------------------------------------- best checkpoint, target accuracy


@pytest.fixture
def accuracies(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list of numbers of correct answers, out of 100, that the next evaluations find."""
    script: list[int] = []

    def scripted(decoding: Any, problems: Any, answers: Any, max_new_tokens: int) -> Evaluation:
        (answer,), num_correct = answers[0], script.pop(0)
        verdicts = [Verdict(number < num_correct, "1", "equal") for number in range(100)]
        given = [(replace(answer, verdict=verdict),) for verdict in verdicts]
        return Evaluation(decoding, COPY[:1] * 100, given, measures_of(given, 4))

    monkeypatch.setattr("llm_reinforce.training.run_evaluations.evaluation_of", scripted)
    return script


RECIPE = """\
policy: {random_init: {}}
problems: {generate: {}}
training: {num_updates: 5, stop_at: 0.5}
sampling: {max_new_tokens: 4}
"""


def evaluated(directory: RunDirectory | None, watcher: Watcher, **training: Any) -> TrainingLoop:
    watcher.trainer = one = trainer(
        reinforce=batches(),
        training={"num_updates": 5, "num_checkpoints_kept": 1, "checkpoint_every": 1, **training},
        held_out=COPY[:1] * 100,
        evaluation=EvaluationConfig(every=1),
        run_directory=directory,
        display=watcher,
    )
    return one


def names(directory: RunDirectory) -> list[str]:
    return sorted(entry.name for entry in directory.checkpoints.iterdir())


def test_best_checkpoint_is_kept(tmp_path: Path, accuracies: list[int]) -> None:
    directory = new_run(tmp_path / "run")
    accuracies += [10, 20, 30, 25]
    evaluated(directory, Watcher(3), keep_best=True).train()
    assert names(directory) == ["update-000002", "update-000003"]
    accuracies += [30, 28]
    resumed = evaluated(directory, Watcher(), keep_best=True)
    resumed.train(resume=True)
    assert names(directory) == ["update-000002", "update-000005"]
    assert resumed.state.best_evaluation["greedy"].update == 2
    accuracies += [10, 20, 15]
    other = new_run(tmp_path / "seldom")
    evaluated(other, Watcher(), keep_best=True, checkpoint_every=9, num_updates=2).train()
    assert names(other) == ["update-000001", "update-000002"]


def test_a_run_stops_when_the_lower_limit_reaches_the_target(tmp_path: Path, accuracies: list[int]) -> None:
    directory = new_run(tmp_path / "run")
    # the 95% intervals of 52, 58 and 61 of 100 begin at 42.3%, 48.2% and 51.2%
    accuracies += [10, 52, 58, 61]
    one = evaluated(directory, Watcher(), stop_at=0.5)
    assert one.train().num_updates == 3
    assert one.state.accuracy_reached == pytest.approx(0.512, abs=1e-3)
    assert directory.policy.is_dir()
    assert names(directory) == ["update-000003"]
    answers = [row for row in rows(directory, "answers.jsonl") if row["update"] == 3]
    assert len(answers) == 100  # of the last evaluation of the run, all answers are recorded
    # the fixture's recipe.yaml is not complete
    directory.write_text("recipe.yaml", RECIPE)
    assert summarize_run(directory.path).state == "finished"
    # a finished run makes no more updates, unless the target is raised
    assert evaluated(directory, Watcher(), stop_at=0.5).train(resume=True).num_updates == 3
    accuracies += [60, 60]
    assert evaluated(directory, Watcher(), stop_at=0.6).train(resume=True).num_updates == 5


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"reinforce": batches(refill=1)}, "reinforce.refill: needs training problems with answers"),
        ({"reinforce": batches(curriculum={})}, "reinforce.curriculum: needs training problems"),
        ({"training": {"keep_best": True}}, "training.keep_best: needs held-out problems with answers"),
        ({"training": {"stop_at": 0.5}}, "training.stop_at: needs held-out problems with answers"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settings_that_need_answers_are_rejected_without(settings: dict[str, Any], where: str) -> None:
    options = {"num_updates": 1, **settings.get("training", {})}
    with pytest.raises(InputError, match=where):
        TrainingLoop(
            small_policy(),
            [Problem("1=")],
            TrainingConfig(**options),
            reinforce=settings.get("reinforce"),
            rewards=(WeightedReward("sevens", sevens),),
        )


# ---------------------------------------------------------------------------------------- reference policy


def test_reference_is_the_policy_after_the_warm_start(steps) -> None:
    watcher = Watcher()
    start = WarmStartConfig(num_updates=2, batch_size=4, num_warmup_updates=0)
    one = trainer(
        num_updates=2,
        reinforce=batches(kl={"coefficient": 0.0}),
        training={"warm_start": start},
        display=watcher,
    )
    one.train()
    assert watcher.metrics[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert watcher.metrics[1]["kl"] > 1e-4
    assert all(episode.reference_log_probs for episode in watcher.episodes[1])


def test_divergence_is_subtracted_from_the_reward_or_added_to_the_loss(steps) -> None:
    watcher = Watcher()
    trainer(num_updates=3, reinforce=batches(kl={"coefficient": 0.5}), display=watcher).train()
    batch, estimate = steps[-1]
    divergence = (batch.behavior_log_probs - batch.reference_log_probs).sum(dim=1)
    assert divergence.abs().max() > 0.01
    torch.testing.assert_close(estimate.returns[:, 0], batch.terminal_rewards - 0.5 * divergence)
    # the logged reward is without the penalty
    assert watcher.metrics[-1]["reward"] == pytest.approx(float(batch.terminal_rewards.mean()))

    gradients = []
    for coefficient in (0.0, 0.5):
        settings = batches(kl={"coefficient": coefficient, "estimator": "k3"}, denominator="episode_lengths")
        one = trainer(num_updates=1, reinforce=settings, training={"max_grad_norm": None})
        reference = one.reference
        reference.set_to_policy()
        reference.weights = {name: 1.1 * value for name, value in reference.weights.items()}
        reference.set_to_policy = lambda: None
        one.train()
        parameters = one.policy.model.parameters()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in parameters]))
    batch, estimate = steps[-1]
    policy = small_policy()
    found = token_log_probs(
        policy.model,
        [episode.prompt_ids for episode in batch.episodes],
        [episode.completion.token_ids for episode in batch.episodes],
        pad_token_id=policy.pad_token_id,
    ).log_probs
    ratios = (batch.reference_log_probs - found).masked_fill(~estimate.mask, 0.0).exp()
    means = (ratios - 1 - ratios.log()).sum(dim=1) / batch.lengths
    (0.5 * means.mean()).backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in policy.model.parameters()])
    assert expected.norm() > 1e-3
    torch.testing.assert_close(gradients[1] - gradients[0], expected, rtol=1e-3, atol=1e-6)


def test_adapters_share_the_base_model_with_the_reference(tmp_path: Path) -> None:
    watcher = Watcher()
    policy = adapted_policy(tmp_path / "base")
    one = trainer(policy, num_updates=3, reinforce=batches(kl={"coefficient": 0.1}), display=watcher)
    one.train()
    assert one.reference.model is policy.model
    assert one.reference.weights.keys() == trainable_parameters(policy.model).keys()
    assert all("lora" in name for name in one.reference.weights)
    base = small_policy()
    for episode in watcher.episodes[-1][:3]:
        found = torch.tensor(episode.reference_log_probs)
        torch.testing.assert_close(found, log_probs(base, episode), rtol=1e-4, atol=1e-5)
    assert watcher.metrics[-1]["kl"] > 0


def test_reference_is_refreshed() -> None:
    watcher = Watcher()
    settings = batches(kl={"coefficient": 0.0, "refresh_every": 2})
    trainer(num_updates=4, reinforce=settings, display=watcher).train()
    divergences = [metrics["kl"] for metrics in watcher.metrics]
    assert divergences[0] == pytest.approx(0.0, abs=1e-6)
    assert divergences[2] == pytest.approx(0.0, abs=1e-6)
    assert min(divergences[1], divergences[3]) > 1e-4


def test_reference_can_be_another_model(tmp_path: Path, tiny_policy: LanguagePolicy) -> None:
    other = small_policy(seed=5)
    other.save(tmp_path / "other")
    watcher = Watcher()
    settings = batches(kl={"coefficient": 0.1, "reference": str(tmp_path / "other")})
    trainer(num_updates=1, reinforce=settings, display=watcher).train()
    episode = watcher.episodes[0][0]
    found = torch.tensor(episode.reference_log_probs)
    torch.testing.assert_close(found, log_probs(other, episode), rtol=1e-4, atol=1e-5)
    tiny_policy.save(tmp_path / "tiny")
    settings = batches(kl={"coefficient": 0.1, "reference": str(tmp_path / "tiny")})
    with pytest.raises(InputError, match="has another vocabulary than the policy"):
        trainer(reinforce=settings)


# ------------------------------------------------------------------------------------------ target entropy


@pytest.mark.parametrize(("value", "direction"), [(3.0, 1), (0.1, -1)])
def test_entropy_coefficient_is_adapted_to_the_target(value: float, direction: int) -> None:
    watcher = Watcher()
    target = {"value": value, "rate": 0.01, "max_coefficient": 0.06}
    settings = batches(entropy_coefficient=0.02, entropy_target=target)
    trainer(num_updates=4, reinforce=settings, display=watcher).train()
    coefficient = 0.02
    for metrics in watcher.metrics:
        assert metrics["entropy"] < 3.0
        coefficient += 0.01 * (value - metrics["entropy"])
        coefficient = min(max(coefficient, 0.0), 0.06)
        assert metrics["entropy_coefficient"] == pytest.approx(coefficient)
    assert watcher.metrics[-1]["entropy_coefficient"] == (0.06 if direction > 0 else 0.0)


# ------------------------------------------------------------------------------------- refill, curriculum


def one_digit(**settings: Any) -> TrainingLoop:
    """Return a loop whose policy solves about half of the problems, with a reward unlike the accuracy."""
    start = WarmStartConfig(num_updates=12, batch_size=8, num_warmup_updates=0, learning_rate=1e-2)
    settings["training"] = {"warm_start": start, **settings.get("training", {})}
    return trainer(**{"num_updates": 4, **settings})


def test_problems_with_one_accuracy_are_replaced(steps, monkeypatch: pytest.MonkeyPatch) -> None:
    watcher = Watcher()
    settings = batches(problems_per_update=2, episodes_per_problem=4, refill=3, baseline="greedy")
    one = one_digit(reinforce=settings, display=watcher)
    sampled = []
    plain = BatchSampler.collect

    def collect(*arguments: Any, **options: Any) -> EpisodeBatch:
        sampled.append(plain(*arguments, **options))
        return sampled[-1]

    monkeypatch.setattr(BatchSampler, "collect", collect)
    for update in one.updates():
        batch, _ = steps[-1]
        assert batch.groups.tolist() == [0] * 4 + [1] * 4
        assert tuple(batch.episodes) == tuple(update.episodes)
        for group in range(2):
            assert len({e.problem.id for e in update.episodes if e.group == group}) == 1
        metrics = update.metrics
        dull = len(groups_with_one_accuracy(batch, settings))
        assert metrics["refill/frac_one_accuracy"] == dull / 2
        assert dull == 0 or metrics["refill/num_batches"] == 3
    sampled = sampled[1:]  # without the trial episodes
    assert one.state.num_tokens == sum(batch.num_tokens for batch in sampled)
    assert one.state.num_problems == sum(len(set(batch.groups.tolist())) for batch in sampled)
    assert sum(metrics["refill/num_batches"] for metrics in watcher.metrics) == len(sampled) - 4 > 0
    refilled = sum(metrics["refill/num_tokens"] for metrics in watcher.metrics)
    assert 0 < refilled < one.state.num_tokens
    assert any(metrics["refill/frac_one_accuracy"] == 0 for metrics in watcher.metrics)


def test_only_episodes_in_the_loss_decide_about_a_replacement() -> None:
    right, wrong = Verdict(True, "1", "equal"), Verdict(False, "2", "different")
    one = trainer()
    sampled = one.sampler.collect(COPY, one.state).episodes

    def batch_of(terminated: tuple[bool, bool], rewards: tuple[float | None, float | None]) -> EpisodeBatch:
        changed = [
            replace(
                sampled[index],
                group=0,
                verdict=verdict,
                completion=replace(sampled[index].completion, terminated=terminated[index]),
                reward=rewards[index],
            )
            for index, verdict in enumerate((right, wrong))
        ]
        return EpisodeBatch.of(changed)

    plain, mask = batches(refill=1), batches(refill=1, truncated="mask")
    assert groups_with_one_accuracy(batch_of((True, True), (1.0, 0.0)), mask) == []
    cut = batch_of((True, False), (1.0, 0.0))
    assert groups_with_one_accuracy(cut, plain) == []
    assert groups_with_one_accuracy(cut, mask) == [0]
    assert groups_with_one_accuracy(batch_of((True, True), (1.0, None)), plain) == [0]
    assert groups_with_one_accuracy(batch_of((True, True), (None, None)), plain) == [0]


def test_failures_of_replaced_problems_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(completion: str, problem: Problem) -> float:
        if problem.id in "01":
            raise ValueError("no reward")
        return sevens(completion, problem)

    collected: list[EpisodeBatch] = []
    plain = BatchSampler.collect
    monkeypatch.setattr(
        BatchSampler,
        "collect",
        lambda *given, **options: collected.append(plain(*given, **options)) or collected[-1],
    )
    watcher = Watcher()
    one = trainer(
        reinforce=batches(refill=2),
        rewards=(WeightedReward("failing", failing),),
        training={"max_unscored_share": 0.0},
        display=watcher,
    )
    sample = one.sampler.sample(one.state, Activations(4096), lambda text: None, is_stopped=lambda: False)
    assert len(collected) > 1
    assert sample.failures.num_episodes == sum(map(len, collected))
    assert sample.failures.num_unscored == sum(int((~batch.scored).sum()) for batch in collected) > 0
    with pytest.raises(RunStoppedError, match="could not be scored"):
        one.train()
    assert any("an episode could not be scored" in line for line in watcher.said)


def test_weights_of_a_curriculum() -> None:
    counts = {0: (4.0, 4.0), 1: (0.0, 4.0), 2: (2.0, 4.0)}
    assert [pass_rate(counts, index) for index in range(4)] == [5 / 6, 1 / 6, 1 / 2, 1 / 2]

    def shares(settings: CurriculumConfig) -> list[float]:
        drawn = [draw_by_pass_rate(settings, counts, 4, 1, seed)[0] for seed in range(2000)]
        return [drawn.count(index) / 2000 for index in range(4)]

    # p(1-p) = 5/36, 5/36, 9/36, 9/36
    assert shares(CurriculumConfig()) == pytest.approx([5 / 28, 5 / 28, 9 / 28, 9 / 28], abs=0.04)
    pools = CurriculumConfig(pools=PoolsConfig(hard=2.0, normal=1.0, easy=0.0))
    assert shares(pools) == pytest.approx([0.0, 0.5, 0.25, 0.25], abs=0.04)
    assert sorted(draw_by_pass_rate(pools, counts, 4, 4, seed=0)) == [0, 1, 2, 3]
    assert draw_by_pass_rate(pools, counts, 4, 4, seed=0)[3] == 0  # only if no other problem is left
    assert sorted(draw_by_pass_rate(pools, counts, 4, 6, seed=0)[:4]) == [0, 1, 2, 3]
    assert set(draw_by_pass_rate(pools, counts, 4, 2, seed=0, taken=[1, 2])) == {0, 3}
    # a problem with a weight of 0 precedes those that have been drawn for the same batch
    assert {draw_by_pass_rate(pools, counts, 4, 1, seed, taken=[1, 2, 3])[0] for seed in range(9)} == {0}
    assert set(draw_by_pass_rate(pools, counts, 2, 2, seed=0)) == {0, 1}  # there were more problems before


def test_curriculum_counts_recent_episodes() -> None:
    one = trainer(num_updates=1, reinforce=batches(curriculum={"decay": 0.5}))
    batch = one.sampler.collect(COPY[:2], one.state)
    correct = [sum(e.verdict.correct for e in batch.episodes if e.group == group) for group in (0, 1)]
    counts = with_episodes({3: (1.0, 2.0), 1: (4.0, 4.0)}, [2, 1], batch, decay=0.5)
    assert counts == {3: (1.0, 2.0), 2: (correct[0], 3.0), 1: (2.0 + correct[1], 5.0)}


# ------------------------------------------------------------------------------------ standardized rewards


def test_rewards_are_standardized_before_they_are_summed(steps) -> None:
    def large(completion: str, problem: Problem) -> float:
        return 1000.0 * len(completion)

    rewards = (WeightedReward("sevens", sevens, 2.0), WeightedReward("large", large))
    watcher = Watcher()
    trainer(
        num_updates=1,
        reinforce=batches(standardize_rewards=True, baseline="group_mean"),
        rewards=rewards,
        display=watcher,
    ).train()
    _, estimate = steps[-1]
    for group in range(4):
        episodes = [episode for episode in watcher.episodes[0] if episode.group == group]
        total = torch.zeros(3)
        for name, weight in (("sevens", 2.0), ("large", 1.0)):
            values = torch.tensor([episode.rewards[name] for episode in episodes])
            spread = values.std(correction=0)
            total += weight * (values - values.mean()) / (spread if spread > 0 else 1.0)
        torch.testing.assert_close(estimate.advantages[3 * group : 3 * group + 3, 0], total)


def test_masked_episodes_are_not_compared_with_others(steps) -> None:
    settings = batches(standardize_rewards=True, baseline="none", truncated="mask", episodes_per_problem=6)
    trainer(num_updates=1, reinforce=settings).train()
    (batch, estimate), terminated = steps[-1], steps[-1][0].terminated
    assert 0 < terminated.sum() < len(batch)
    for group in range(4):
        used = (batch.groups == group) & terminated
        values = batch.terminal_rewards[used]
        if len(set(values.tolist())) > 1:
            expected = (values - values.mean()) / values.std(correction=0)
            torch.testing.assert_close(estimate.advantages[used, 0], expected)


def test_step_rewards_cannot_be_standardized() -> None:
    def steps_of(completion: str, problem: Problem) -> StepRewards:
        return StepRewards([(0, 1, 1.0)])

    with pytest.raises(InputError, match="standardize_rewards: a reward function returned step rewards"):
        trainer(
            reinforce=batches(standardize_rewards=True), rewards=(WeightedReward("steps", steps_of),)
        ).train()


# ------------------------------------------------------------------------------------------- resumed runs


@pytest.mark.parametrize("is_adapted", [False, True], ids=["all weights", "adapter"])
def test_a_killed_run_with_all_settings_ends_with_the_same_bits(tmp_path: Path, is_adapted: bool) -> None:
    def one(directory: RunDirectory, watcher: Watcher) -> TrainingLoop:
        policy = adapted_policy(tmp_path / "base") if is_adapted else small_policy()
        watcher.trainer = made = trainer(
            policy,
            num_updates=8,
            reinforce=batches(
                problems_per_update=2,
                updates_per_batch=2,
                truncated={"penalty": 0.5, "from": 2},
                kl={"coefficient": 0.1, "refresh_every": 6, "estimator": "k3" if is_adapted else "k1"},
                entropy_target={"value": 1.5, "rate": 0.01},
                refill=1,
                curriculum={},
                standardize_rewards=True,
            ),
            training={"checkpoint_every": 4, "keep_best": True, "stop_at": 1.0, "schedule": "linear"},
            held_out=COPY[:2],
            evaluation=EvaluationConfig(every=4),
            run_directory=directory,
            display=watcher,
        )
        return made

    straight = one(straight_run := new_run(tmp_path / "straight"), Watcher())
    straight.train()
    with pytest.raises(KilledError):
        one(killed_run := new_run(tmp_path / "killed"), Killer(6)).train()
    resumed = one(killed_run, watcher := Watcher())
    assert resumed.train(resume=True) == straight.state
    assert watcher.said[0] == "resuming from update-000004"
    assert len(straight.state.pass_counts) == 4
    assert same(weights(resumed.policy), weights(straight.policy))
    assert same(resumed.reference.weights, straight.reference.weights)
    for name in ("metrics.jsonl", "episodes.jsonl", "evaluations.jsonl"):
        assert timeless(rows(killed_run, name)) == timeless(rows(straight_run, name)), name


def test_state_of_an_earlier_version_can_be_read() -> None:
    assert TrainState.from_json({"moving_average": {"total": 0.0, "weight": 0.0}}) == TrainState()
