"""Assembly of the training and held-out problems of a run, as described by the settings."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llm_reinforce.data_sets import DEFAULT_SPLIT, MAX_HELD_OUT
from llm_reinforce.errors import InputError, errors_in
from llm_reinforce.problems.demonstrations import read_demonstrations
from llm_reinforce.problems.few_shot import examples_before
from llm_reinforce.problems.generators import generate_problems
from llm_reinforce.problems.lookup import find_problems, is_file_name, reads_split
from llm_reinforce.problems.overlap import find_overlap
from llm_reinforce.problems.problem import Problem, have_answers
from llm_reinforce.problems.sources import ignore, split_problems, with_all_columns
from llm_reinforce.problems.splits import ProblemSplit, default_num_held_out, folded_prompt

if TYPE_CHECKING:
    from llm_reinforce.config import Config, DataConfig


@dataclass(frozen=True, slots=True)
class GivenProblems:
    """Problems that a Python caller passed as objects. They replace the problems that the settings define.

    Attributes:
        train: training problems; None if the settings define them. If neither `held_out` nor the settings
            define held-out problems, some of the training problems are held out instead.
        held_out: held-out problems; None if the settings define them.
    """

    train: tuple[Problem, ...] | None = None
    held_out: tuple[Problem, ...] | None = None


NONE_GIVEN = GivenProblems()


def problems_from_config(
    config: "Config", say: Callable[[str], None] = ignore, given: GivenProblems = NONE_GIVEN
) -> ProblemSplit:
    """Return training and held-out problems, with their prompts inserted into the templates of the settings.

    Training problems that are also in the held-out source are left out. If no training problem would remain,
    all training problems are kept. In both cases, `say` is called with a message. It is also called with a
    message if demonstrations of the warm start are equal or similar to held-out problems.

    Args:
        config: settings of the run.
        say: function that is called with messages about the problems, such as the number of training problems
            that were left out.
        given: problems that are used instead of the problems that the settings define.

    Raises:
        InputError: if the data cannot be read, or if no training problem is left.
    """
    with errors_in("problems"):
        split = untemplated_problems(config, say, given)
    demonstrations = demonstrations_from_config(config)
    demonstrated = without_template(demonstrations, config.problems.template)
    for sentence in find_overlap(demonstrated, split.held_out).sentences():
        say(f"training.warm_start.data: {sentence}")
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
        in_template(with_all_columns(split.train), config.problems.template),
        in_template(split.held_out, template, examples),
        demonstrations,
    )


def demonstrations_from_config(config: "Config") -> tuple[Problem, ...]:
    """Return the demonstrations of the warm start; empty if the warm start uses the training problems.

    Raises:
        InputError: if the demonstrations cannot be read.
    """
    warm_start = config.training.warm_start
    if warm_start is None or warm_start.data is None:
        return ()
    with errors_in("training.warm_start.data"):
        return read_demonstrations(warm_start.data)


def untemplated_problems(
    config: "Config", say: Callable[[str], None] = ignore, given: GivenProblems = NONE_GIVEN
) -> ProblemSplit:
    """Return training and held-out problems with their original prompts, without a template.

    Args:
        config: settings of the run.
        say: function that is called with messages about the problems, as in `problems_from_config`.
        given: problems that are used instead of the problems that the settings define.

    Raises:
        InputError: if the data cannot be read, or if no training problem is left.
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
            num_held_out=settings.num_held_out,
            num_train=shape.num_train,
            seed=config.seed,
        )
    else:
        train = given.train or read_data(settings.train, needs_answers=False, say=say)
        held_out, num_held_out = given.held_out, settings.num_held_out
        if held_out is None and settings.held_out is not None:
            held_out = read_data(settings.held_out, say=say)
            num_held_out = MAX_HELD_OUT if num_held_out is None else num_held_out
        if held_out is not None:
            split = _without_overlap(train, held_out, num_held_out, config.seed, say)
        else:
            if num_held_out is None:
                num_held_out = default_num_held_out(len(train)) if have_answers(train) else 0
            elif num_held_out and not have_answers(train):
                raise InputError(
                    f"num_held_out is {num_held_out:,}, but the problems have no reference answers, so "
                    "accuracy cannot be measured on held-out problems; remove num_held_out, or set "
                    "answer_column"
                )
            split = split_problems(train, num_held_out, config.seed)
        # generated problems need no comparison, because no training problem is also a held-out problem
        for sentence in find_overlap(split.train, split.held_out).sentences():
            say(sentence)
    if not have_answers(split.held_out or split.train):
        say("the problems have no reference answers, so no accuracy is measured")
    elif not split.held_out:
        say("no problems are held out, so accuracy is measured on the training problems")
    return split


def read_data(
    source: "DataConfig | None", *, needs_answers: bool = True, say: Callable[[str], None] = ignore
) -> tuple[Problem, ...]:
    """Read the problems of a file, of a folder, of a named data set, or of a data set on the hub.

    Args:
        source: settings of the source.
        needs_answers: False to accept data without any reference answers.
        say: function that is called with messages about the data.

    Raises:
        InputError: if the source does not exist or is invalid, or if `config` or `split` is set for a source
            that has neither configurations nor splits.
    """
    assert source is not None, "the settings class requires it"
    if (source.config, source.split) != (None, DEFAULT_SPLIT) and not reads_split(source.data):
        what = "a file" if is_file_name(source.data) or "=" in source.data else "this source"
        raise InputError(f"{source.data}: config and split are not used for {what}; remove these settings")
    return find_problems(
        source.data,
        config=source.config,
        split=source.split,
        prompt_column=source.prompt_column,
        answer_column=source.answer_column,
        algebra=source.algebra,
        needs_answers=needs_answers,
        say=say,
    )


def in_template(problems: Iterable[Problem], template: str, before: str = "") -> tuple[Problem, ...]:
    """Return copies of the problems whose prompts are inserted into a template; see `Problem.in_template`."""
    return tuple(problem.in_template(template, before) for problem in problems)


def without_template(problems: Iterable[Problem], template: str) -> tuple[Problem, ...]:
    """Return copies of the problems without the text of a template; see `Problem.without_template`."""
    return tuple(problem.without_template(template) for problem in problems)


def _without_overlap(
    train: Sequence[Problem],
    held_out: Sequence[Problem],
    num_held_out: int | None,
    seed: int,
    say: Callable[[str], None],
) -> ProblemSplit:
    """Return the problems of two sources as training and held-out problems without overlap.

    Training problems that are also in the held-out source are removed. If no training problem would be left,
    all training problems are kept, and `say` is called with a message that the run is evaluated on its
    training problems.
    """
    unseen = {folded_prompt(problem.prompt) for problem in held_out}
    kept = tuple(problem for problem in train if folded_prompt(problem.prompt) not in unseen)
    if not kept:
        kept = tuple(train)
        say(
            "the held-out problems contain all training problems, so the run is evaluated on its training "
            "problems, and its accuracy does not measure generalization"
        )
    elif len(kept) < len(train):
        say(
            f"{len(train) - len(kept):,} training problems are also held-out problems, so they are not used "
            "for training"
        )
    shuffled = list(held_out)
    random.Random(f"{seed} held_out").shuffle(shuffled)
    return ProblemSplit(train=kept, held_out=tuple(shuffled[:num_held_out]))
