"""Choice of the prompt template, chat settings, token budget and temperature of an evaluation.

Values that the caller does not give are taken from the run that trained the policy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from llm_reinforce.config import MAX_NEW_TOKENS, Config, load_config
from llm_reinforce.errors import InputError
from llm_reinforce.policy import (
    ChatSettings,
    LanguagePolicy,
    best_device,
    load_policy,
    policy_from_model,
    with_chat_settings,
)


@dataclass(frozen=True, slots=True)
class Prompting:
    """Prompt template, token budget and temperature of an evaluation.

    Attributes:
        recipes: for each policy, the settings of its run. If a policy does not come from a run, the settings
            of the other policy's run are used, so that both are evaluated alike. None if no policy comes from
            a run.
        template: prompt template, with `{prompt}` in place of the problem; None: the template of the data
            set.
        max_new_tokens: maximum number of tokens per completion.
        temperature: sampling temperature.
        chat: settings of the chat template that replace the settings in the runs. None: use the settings in
            the runs.
    """

    recipes: tuple[Config | None, ...]
    template: str | None
    max_new_tokens: int
    temperature: float
    chat: ChatSettings | None = None


def choose_prompting(
    policies: Sequence[Any],
    template: str | None = None,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    chat: ChatSettings | None = None,
    *,
    is_sampled: bool = True,
) -> Prompting:
    """Return the prompt template, token budget, temperature and chat settings of an evaluation.

    A value that is None is replaced by the value in the policies' runs. If no policy comes from a run, the
    default is used. Without `is_sampled`, decoding is greedy, and the temperatures of the runs may differ.

    Raises:
        InputError: if a value is None but differs between the runs of two policies, if the template does not
            contain `{prompt}`, if `max_new_tokens` is less than 1, or if the temperature is not positive.
    """
    if template is not None and "{prompt}" not in template:
        raise InputError(
            f"template {template!r}: should contain {{prompt}}, which is replaced by the problem's text"
        )
    if max_new_tokens is not None and max_new_tokens < 1:
        raise InputError(f"max_new_tokens: should be at least 1, not {max_new_tokens}")
    if temperature is not None and not temperature > 0:
        raise InputError(
            f"temperature: should be greater than 0, not {temperature}; for the most likely token at each "
            "step, use greedy decoding"
        )
    found = [run_recipe(policy) for policy in policies]
    runs = [recipe for recipe in found if recipe is not None]
    options: dict[str, tuple[object, Sequence[object]]] = {
        "template": (template, [run.problems.template for run in runs]),
        "max_new_tokens": (max_new_tokens, [run.sampling.max_new_tokens for run in runs]),
    }
    if is_sampled:
        options["temperature"] = temperature, [run.sampling.temperature for run in runs]
    _check_runs_agree(options)
    first = runs[0] if runs else None
    return Prompting(
        tuple(recipe or first for recipe in found),
        template or (first.problems.template if first else None),
        max_new_tokens or (first.sampling.max_new_tokens if first else MAX_NEW_TOKENS),
        temperature or (first.sampling.temperature if first else 1.0),
        chat,
    )


def _check_runs_agree(options: Mapping[str, tuple[object, Sequence[object]]]) -> None:
    for name, (given, of_runs) in options.items():
        if given is None and len(set(of_runs)) > 1:
            option = name.replace("_", "-")
            shown = " and ".join(map(repr, of_runs))
            raise InputError(
                f"{name}: the runs were trained with different values ({shown}); give one value for both "
                f"policies (--{option} on the command line)"
            )


def load_for_evaluation(
    policy: Any,
    recipe: Config | None,
    *,
    chat: ChatSettings | None = None,
    trust_remote_code: bool = False,
    plain: bool = False,
) -> LanguagePolicy:
    """Load a policy with the data type and chat format of its run.

    Args:
        policy: a model name, a path, the directory of a run, `(model, tokenizer)` or a LanguagePolicy.
        recipe: settings of the run; None if the policy does not come from a run. The setting
            `trust_remote_code` of the run is ignored for safety.
        chat: settings of the chat template that replace the settings in the run.
        trust_remote_code: if True, Python code that comes with the model may run.
        plain: if True, prompts are used unchanged, without a chat template.

    Raises:
        InputError: if `policy` is not of one of these types, if the policy can't be loaded, or if `chat`
            can't be used with the policy's chat template.
    """
    loaded = _load(policy, recipe, trust_remote_code=trust_remote_code, plain=plain)
    return loaded if chat is None else with_chat_settings(loaded, chat)


def _load(policy: Any, recipe: Config | None, *, trust_remote_code: bool, plain: bool) -> LanguagePolicy:
    if isinstance(policy, LanguagePolicy):
        return replace(policy, uses_chat_template=False) if plain else policy
    if isinstance(policy, tuple | list) and len(policy) == 2:
        return policy_from_model(*policy, use_chat_template=not plain)
    if not isinstance(policy, str | PathLike):
        raise InputError(
            f"policy: {policy!r} ({type(policy).__name__}) is not a policy; give a name, a path, a hub id, "
            "(model, tokenizer), or a policy loaded by load_policy"
        )
    settings = recipe.policy if recipe else None
    return load_policy(
        str(policy),
        dtype=settings.dtype if settings else "float32",
        load_in_4bit=settings is not None and settings.load_in_4bit,
        use_chat_template=not plain and (settings.use_chat_template if settings else True),
        **_chat_settings(recipe) if not plain else {},
        trust_remote_code=trust_remote_code,
        device=best_device(),
    )


def _chat_settings(recipe: Config | None) -> dict[str, Any]:
    names = ("system_prompt", "chat_template_kwargs", "chat_template_date")
    return {} if recipe is None else {name: getattr(recipe.policy, name) for name in names}


def run_recipe(policy: Any) -> Config | None:
    """Return the settings of the run that a policy comes from; None if the policy does not come from a run.

    A policy comes from a run if it is given as the directory of the run, or as the directory `policy/` in it.
    """
    if not isinstance(policy, str | PathLike):
        return None
    path = Path(policy).expanduser()
    if (path / "recipe.yaml").is_file():
        return load_config(path)
    if path.name == "policy" and (path.parent / "recipe.yaml").is_file():
        return load_config(path.parent)
    return None
