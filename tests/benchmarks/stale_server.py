"""Gradient from episodes of a server with old weights: `python tests/benchmarks/stale_server.py POLICY`.

POLICY is the directory of a policy that was trained for a few updates, such as
`runs/smollm2_addition/policy`. The server must serve the weights from before training, for example after
`llm-reinforce serve smollm2_addition --run`. The script transfers these weights to the server once more, and
never transfers the trained weights.

The script estimates the policy gradient of the trained policy from its own episodes, and from the episodes of
the server, without and with importance weights. It prints the inner product of each estimate with a fixed
direction, divided by the mean inner product of the on-policy estimates. The direction is the mean of other
on-policy estimates. Unbiased estimates have the mean 1. The intervals are 95% intervals of the mean over
independent batches, in which both kinds of episodes have the same problems. All gradients are those of the
last decoder layer, which takes a third of the time of the whole gradient.
"""

import argparse
import json
import math
import statistics
from functools import partial

import torch
from torch import Tensor

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
ON_POLICY = ReinforceConfig()
CORRECTIONS = {
    "no correction": ON_POLICY,
    "sequence": ReinforceConfig(importance=ImportanceConfig(level="sequence", limit=None)),
    "per_decision": ReinforceConfig(importance=ImportanceConfig(level="per_decision", limit=None)),
    "per_decision, default limit": ReinforceConfig(importance=ImportanceConfig(level="per_decision")),
}


def draw_problems(num: int, generator: torch.Generator) -> list[Problem]:
    """Draw sums of two numbers."""
    pairs = torch.randint(MAX_OPERAND + 1, (num, 2), generator=generator).tolist()
    return [Problem(f"What is {a} + {b}?", str(a + b)) for a, b in pairs]


def gradients(
    policy: LanguagePolicy, batch: EpisodeBatch, corrections: dict[str, ReinforceConfig]
) -> dict[str, tuple[Tensor, RatioCounts]]:
    """Return the gradient of the loss of a batch with each correction, and the counts of importance weights.

    Each gradient is a vector with the trainable parameters of the policy.
    """
    scores = token_log_probs(
        policy.model,
        [episode.prompt_ids for episode in batch.episodes],
        [episode.completion.token_ids for episode in batch.episodes],
        pad_token_id=policy.pad_token_id,
    )
    parameters = [each for each in policy.model.parameters() if each.requires_grad]
    found = {}
    for name, settings in corrections.items():
        estimate = estimate_advantages(batch, settings, MovingAverage())
        loss, counts = surrogate_loss(
            settings,
            scores.log_probs,
            batch.behavior_log_probs,
            estimate.advantages,
            estimate.mask,
            estimate.denominator,
        )
        parts = torch.autograd.grad(loss, parameters, retain_graph=True)
        found[name] = torch.cat([part.flatten() for part in parts]), counts
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
    policy.model.requires_grad_(False)
    list(policy.model.get_submodule("model.layers").children())[-1].requires_grad_(True)
    server = SamplingServer(ServerConfig(url=options.url), temperature=1.0, is_half=False, directory=None)
    probes = policy.encode_prompts([each.policy_prompt for each in draw_problems(4, generator)])
    difference = server.sync(load_policy(options.old), probes, MAX_NEW_TOKENS)
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

    def on_policy(problems: list[Problem]) -> Tensor:
        batch = collect(problems, sample=sample_completions)
        return gradients(policy, batch, {"own episodes": ON_POLICY})["own episodes"][0]

    def draw() -> list[Problem]:
        return draw_problems(options.problems, generator)

    direction = sum(on_policy(draw()) / options.batches for _ in range(options.batches))
    products: dict[str, list[float]] = {name: [] for name in ("own episodes", *CORRECTIONS)}
    ratios = dict.fromkeys(CORRECTIONS, NO_RATIOS)
    for number in range(1, options.batches + 1):
        problems = draw()
        products["own episodes"].append(float(on_policy(problems) @ direction))
        stale = collect(problems, sample=server.sample_completions)
        for name, (found, counts) in gradients(policy, stale, CORRECTIONS).items():
            products[name].append(float(found @ direction))
            ratios[name] += counts
        print(json.dumps({"batch": number, **{name: values[-1] for name, values in products.items()}}))
    unit = statistics.fmean(products["own episodes"])
    for name, values in products.items():
        shares = [value / unit for value in values]
        interval = mean_interval(shares, -math.inf, math.inf)
        limits = "" if interval is None else f" [{interval[0]:.2f}, {interval[1]:.2f}]"
        settings = CORRECTIONS.get(name, ON_POLICY)
        size = ratios.get(name, NO_RATIOS).metrics(settings).get("importance/effective_sample_size")
        print(
            f"| {name} | {statistics.fmean(shares):.2f}{limits} | {'' if size is None else f'{size:.2f}'} |"
        )


if __name__ == "__main__":
    main()
