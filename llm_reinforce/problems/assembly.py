"""From the `problems` section of the settings to training and held-out problems."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from llm_reinforce.config import DEFAULT_SPLIT, MAX_HELD_OUT, Config, DataConfig
from llm_reinforce.errors import InputError, errors_in
from llm_reinforce.problems.few_shot import examples_before
from llm_reinforce.problems.generators import generate_problems
from llm_reinforce.problems.lookup import find_problems, is_file_name, reads_split
from llm_reinforce.problems.overlap import find_overlap
from llm_reinforce.problems.problem import Problem
from llm_reinforce.problems.sources import split_problems
from llm_reinforce.problems.splits import ProblemSplit, folded_prompt

HELD_OUT_SHARE = 5  # one problem of so many is held out if the settings don't give a number


@dataclass(frozen=True, slots=True)
class GivenProblems:
    """Problems that a Python caller has in hand, in place of what the settings name.

    Attributes:
        train: the training problems; with `held_out` None, held-out ones are drawn off them.
        held_out: problems for evaluation; None if the settings say where they come from.
    """

    train: tuple[Problem, ...] | None = None
    held_out: tuple[Problem, ...] | None = None


def _ignore(sentence: str) -> None:
    """The default of `say`."""


NONE_GIVEN = GivenProblems()


def problems_from_config(
    config: Config, say: Callable[[str], None] = _ignore, given: GivenProblems = NONE_GIVEN
) -> ProblemSplit:
    """Training and held-out problems, each prompt in its template.

    The two are disjoint, unless the held-out source contains all training problems; `say` reports that.

    Args:
        say: called with a sentence for each overlap, and for training problems left out because of it.
        given: problems that take the place of those that the settings name.

    Raises:
        InputError: the data can't be read, or leaves nothing to train on.
    """
    with errors_in("problems"):
        split = untemplated_problems(config, say, given)
    template = config.evaluation.template or config.problems.template
    examples = ""
    if config.evaluation.few_shot:
        with errors_in("evaluation"):
            examples = examples_before(
                split.train,
                split.held_out,
                num_examples=config.evaluation.few_shot,
                template=template,
                seed=config.seed,
            )
    return ProblemSplit(
        in_template(split.train, config.problems.template), in_template(split.held_out, template, examples)
    )


def untemplated_problems(
    config: Config, say: Callable[[str], None] = _ignore, given: GivenProblems = NONE_GIVEN
) -> ProblemSplit:
    """Training and held-out problems as their source has them, without a template.

    Args:
        say: called with a sentence for each overlap, and for training problems left out because of it.
        given: problems that take the place of those that the settings name.

    Raises:
        InputError: the data can't be read, or leaves nothing to train on.
    """
    settings = config.problems
    if settings.generate is not None:
        shape = settings.generate
        split = generate_problems(
            shape.operations,
            shape.digits if shape.operands is None else (),
            operands=shape.operands,
            held_out_operands=shape.held_out_operands,
            num_operands=shape.num_operands,
            form=shape.form,
            num_held_out=MAX_HELD_OUT if settings.num_held_out is None else settings.num_held_out,
            num_train=shape.num_train,
            seed=config.seed,
        )
    else:
        train = given.train or read_data(settings.train)
        held_out, num_held_out = given.held_out, settings.num_held_out
        if held_out is None and settings.held_out is not None:
            held_out = read_data(settings.held_out)
            num_held_out = MAX_HELD_OUT if num_held_out is None else num_held_out
        if held_out is not None:
            split = _without_overlap(train, held_out, num_held_out, config.seed, say)
        else:
            if num_held_out is None:
                num_held_out = min(MAX_HELD_OUT, len(train) // HELD_OUT_SHARE)
            split = split_problems(train, num_held_out, config.seed)
        # generated problems are apart by how they are made
        for sentence in find_overlap(split.train, split.held_out).sentences():
            say(sentence)
    if not split.held_out:
        say("no problems are held out: accuracy is measured on the training problems")
    return split


def read_data(source: DataConfig | None) -> tuple[Problem, ...]:
    """Read the problems of a file, of a data set by name, or of one on the hub.

    Raises:
        InputError: it does not exist or can't be used, or it has no splits and is given one.
    """
    assert source is not None, "the settings class requires it"
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
    """Put each prompt into a template, in which {prompt} is the problem's own, after worked examples."""
    return tuple(
        replace(problem, prompt=before + template.replace("{prompt}", problem.prompt)) for problem in problems
    )


def _without_overlap(
    train: Sequence[Problem],
    held_out: Sequence[Problem],
    num_held_out: int | None,
    seed: int,
    say: Callable[[str], None],
) -> ProblemSplit:
    """Problems of two sources, the training ones without those that the held-out source contains too.

    If that would leave none, all are kept and `say` reports it: the run trains on what it evaluates on.
    """
    unseen = {folded_prompt(problem.prompt) for problem in held_out}
    kept = tuple(problem for problem in train if folded_prompt(problem.prompt) not in unseen)
    if not kept:
        kept = tuple(train)
        say(
            "the held-out problems contain all training problems: this run trains on what it evaluates on, "
            "so its accuracy says nothing about new problems"
        )
    elif len(kept) < len(train):
        say(f"{len(train) - len(kept):,} training problems are among the held-out ones and were left out")
    shuffled = list(held_out)
    random.Random(f"{seed} held_out").shuffle(shuffled)
    return ProblemSplit(train=kept, held_out=tuple(shuffled[:num_held_out]))
