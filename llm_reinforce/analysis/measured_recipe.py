"""Prepare a measurement: load the settings and the policy of a recipe, and collect episodes."""

import warnings
from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path

from llm_reinforce.analysis.measured_episodes import MeasuredEpisodes, collect_updates
from llm_reinforce.analysis.recipe_source import RecipeSource, config_of
from llm_reinforce.config import Config
from llm_reinforce.console.messages import note
from llm_reinforce.console.progress import progress
from llm_reinforce.errors import InputError
from llm_reinforce.policy import LanguagePolicy
from llm_reinforce.training import ReinforceTrainer


def config_to_measure(
    recipe: RecipeSource, overrides: Sequence[str] = (), policy: str | PathLike[str] | None = None
) -> Config:
    """Return the settings of the recipe. If `policy` is given, it replaces the policy of the recipe.

    A measurement ignores settings that add other terms to the objective or change how problems are drawn.
    `reinforce.kl` is therefore set to None. A warning names the ignored settings that the recipe uses.

    Raises:
        InputError: if the recipe is invalid, or has only one episode per problem.
    """
    config = config_of(recipe, overrides)
    if policy is not None:
        config = with_weights(config, fspath(policy))
    if config.reinforce.episodes_per_problem < 2:
        raise InputError(
            "reinforce.episodes_per_problem: should be at least 2, not "
            f"{config.reinforce.episodes_per_problem}, because baselines compare the episodes of a problem; "
            "override this setting, for example with reinforce.episodes_per_problem=4 (--set on the "
            "command line)"
        )
    settings = config.reinforce
    left_out = {
        "kl": settings.kl is not None and settings.kl.coefficient > 0,
        "entropy_coefficient": settings.entropy_coefficient > 0,
        "entropy_target": settings.entropy_target is not None,
        "refill": settings.refill > 0,
        "curriculum": settings.curriculum is not None,
    }
    if names := [f"reinforce.{name}" for name, is_set in left_out.items() if is_set]:
        warnings.warn(
            f"the measurement ignores {', '.join(names)}: it measures the gradient of the expected return, "
            "and draws all problems with equal probability",
            stacklevel=3,
        )
    return config.model_copy(update={"reinforce": settings.model_copy(update={"kl": None})})


def with_weights(config: Config, name_or_path: str) -> Config:
    """Return a copy of the settings with the policy `name_or_path` and without a warm start."""
    changes = {"name_or_path": name_or_path, "random_init": None, "revision": None}
    path = Path(name_or_path).expanduser()
    if any((folder / "adapter_config.json").is_file() for folder in (path, path / "policy")):
        changes["lora"] = None  # the policy already has an adapter
    policy = config.policy.model_copy(update=changes)
    training = config.training.model_copy(update={"warm_start": None})
    return config.model_copy(update={"policy": policy, "training": training})


def collect_from_recipe(
    config: Config, *, num_problems: int, seed: int, show_progress: bool = False
) -> tuple[LanguagePolicy, MeasuredEpisodes]:
    """Return the policy of a recipe, and episodes of this policy.

    If the recipe has a warm start, the policy is first trained by the warm start. The problems are drawn
    uniformly.

    Args:
        config: settings of the recipe, as returned by `config_to_measure`.
        num_problems: number of problems, which are drawn with replacement. A value above the recipe's
            `problems_per_update` is rounded up to a multiple of `problems_per_update`.
        seed: random seed for choosing problems and sampling episodes.
        show_progress: if True, show a progress bar.
    """
    trainer = ReinforceTrainer(config=config, progress=False)
    if config.training.warm_start is not None:
        if show_progress:
            examples = trainer.loop.demonstrations or trainer.problems
            num_updates = config.training.warm_start.length(len(examples))
            note(f"warm start: {num_updates:,} supervised updates")
        trainer.loop.warm_start()
    with progress("collecting", 2 * num_problems, is_shown=show_progress) as show:
        episodes = collect_updates(
            trainer.policy,
            trainer.problems,
            trainer.rewards,
            config.reinforce,
            config.sampling,
            num_problems=num_problems,
            seed=seed,
            progress=show,
        )
    return trainer.policy, episodes
