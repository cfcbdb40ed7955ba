"""Config → objects: the one place where they meet.

recipe = load_config("quickstart")
trainer_from_recipe(recipe).train()
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from llm_reinforce.config import DEFAULT_SPLIT, Config, DataConfig, RandomInitConfig
from llm_reinforce.errors import InputError
from llm_reinforce.policy import LanguagePolicy, policy_from_recipe
from llm_reinforce.problems import (
    Problem,
    ProblemSplit,
    examples_before,
    find_overlap,
    find_problems,
    folded_prompt,
    generate_problems,
    is_file_name,
    reads_split,
    split_problems,
)
from llm_reinforce.rewards import Isolation, WeightedReward, load_reward
from llm_reinforce.training import Display, ReinforceTrainer, RunDirectory, Silent

NUM_MEASURED = 200  # prompts whose tokens are counted before training: the longest by characters


def _nothing(sentence: str) -> None:
    """Nobody to tell."""


def trainer_from_recipe(
    recipe: Config, display: Display | None = None, run_directory: RunDirectory | None = None
) -> ReinforceTrainer:
    """All that a recipe describes, ready to `train()`; what can fail is tried in the order of its cost.

    Args:
        display: is told of the loading as well.
        run_directory: where the run is recorded, made ready by its `prepare` before training; None: nowhere.

    Raises:
        InputError: the problems, a reward function, the policy, or that they don't fit each other.
    """
    display = display or Silent()
    problems = problems_from_recipe(recipe, display.say)
    with _naming("rewards"):
        rewards = rewards_from_recipe(recipe)
    if recipe.policy.random_init is not None:
        is_shown_answers = recipe.training.warm_start is not None
        _check_alphabet(recipe.policy.random_init, problems, is_shown_answers, display.say)
    display.say(f"problems: {len(problems.train):,} to train on, {len(problems.held_out):,} held out")
    policy = policy_from_recipe(recipe.policy, seed=recipe.seed)
    display.say(f"policy: {describe_policy(policy)}")
    check_prompts_fit(policy, problems.train, recipe.sampling.max_new_tokens)
    check_prompts_fit(policy, problems.held_out, recipe.sampling.max_new_tokens)
    return ReinforceTrainer(
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


@contextmanager
def _naming(section: str) -> Iterator[None]:
    """Errors that tell which section of the recipe they are about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{section}: {error}") from error


def problems_from_recipe(recipe: Config, say: Callable[[str], None] = _nothing) -> ProblemSplit:
    """Training and held-out problems, each prompt as the recipe asks it.

    They are disjoint, unless the recipe's held-out source holds all that is trained on: that is told.

    Args:
        say: is told where the two coincide, and what was left out of the training problems for it.

    Raises:
        InputError: the data can't be read, or leaves nothing to train on.
    """
    with _naming("problems"):
        split = untemplated_problems(recipe, say)
    template = recipe.evaluation.template or recipe.problems.template
    examples = ""
    if recipe.evaluation.few_shot:
        with _naming("evaluation"):
            examples = examples_before(
                split.train,
                split.held_out,
                num_examples=recipe.evaluation.few_shot,
                template=template,
                seed=recipe.seed,
            )
    return ProblemSplit(
        in_template(split.train, recipe.problems.template), in_template(split.held_out, template, examples)
    )


def untemplated_problems(recipe: Config, say: Callable[[str], None] = _nothing) -> ProblemSplit:
    """Training and held-out problems as their source has them.

    Args:
        say: is told where the two coincide, and what was left out of the training problems for it.

    Raises:
        InputError: the data can't be read, or leaves nothing to train on.
    """
    settings = recipe.problems
    if settings.generate is not None:
        shape = settings.generate
        split = generate_problems(
            shape.operations,
            shape.digits if shape.operands is None else (),
            operands=shape.operands,
            held_out_operands=shape.held_out_operands,
            num_operands=shape.num_operands,
            form=shape.form,
            num_held_out=settings.num_held_out,
            num_train=shape.num_train,
            seed=recipe.seed,
        )
    else:
        assert settings.train is not None  # the recipe's own check
        problems = read_data(settings.train)
        if settings.held_out is None:
            split = split_problems(problems, settings.num_held_out, recipe.seed)
        else:
            beside = read_data(settings.held_out)
            split = _beside(problems, beside, settings.num_held_out, recipe.seed, say)
        # generated problems are apart by how they are made
        for sentence in find_overlap(split.train, split.held_out).sentences():
            say(sentence)
    if settings.num_held_out == 0:
        say("nothing is held out: accuracy is measured on the problems that are trained on")
    return split


def read_data(source: DataConfig) -> tuple[Problem, ...]:
    """The problems of a file, of a data set by name, or of one on the hub.

    Raises:
        InputError: it isn't there or can't be used, or what has no splits is given one.
    """
    if (source.config, source.split) != (None, DEFAULT_SPLIT) and not reads_split(source.data):
        what = "a file" if is_file_name(source.data) or "=" in source.data else "it"
        raise InputError(f"{source.data}: config and split are not read for {what}; leave them out")
    return find_problems(
        source.data,
        config=source.config,
        split=source.split,
        prompt_column=source.prompt_column,
        answer_column=source.answer_column,
        algebra=source.algebra,
    )


def in_template(problems: Iterable[Problem], template: str, before: str = "") -> tuple[Problem, ...]:
    """The problems asked in a template's words, {prompt} being the problem's own, after worked examples."""
    return tuple(
        replace(problem, prompt=before + template.replace("{prompt}", problem.prompt)) for problem in problems
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


def _beside(
    train: Sequence[Problem],
    held_out: Sequence[Problem],
    num_held_out: int,
    seed: int,
    say: Callable[[str], None],
) -> ProblemSplit:
    """Problems of two sources: the training ones without whatever the held-out source holds as well.

    Where that would leave none they all stay: who trains on what he evaluates on is told so, and may.
    """
    unseen = {folded_prompt(problem.prompt) for problem in held_out}
    kept = tuple(problem for problem in train if folded_prompt(problem.prompt) not in unseen)
    if not kept:
        kept = tuple(train)
        say(
            "problems.held_out holds all of problems.train: this run trains on what it evaluates on, and its "
            "accuracy says nothing of new problems"
        )
    elif len(kept) < len(train):
        say(f"{len(train) - len(kept):,} training problems are among the held-out ones and were left out")
    shuffled = list(held_out)
    random.Random(f"{seed} held_out").shuffle(shuffled)
    return ProblemSplit(train=kept, held_out=tuple(shuffled[:num_held_out]))


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
