"""Functions that evaluate a policy, or sample from a policy, in one call."""

import datetime
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from llm_reinforce.console.messages import is_interactive, note
from llm_reinforce.console.progress import progress
from llm_reinforce.errors import InputError
from llm_reinforce.evaluation.accuracy import Decoding, Evaluation
from llm_reinforce.evaluation.pipeline import EvaluationRequest, run_evaluations
from llm_reinforce.evaluation.prompting import choose_prompting, load_for_evaluation
from llm_reinforce.policy import (
    ChatSettings,
    Completion,
    check_prompts,
    check_prompts_fit,
    sample_completions,
)
from llm_reinforce.problems import Problem, in_template


def evaluate(
    policy: Any,
    problems: Any,
    *,
    split: str | None = None,
    config: str | None = None,
    prompt_column: str | None = None,
    answer_column: str | None = None,
    algebra: bool = False,
    num_problems: int | None = None,
    decoding: Decoding = "greedy",
    samples_per_problem: int = 1,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    template: str | None = None,
    system_prompt: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    chat_template_date: datetime.date | str | None = None,
    few_shot: int = 0,
    examples: Any = None,
    stop: Sequence[str] = (),
    seed: int = 0,
    batch_size: int = 256,
    output_dir: str | PathLike[str] | None = None,
    trust_remote_code: bool = False,
    show_progress: bool | None = None,
) -> Evaluation:
    """Evaluate a policy on a data set.

        before = evaluate("smollm2-135m", "gsm8k", num_problems=200, max_new_tokens=256)
        after = evaluate("runs/mine", "gsm8k", num_problems=200, max_new_tokens=256)
        compare_evaluations(before, after)["accuracy"].interval

    Args:
        policy: a model name, a path, a hub id, the directory of a run, `(model, tokenizer)` or a
            LanguagePolicy.
        problems: the name of a data set, a file, a hub id, a list of dicts or Problems, or a
            `datasets.Dataset`.
        split: split to evaluate if the data set has splits; `test` by default.
        config: configuration of a data set on the hub or in a folder.
        prompt_column: column that contains the prompts. The default is the first of these columns that
            exists: `prompt`, `question`, `problem`, `messages`, `conversations`.
        answer_column: column that contains the reference answers. The default is the first of these columns
            that exists: `answer`, `ground_truth`, `final_answer`, `reward_model.ground_truth`, `solution`.
        algebra: if True, math-verify compares answers that are LaTeX or algebraic expressions.
        num_problems: if given, only the first `num_problems` problems are evaluated.
        decoding: `greedy` takes the most likely token at each step. `sampled` samples from the policy, as in
            training.
        samples_per_problem: number of completions per problem; must be 1 for greedy decoding.
        max_new_tokens: maximum number of tokens per completion. The default is the value of the policy's run,
            or 256 if the policy does not come from a run.
        temperature: sampling temperature. The default is the value of the policy's run, or 1 if the policy
            does not come from a run.
        template: prompt template, with `{prompt}` in place of the problem. The default is the template of the
            policy's run, or the template of the data set if the policy does not come from a run.
        system_prompt: text of the system message in the chat template. The default is the value of the
            policy's run.
        chat_template_kwargs: further arguments of the chat template, such as `{"enable_thinking": False}`.
            The default is the value of the policy's run.
        chat_template_date: date that the chat template prints as the current date. The default is the date of
            the policy's run, or today if the policy does not come from a run.
        few_shot: number of worked examples before each problem.
        examples: data set from which the worked examples are taken, as a name, a path or problems. The
            default is the training split of the data set or, if there is none, the training problems of the
            policy's run.
        stop: strings at which a completion is cut before it is verified. By default, if the template of the
            data set is used, completions are cut where a new question begins.
        seed: random seed for sampling completions and choosing worked examples.
        batch_size: number of completions generated at the same time.
        output_dir: directory for all answers and `results.json`. To continue an interrupted evaluation, call
            the function again with the same directory.
        trust_remote_code: if True, Python code that comes with the model may run.
        show_progress: if True, show a progress bar. By default, it is shown on a terminal and in a notebook.
            Notes, for example about problems that the policy was trained on, are printed on stderr unless
            `show_progress` is False.

    Returns:
        the accuracy with its 95% interval, other measures, and all answers.

    Raises:
        InputError: if an argument is invalid, or if the data or the policy cannot be loaded.
    """
    if decoding not in ("greedy", "sampled"):
        raise InputError(f"decoding: should be 'greedy' or 'sampled', not {decoding!r}")
    for name, value, least in (
        ("num_problems", num_problems, 1),
        ("samples_per_problem", samples_per_problem, 1),
        ("few_shot", few_shot, 0),
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
    ):
        if value is not None and value < least:
            raise InputError(f"{name}: should be at least {least}, not {value}")
    if decoding == "greedy" and samples_per_problem != 1:
        raise InputError(
            f"samples_per_problem: should be 1 for greedy decoding, not {samples_per_problem}, because all "
            "greedy completions of a problem are equal; use decoding='sampled'"
        )
    if examples is not None and not few_shot:
        raise InputError("examples: used only with few_shot; set few_shot, or omit examples")
    if isinstance(stop, str) or not all(stop):
        raise InputError(f"stop: should be a list of non-empty texts, such as ['Question:'], not {stop!r}")
    is_shown = is_interactive() if show_progress is None else show_progress
    shown: dict[str, Any] = {"progress": progress} if is_shown else {}
    if show_progress is not False:
        shown["say"] = note
    report = run_evaluations(
        EvaluationRequest(
            policies=(policy,),
            sources=(problems,),
            prompting=choose_prompting(
                [policy],
                template,
                max_new_tokens,
                temperature,
                ChatSettings(system_prompt, chat_template_kwargs, chat_template_date),
                is_sampled=decoding == "sampled",
            ),
            split=split,
            config=config,
            prompt_column=prompt_column,
            answer_column=answer_column,
            algebra=algebra,
            num_problems=num_problems,
            decoding=decoding,
            samples_per_problem=samples_per_problem,
            few_shot=few_shot,
            examples=examples,
            stop=tuple(stop),
            seed=seed,
            batch_size=batch_size,
            output_dir=Path(output_dir).expanduser() if output_dir is not None else None,
            trust_remote_code=trust_remote_code,
        ),
        **shown,
    )
    return report.evaluations[0][0]


