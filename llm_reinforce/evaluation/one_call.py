"""Evaluate a policy, or sample from it, in one call."""

from collections.abc import Sequence
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
from llm_reinforce.policy import Completion, check_prompts_fit, sample_completions
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
    few_shot: int = 0,
    examples: str | None = None,
    stop: Sequence[str] = (),
    seed: int = 0,
    batch_size: int = 256,
    output_dir: str | PathLike[str] | None = None,
    trust_remote_code: bool = False,
    show_progress: bool | None = None,
) -> Evaluation:
    """Return a policy's accuracy on a data set, with its 95% interval and all answers.

        before = evaluate("smollm2-135m", "gsm8k", num_problems=200, max_new_tokens=256)
        after = evaluate("runs/mine", "gsm8k", num_problems=200, max_new_tokens=256)
        compare_evaluations(before, after)["accuracy"].interval

    Args:
        policy: a name, a path, a hub id, a run's directory, `(model, tokenizer)` or a LanguagePolicy.
        problems: a data set's name, a file, a hub id, a list of dicts or Problems, or a `datasets.Dataset`.
        split, config, prompt_column, answer_column: of a data set that is read by name; `test` by default.
        algebra: answers may be LaTeX or algebra.
        num_problems: only the first so many.
        decoding: `greedy` takes the likeliest token each time; `sampled` draws, as training does.
        samples_per_problem: completions per problem; 1 for greedy decoding.
        max_new_tokens, temperature, template: by default those of the policy's run, else 256, 1 and the data
            set's own.
        few_shot: number of worked examples before each question.
        examples: a data set to take them from.
        stop: texts at which a completion is cut before it is judged.
        seed: of the sampling and of the choice of examples.
        batch_size: completions that are sampled at once.
        output_dir: directory for every answer and a results.json; an interrupted evaluation continues there.
        trust_remote_code: run Python code that comes with the model.
        show_progress: by default on a terminal and in a notebook.

    Raises:
        InputError: an argument, the data or the policy can't be used.
    """
    if decoding not in ("greedy", "sampled"):
        raise InputError(f"decoding: should be 'greedy' or 'sampled', not {decoding!r}")
    if decoding == "greedy" and samples_per_problem != 1:
        raise InputError(
            "samples_per_problem: all greedy completions of a problem are the same; use 'sampled'"
        )
    if examples is not None and not few_shot:
        raise InputError("examples: read only with few_shot")
    is_shown = is_interactive() if show_progress is None else show_progress
    shown: dict[str, Any] = {"say": note, "progress": progress} if is_shown else {}
    report = run_evaluations(
        EvaluationRequest(
            policies=(policy,),
            sources=(problems,),
            prompting=choose_prompting([policy], template, max_new_tokens, temperature),
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
    seed: int = 0,
    trust_remote_code: bool = False,
) -> list[list[Completion]]:
    """Return completions of each prompt.

    Args:
        policy: as for `evaluate`.
        greedy: take the likeliest token each time; then there is one completion.
        max_new_tokens, temperature: by default those of the policy's run, else 256 and 1.
        plain: use the prompts as they are, without the run's template and without a chat template.

    Raises:
        InputError: the policy can't be loaded, or a prompt doesn't fit.
    """
    prompting = choose_prompting([policy], "{prompt}" if plain else None, max_new_tokens, temperature)
    loaded = load_for_evaluation(
        policy, prompting.recipes[0], trust_remote_code=trust_remote_code, plain=plain
    )
    asked = in_template(
        [Problem(prompt, "", id=prompt) for prompt in prompts], prompting.template or "{prompt}"
    )
    check_prompts_fit(loaded, asked, prompting.max_new_tokens)
    num = 1 if greedy else num_completions
    completions = sample_completions(
        loaded,
        loaded.encode_prompts([problem.prompt for problem in asked]),
        num_completions=num,
        max_new_tokens=prompting.max_new_tokens,
        temperature=prompting.temperature,
        greedy=greedy,
        generator=torch.Generator(loaded.device).manual_seed(seed),
    )
    return [completions[start : start + num] for start in range(0, len(completions), num)]
