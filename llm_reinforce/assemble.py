"""Config → objects: the one place where they meet.

recipe = load_config("quickstart")
trainer_from_recipe(recipe).train()
"""

from collections.abc import Callable, Sequence

from llm_reinforce.config import Config, RandomInitConfig
from llm_reinforce.errors import InputError, errors_in
from llm_reinforce.policy import LanguagePolicy, policy_from_recipe
from llm_reinforce.problems import (
    Problem,
    ProblemSplit,
    problems_from_config,
)
from llm_reinforce.rewards import Isolation, WeightedReward, load_reward
from llm_reinforce.console.run_display import Display, Silent
from llm_reinforce.training import TrainingLoop
from llm_reinforce.runs import RunDirectory

NUM_MEASURED = 200  # prompts whose tokens are counted before training: the longest by characters


def _nothing(sentence: str) -> None:
    """Nobody to tell."""


def trainer_from_recipe(
    recipe: Config, display: Display | None = None, run_directory: RunDirectory | None = None
) -> TrainingLoop:
    """All that a recipe describes, ready to `train()`; what can fail is tried in the order of its cost.

    Args:
        display: is told of the loading as well.
        run_directory: where the run is recorded, made ready by its `prepare` before training; None: nowhere.

    Raises:
        InputError: the problems, a reward function, the policy, or that they don't fit each other.
    """
    display = display or Silent()
    problems = problems_from_config(recipe, display.say)
    with errors_in("rewards"):
        rewards = rewards_from_recipe(recipe)
    if recipe.policy.random_init is not None:
        is_shown_answers = recipe.training.warm_start is not None
        _check_alphabet(recipe.policy.random_init, problems, is_shown_answers, display.say)
    display.say(f"problems: {len(problems.train):,} to train on, {len(problems.held_out):,} held out")
    policy = policy_from_recipe(recipe.policy, seed=recipe.seed)
    display.say(f"policy: {describe_policy(policy)}")
    check_prompts_fit(policy, problems.train, recipe.sampling.max_new_tokens)
    check_prompts_fit(policy, problems.held_out, recipe.sampling.max_new_tokens)
    return TrainingLoop(
        policy,
        problems.train,
        recipe.training,
        rewards=rewards,
        reinforce=recipe.reinforce,
        sampling=recipe.sampling,
        held_out=problems.held_out,
        evaluation=recipe.evaluation,
        run_directory=run_directory,
        display=display,
        seed=recipe.seed,
    )


def rewards_from_recipe(recipe: Config) -> tuple[WeightedReward, ...]:
    """The reward functions, each with its weight.

    Raises:
        InputError: a function isn't found, or doesn't take its arguments.
    """
    return tuple(
        load_reward(
            reward.function,
            weight=reward.weight,
            arguments=reward.arguments,
            conversational=reward.conversational,
            isolation=Isolation(**reward.isolation.model_dump()) if reward.isolation else None,
        )
        for reward in recipe.rewards
    )


def check_prompts_fit(policy: LanguagePolicy, problems: Sequence[Problem], max_new_tokens: int) -> None:
    """The longest prompts and their completions fit into what the model reads.

    Raises:
        InputError: one doesn't, or can't be encoded at all.
    """
    limit = getattr(getattr(policy.model, "config", None), "max_position_embeddings", None)
    longest = sorted(problems, key=lambda problem: -len(problem.prompt))[:NUM_MEASURED]
    encoded = policy.encode_prompts([problem.prompt for problem in longest])
    measured = [(len(prompt), problem) for prompt, problem in zip(encoded, longest, strict=True)]
    if not measured or not isinstance(limit, int):
        return
    length, problem = max(measured, key=lambda pair: pair[0])
    if length + max_new_tokens > limit:
        raise InputError(
            f"problem {problem.id or problem.prompt[:40]!r}: its prompt has {length:,} tokens, and with "
            f"max_new_tokens: {max_new_tokens:,} that is more than the {limit:,} tokens that the policy reads"
        )


def describe_policy(policy: LanguagePolicy) -> str:
    """Its kind, and how many of its parameters are trained."""
    parameters = list(policy.model.parameters())
    total = sum(parameter.numel() for parameter in parameters)
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    share = "all trained" if trained == total else f"{trained:,} of them trained"
    kind = getattr(getattr(policy.model, "config", None), "model_type", type(policy.model).__name__)
    return f"{kind}, {total:,} parameters, {share}"


def _check_alphabet(
    shape: RandomInitConfig, problems: ProblemSplit, is_shown_answers: bool, say: Callable[[str], None]
) -> None:
    """Every character that the policy reads, or is shown in a warm start, is in its alphabet."""
    known = set(shape.alphabet)
    for problem in (*problems.train, *problems.held_out):
        if foreign := sorted(set(problem.prompt) - known):
            where = f"the prompt {problem.prompt!r}"
        elif is_shown_answers and (foreign := sorted(set(problem.solution or problem.answer) - known)):
            where = f"the answer to {problem.prompt!r}, which the warm start shows"
        else:
            continue
        raise InputError(
            f"policy.random_init.alphabet lacks {', '.join(map(repr, foreign))}, found in {where}: "
            "add it, or change the problems"
        )
    unwritable = sum(not known.issuperset(problem.answer) for problem in problems.train)
    if unwritable:
        say(f"{unwritable:,} training problems have an answer that the policy's alphabet can't write")