def sample(
    policy: Any,
    prompts: Sequence[str],
    *,
    num_completions: int = 4,
    greedy: bool = False,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    plain: bool = False,
    system_prompt: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    chat_template_date: datetime.date | str | None = None,
    seed: int = 0,
    trust_remote_code: bool = False,
) -> list[list[Completion]]:
    """Sample completions of prompts from a policy.

    Args:
        policy: a model name, a path, a hub id, the directory of a run, `(model, tokenizer)` or a
            LanguagePolicy.
        prompts: the prompts.
        num_completions: number of completions per prompt.
        greedy: if True, take the most likely token at each step, and return one completion per prompt.
        max_new_tokens: maximum number of tokens per completion. The default is the value of the policy's run,
            or 256 if the policy does not come from a run.
        temperature: sampling temperature. The default is the value of the policy's run, or 1 if the policy
            does not come from a run.
        plain: if True, use the prompts unchanged, without the run's template and without a chat template.
        system_prompt: text of the system message in the chat template. The default is the value of the
            policy's run.
        chat_template_kwargs: further arguments of the chat template, such as `{"enable_thinking": False}`.
            The default is the value of the policy's run.
        chat_template_date: date that the chat template prints as the current date. The default is the date of
            the policy's run, or today if the policy does not come from a run.
        seed: random seed of the sampling.
        trust_remote_code: if True, Python code that comes with the model may run.

    Returns:
        for each prompt, the list of its completions.

    Raises:
        InputError: if an argument is invalid, if the policy cannot be loaded, or if a prompt does not fit
            into the policy's context.
    """
    if isinstance(prompts, str):
        raise InputError(f"prompts: should be a list of texts, such as [{prompts!r}], not a single text")
    if num_completions < 1:
        raise InputError(f"num_completions: should be at least 1, not {num_completions}")
    prompting = choose_prompting([policy], "{prompt}" if plain else None, max_new_tokens, temperature)
    loaded = load_for_evaluation(
        policy,
        prompting.recipes[0],
        chat=ChatSettings(system_prompt, chat_template_kwargs, chat_template_date),
        trust_remote_code=trust_remote_code,
        plain=plain,
    )
    templated = in_template(
        [Problem(prompt, id=prompt) for prompt in prompts], prompting.template or "{prompt}"
    )
    check_prompts_fit(loaded, templated, prompting.max_new_tokens)
    for sentence in check_prompts(loaded, templated):
        note(sentence)
    num = 1 if greedy else num_completions
    completions = sample_completions(
        loaded,
        loaded.encode_prompts([problem.prompt for problem in templated]),
        num_completions=num,
        max_new_tokens=prompting.max_new_tokens,
        temperature=prompting.temperature,
        greedy=greedy,
        generator=torch.Generator(loaded.device).manual_seed(seed),
    )
    return [completions[start : start + num] for start in range(0, len(completions), num)]
