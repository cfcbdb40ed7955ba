"""Gradient from episodes of a server with old weights: `python tests/benchmarks/stale_server.py POLICY`.

POLICY is the directory of a policy that was trained for a few updates, such as
`runs/smollm2_addition/policy`. The server must serve the weights from before training, for example after
`llm-reinforce serve smollm2_addition --run`. The script transfers these weights to the server once more, and
never transfers the trained weights.

The script estimates one component of the policy gradient of the trained policy, from its own episodes and
from episodes of the server, without and with importance weights. The component is the derivative of the
expected reward in the direction from the old weights to the trained weights. The derivatives of the
log-probabilities in this direction are computed by central differences.

The script prints each estimate divided by the mean estimate from the policy's own episodes. Without a bias,
the mean of this quotient is 1. The intervals are 95% intervals of the mean over independent batches, which
all have the same problems.
"""

import argparse
import copy
import json
import math
import statistics
from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from llm_reinforce import ImportanceConfig, LanguagePolicy, Problem, ReinforceConfig, load_policy
from llm_reinforce.analysis.learning_curves import mean_interval
from llm_reinforce.config import ServerConfig
from llm_reinforce.episodes import EpisodeBatch, collect_episodes, estimate_advantages
from llm_reinforce.policy import sample_completions, token_log_probs
from llm_reinforce.policy_gradient import MovingAverage
from llm_reinforce.rewards import WeightedReward, correct_answer
from llm_reinforce.server import SamplingServer
from llm_reinforce.training.objective import NO_RATIOS, RatioCounts, surrogate_loss

GROUP, MAX_NEW_TOKENS, MAX_OPERAND = 8, 24, 19  # like the recipe smollm2_addition
STEP = 0.1  # of the difference quotient, as a share of the distance between old and trained weights
without_baseline = partial(ReinforceConfig, baseline="none")
OWN, ON_POLICY = "own episodes", without_baseline()
CORRECTIONS = {
    "no correction": ON_POLICY,
    "sequence": without_baseline(importance=ImportanceConfig(level="sequence", limit=None)),
    "per_decision": without_baseline(importance=ImportanceConfig(level="per_decision", limit=None)),
    "per_decision, default limit": without_baseline(importance=ImportanceConfig(level="per_decision")),
}


def draw_problems(num: int, generator: torch.Generator) -> list[Problem]:
    """Draw sums of two numbers."""
    pairs = torch.randint(MAX_OPERAND + 1, (num, 2), generator=generator).tolist()
    return [Problem(f"What is {a} + {b}?", str(a + b)) for a, b in pairs]


def shifted(policy: LanguagePolicy, old: LanguagePolicy, step: float) -> nn.Module:
    """Return a model with the weights θ + step · (θ − θ_old)."""
    model = copy.deepcopy(policy.model)
    with torch.no_grad():
        for weight, before in zip(model.parameters(), old.model.parameters(), strict=True):
            weight.add_(step * (weight - before))
    return model


def derivatives(
    models: Sequence[nn.Module], pad: int, batch: EpisodeBatch, corrections: dict[str, ReinforceConfig]
) -> dict[str, tuple[float, RatioCounts]]:
    """Return the derivative of the loss of a batch, and the counts of the importance weights, by correction.

    Args:
        models: the models with the weights θ, θ + STEP · d and θ − STEP · d, where d is the direction.
        pad: token id of the padding.
        batch: the episodes.
        corrections: settings of the loss, by name.
    """
    prompts = [episode.prompt_ids for episode in batch.episodes]
    completions = [episode.completion.token_ids for episode in batch.episodes]
    with torch.no_grad():
        log_probs, above, below = (
            token_log_probs(model, prompts, completions, pad_token_id=pad).log_probs for model in models
        )
    slopes = (above - below) / (2 * STEP)
    estimate = estimate_advantages(batch, ON_POLICY, MovingAverage())
    found = {}
    for name, settings in corrections.items():
        actions = log_probs.clone().requires_grad_()
        loss, counts = surrogate_loss(
            settings,
            actions,
            batch.behavior_log_probs,
            estimate.advantages,
            estimate.mask,
            estimate.denominator,
        )
        (gradient,) = torch.autograd.grad(loss, actions)
        # dL/dε = Σ_t ∂L/∂log π(a_t) · d log π(a_t)/dε
        found[name] = float((gradient * slopes)[estimate.mask].sum()), counts
    return found


def main() -> None:
    """Read the arguments of the command line, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("policy", help="directory of the trained policy")
    parser.add_argument("--old", default="smollm2-135m", help="policy that the server serves")
    parser.add_argument("--url", default=ServerConfig().url, help="address of the server")
    parser.add_argument("--batches", type=int, default=20, help="number of batches of each kind")
    parser.add_argument("--problems", type=int, default=8, help="number of problems of a batch")
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    policy, rewards = load_policy(options.policy), [WeightedReward("correct_answer", correct_answer())]
    old = load_policy(options.old)
    models = [policy.model, shifted(policy, old, STEP), shifted(policy, old, -STEP)]
    server = SamplingServer(ServerConfig(url=options.url), temperature=1.0, is_half=False, directory=None)
    probes = policy.encode_prompts([each.policy_prompt for each in draw_problems(4, generator)])
    difference = server.sync(old, probes, MAX_NEW_TOKENS)
    print(f"mean difference of log-probabilities, server and old policy: {difference:.2g} nats")
    print(f"server and trained policy: {server.probe(policy, probes, MAX_NEW_TOKENS):.2g} nats")

    collect = partial(
        collect_episodes,
        policy,
        rewards=rewards,
        episodes_per_problem=GROUP,
        max_new_tokens=MAX_NEW_TOKENS,
        generator=generator,
    )

    problems = draw_problems(options.problems, generator)
    values: dict[str, list[float]] = {name: [] for name in (OWN, *CORRECTIONS)}
    ratios = dict.fromkeys(values, NO_RATIOS)
    for number in range(1, options.batches + 1):
        own = collect(problems, sample=sample_completions)
        stale = collect(problems, sample=server.sample_completions)
        found = derivatives(models, policy.pad_token_id, own, {OWN: ON_POLICY})
        found |= derivatives(models, policy.pad_token_id, stale, CORRECTIONS)
        for name, (value, counts) in found.items():
            values[name].append(value)
            ratios[name] += counts
        print(json.dumps({"batch": number, **{name: of_name[-1] for name, of_name in values.items()}}))
    unit = statistics.fmean(values[OWN])
    for name, of_name in values.items():
        shares = [value / unit for value in of_name]
        interval = mean_interval(shares, -math.inf, math.inf)
        limits = "" if interval is None else f" [{interval[0]:.2f}, {interval[1]:.2f}]"
        size = ratios[name].metrics(CORRECTIONS.get(name, ON_POLICY)).get("importance/effective_sample_size")
        print(
            f"| {name} | {statistics.fmean(shares):.2f}{limits} | {'' if size is None else f'{size:.2f}'} |"
        )


if __name__ == "__main__":
    main()
