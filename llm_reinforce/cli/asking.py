"""How a policy is asked: what `evaluate` and `sample` share."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm_reinforce.config import Config, load_config
from llm_reinforce.errors import InputError
from llm_reinforce.policy import best_device

if TYPE_CHECKING:
    from llm_reinforce.policy import LanguagePolicy

MAX_NEW_TOKENS = 256

PolicyOption = Annotated[
    str, typer.Option("--policy", "-p", help="A run's directory, a model's, a .gguf file, or a name.")
]
TokensOption = Annotated[
    int | None, typer.Option(min=1, help=f"Longest completion; the run's own, else {MAX_NEW_TOKENS}.")
]
TemperatureOption = Annotated[
    float | None, typer.Option(min=1e-6, help="Divides the logits; the run's own, else 1.")
]
RemoteCodeOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")
]


@dataclass(frozen=True, slots=True)
class Asking:
    """How policies are asked: as given on the command line, else as in a run's recipe, else by default.

    Attributes:
        recipes: each policy's own, or, where it is no run's, the first one of the others.
        template: None: as each data set is usually asked.
    """

    recipes: tuple[Config | None, ...]
    template: str | None
    max_new_tokens: int
    temperature: float


def how_to_ask(
    policies: Sequence[str], template: str | None, max_new_tokens: int | None, temperature: float | None
) -> Asking:
    """What was given, and for the rest what the runs among the policies were trained with.

    Raises:
        InputError: a run has no policy yet, two runs were asked in different ways and nothing else was
            given, or the template has no place for the prompt.
    """
    if template is not None and "{prompt}" not in template:
        raise InputError(f"--template {template!r}: should contain {{prompt}}")
    found = [run_recipe(policy) for policy in policies]
    runs = [recipe for recipe in found if recipe is not None]
    _check_asked_alike(runs, template, max_new_tokens, temperature)
    first = runs[0] if runs else None
    return Asking(
        tuple(recipe or first for recipe in found),
        template or (first.problems.template if first else None),
        max_new_tokens or (first.sampling.max_new_tokens if first else MAX_NEW_TOKENS),
        temperature or (first.sampling.temperature if first else 1.0),
    )


def _check_asked_alike(
    runs: Sequence[Config], template: str | None, max_new_tokens: int | None, temperature: float | None
) -> None:
    for option, given, own in (
        ("--template", template, [run.problems.template for run in runs]),
        ("--max-new-tokens", max_new_tokens, [run.sampling.max_new_tokens for run in runs]),
        ("--temperature", temperature, [run.sampling.temperature for run in runs]),
    ):
        if given is None and len(set(own)) > 1:
            shown = " and ".join(map(repr, own))
            raise InputError(f"the runs were asked in different ways ({shown}): choose one with {option}")


def load_asked(
    policy: str, recipe: Config | None, *, trust_remote_code: bool, as_it_stands: bool = False
) -> "LanguagePolicy":
    """The policy, in its run's type and chat format; that recipe never says whose code may run."""
    from llm_reinforce.policy import load_policy

    settings = recipe.policy if recipe else None
    return load_policy(
        policy,
        dtype=settings.dtype if settings else "float32",
        use_chat_template=not as_it_stands and (settings.use_chat_template if settings else True),
        system_prompt=settings.system_prompt if settings and not as_it_stands else None,
        trust_remote_code=trust_remote_code,
        device=best_device(),
    )


def run_recipe(policy: str) -> Config | None:
    """The recipe of the run that this is the directory of (or the policy/ folder of), if it is one.

    Raises:
        InputError: the run has no policy yet.
    """
    path = Path(policy).expanduser()
    if (path / "recipe.yaml").is_file():
        if not (path / "policy").is_dir():
            raise InputError(f"{path}: this run has no policy/ yet; finish it with `train … --resume`")
        return load_config(path / "recipe.yaml")
    if path.name == "policy" and (path.parent / "recipe.yaml").is_file():
        return load_config(path.parent / "recipe.yaml")
    return None
