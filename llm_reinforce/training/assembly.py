"""From the settings to the objects of a run, in the order of what it costs to find an error."""

from collections.abc import Callable, Sequence

from llm_reinforce.config import Config, RandomInitConfig
from llm_reinforce.console.run_display import Display, Silent
from llm_reinforce.errors import InputError, errors_in
from llm_reinforce.policy import LanguagePolicy, check_prompts_fit, describe_policy, policy_from_config
from llm_reinforce.problems import GivenProblems, ProblemSplit, problems_from_config
from llm_reinforce.rewards import WeightedReward, reward_from_config
from llm_reinforce.runs import RunDirectory
from llm_reinforce.training.loop import TrainingLoop


def build_loop(
    config: Config,
    *,
    policy: LanguagePolicy | None = None,
    problems: GivenProblems | None = None,
    rewards: Sequence[WeightedReward | None] = (),
    run_directory: RunDirectory | None = None,
    display: Display | None = None,
) -> TrainingLoop:
    """Return the training loop that the settings describe.

    Args:
        policy, problems: objects that take the place of what the settings name.
        rewards: the same for each reward function; None: load it by its settings. Empty: load all.
        run_directory: directory in which the run is recorded; None: it is not recorded.
        display: also shows what is loaded.

    Raises:
        InputError: the problems, a reward function or the policy can't be loaded, or don't fit each other.
    """
    display = display or Silent()
    split = problems_from_config(config, display.say, problems or GivenProblems())
    with errors_in("rewards"):
        given = rewards or [None] * len(config.rewards)
        functions = tuple(
            own or reward_from_config(settings) for own, settings in zip(given, config.rewards, strict=True)
        )
    if config.policy.random_init is not None:
        is_shown_answers = config.training.warm_start is not None
        _check_alphabet(config.policy.random_init, split, is_shown_answers, display.say)
    display.say(f"problems: {len(split.train):,} to train on, {len(split.held_out):,} held out")
    if policy is None:
        policy = policy_from_config(config.policy, seed=config.seed)
    display.say(f"policy: {describe_policy(policy)}")
    for part in (split.train, split.held_out):
        check_prompts_fit(policy, part, config.sampling.max_new_tokens)
    return TrainingLoop(
        policy,
        split.train,
        config.training,
        rewards=functions,
        reinforce=config.reinforce,
        sampling=config.sampling,
        held_out=split.held_out,
        evaluation=config.evaluation,
        run_directory=run_directory,
        display=display,
        seed=config.seed,
    )


def _check_alphabet(
    shape: RandomInitConfig, problems: ProblemSplit, is_shown_answers: bool, say: Callable[[str], None]
) -> None:
    """Check that the policy's alphabet has every character that it reads, or is shown in a warm start.

    Raises:
        InputError: it lacks one.
    """
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
        say(
            f"{unwritable:,} training problems have an answer that the policy's alphabet lacks characters for"
        )
