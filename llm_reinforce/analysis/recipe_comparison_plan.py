"""Plan a comparison of recipes: one run for each variant and seed, and the directory of each run."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from llm_reinforce.analysis.recipe_source import RecipeSource, config_of, name_of
from llm_reinforce.config import Config
from llm_reinforce.errors import InputError
from llm_reinforce.runs import RunDirectory
from llm_reinforce.training import differing_settings

NAME = re.compile(r"\w[\w .,+=@()-]{0,59}")  # valid as the name of a directory and as a label in a plot
OWN_KEYS = {  # settings that `compare` sets itself, each with the reason and the argument to use instead
    "output_dir": (
        "runs are written to the directory of the comparison; choose this directory with `output_dir` "
        "(--output)"
    ),
    "training.num_tokens": "all runs have the same budget; set the budget with `tokens` (--tokens)",
    "training.num_updates": "all runs have the same budget; set the budget with `tokens` (--tokens)",
    "training.stop_at": "all runs have the same budget; remove this setting",
    "evaluation.every": "all runs are evaluated equally often; set the number with `evaluations` "
    "(--evaluations)",
    "evaluation.unit": "all runs are evaluated equally often; set the number with `evaluations` "
    "(--evaluations)",
}


@dataclass(frozen=True, slots=True)
class Variant:
    """A recipe, possibly with changed settings.

    Attributes:
        name: name of the variant in the results.
        recipe: the recipe.
        overrides: changes of the recipe's settings, each of the form `section.key=value`.
    """

    name: str
    recipe: RecipeSource
    overrides: tuple[str, ...] = ()

    @property
    def recipe_name(self) -> str:
        """The recipe's name or path as the user gave it; for a Config, the last part of its `output_dir`."""
        return name_of(self.recipe) if isinstance(self.recipe, Config) else str(self.recipe)


@dataclass(frozen=True, slots=True)
class Shape:
    """Settings that all runs of a comparison share.

    Attributes:
        num_seeds: number of seeds per variant. The first seed is the setting `seed` of the first variant.
        num_tokens: budget of each run, in sampled tokens.
        num_evaluations: number of evaluations per run after the initial evaluation, at equal intervals of
            sampled tokens.
        output: output directory; the directory of a run is `output/NAME/seed-N`.
    """

    num_seeds: int
    num_tokens: int
    num_evaluations: int
    output: Path


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run of a comparison.

    Attributes:
        variant: name of the variant.
        seed: random seed.
        recipe: settings of the run.
        directory: directory of the run.
        progress: state of the run on disk: `done` (complete), `begun` (to be resumed) or `new`.
    """

    variant: str
    seed: int
    recipe: Config
    directory: RunDirectory
    progress: Literal["done", "begun", "new"] = "new"

    @property
    def title(self) -> str:
        """Variant and seed, for messages."""
        return f"{self.variant}, seed {self.seed}"


def variants_of(
    recipes: Sequence[RecipeSource], variants: Sequence[str] | Mapping[str, Sequence[str]] = ()
) -> list[Variant]:
    """Return the variants to compare: the given variants of a single recipe, or one variant per recipe.

    If no variants are given, each recipe is one variant with unchanged settings. The name of the variant is
    the file name of the recipe.

    Args:
        recipes: the recipes.
        variants: strings `"NAME: section.key=value …"`, or a mapping from names to lists of
            `section.key=value`.

    Raises:
        InputError: if there is no recipe, if variants and several recipes are given, if a variant can't be
            parsed or has an invalid name, or if two variants have the same name.
    """
    if not recipes:
        raise InputError("compare: no recipe is given; give one or more")
    if variants and len(recipes) > 1:
        names = ", ".join(map(name_of, recipes))
        raise InputError(
            f"variants (--variant) change a single recipe, but {len(recipes)} recipes are given ({names}); "
            "give one recipe"
        )
    if isinstance(variants, Mapping):
        chosen = [Variant(name, recipes[0], tuple(overrides)) for name, overrides in variants.items()]
    else:
        chosen = [_variant(recipes[0], text) for text in variants]
    chosen = chosen or [Variant(name_of(recipe), recipe) for recipe in recipes]
    for index, variant in enumerate(chosen):
        if not NAME.fullmatch(variant.name) or variant.name != variant.name.rstrip(" ."):
            raise InputError(
                f"{variant.name!r} is not a valid name of a variant. The name is also used for a directory. "
                "Start the name with a letter or digit, and use at most 60 letters, digits, spaces and "
                ". , + = @ ( ) -, without a space or period at the end"
            )
        # the file systems of macOS and Windows ignore case
        if any(variant.name.casefold() == other.name.casefold() for other in chosen[:index]):
            hint = "" if variants else ', for example with `variants` (--variant "NAME: key=value …")'
            raise InputError(f"two variants are named {variant.name!r}; give them different names{hint}")
    return chosen


def _variant(recipe: RecipeSource, text: str) -> Variant:
    name, colon, settings = text.partition(":")
    form = 'a variant should read "NAME: section.key=value section.key=value"'
    try:
        overrides = tuple(shlex.split(settings))
    except ValueError as error:  # a quote is not closed
        raise InputError(f"variant {text!r}: can't be parsed: {error}; {form}") from None
    if not colon:
        raise InputError(f"variant {text!r}: there is no colon after the name; {form}")
    for override in overrides:
        if "=" not in override:
            raise InputError(
                f"variant {text!r}: {override!r} has no =; {form} (quote values that contain spaces)"
            )
    return Variant(name.strip(), recipe, overrides)


def plan_runs(chosen: Sequence[Variant], overrides: Sequence[str], shape: Shape) -> list[PlannedRun]:
    """Return all runs of a comparison, ordered by seed.

    Because of this order, an interrupted comparison has complete runs of all variants for the first seeds.

    Args:
        chosen: the variants.
        overrides: changes of the settings of all variants, each of the form `section.key=value`.
        shape: settings that all runs share.

    Raises:
        InputError: if a recipe or an override is invalid, if a variant lacks the decoding mode of the
            comparison, or if the directory of a run can't be used (see `_progress`).
    """
    for variant in chosen:
        _check_own_keys(overrides, "override (--set) ")
        _check_own_keys(variant.overrides, f"variant {variant.name!r}: ", seed=True)
    settings = [[*overrides, *variant.overrides] for variant in chosen]
    first = _load(chosen[0], settings[0])
    runs = []
    for seed in range(first.seed, first.seed + shape.num_seeds):
        for variant, own in zip(chosen, settings, strict=True):
            runs.append(_planned(variant, own, seed, shape))
    _check_decoding(runs[: len(chosen)])
    return [replace(run, progress=_progress(run)) for run in runs]


def _check_own_keys(overrides: Sequence[str], where: str, *, seed: bool = False) -> None:
    for override in overrides:
        key = override.partition("=")[0].strip()
        why = OWN_KEYS.get(key)
        if seed and key == "seed":
            why = "all variants have the same seeds; set the first seed in `overrides` (--set seed=…)"
        if why:
            raise InputError(
                f"{where}{override}: this setting can't be changed in a comparison, because {why}"
            )


def _load(variant: Variant, overrides: Sequence[str]) -> Config:
    try:
        return config_of(variant.recipe, overrides)
    except InputError as error:
        lines = str(error).splitlines()
        raise InputError("\n".join(f"{variant.name}: {line}" for line in lines)) from None


def _planned(variant: Variant, overrides: Sequence[str], seed: int, shape: Shape) -> PlannedRun:
    own = _load(variant, overrides).reinforce
    # an episode has at least one token, so this number of updates always suffices to use up the budget
    most_batches = -(-shape.num_tokens // (own.problems_per_update * own.episodes_per_problem))
    folder = shape.output / variant.name / f"seed-{seed}"
    recipe = _load(
        variant,
        [
            *overrides,
            f"seed={seed}",
            f"output_dir={json.dumps(str(folder))}",
            f"training.num_tokens={shape.num_tokens}",
            f"training.num_updates={most_batches * own.updates_per_batch}",
            "training.stop_at=null",  # a target accuracy would end runs before their budget is used up
            "evaluation.unit=tokens",
            f"evaluation.every={max(1, shape.num_tokens // shape.num_evaluations)}",
        ],
    )
    return PlannedRun(variant.name, seed, recipe, RunDirectory(folder.expanduser()))


def _progress(run: PlannedRun) -> Literal["done", "begun", "new"]:
    """Return the progress of a run on disk.

    Raises:
        InputError: if the directory of the run contains files that belong to no run, contains a run with
            other settings, or can't be written to.
    """
    own = run.directory.path / "recipe.yaml"
    if own.is_file():
        if lines := differing_settings(own, run.recipe, may_grow=False):
            head = (
                f"{run.directory.path}: contains a run with other settings; give another `output_dir` "
                "(--output), or delete this directory:"
            )
            raise InputError("\n".join([head, *lines]))
        return "done" if run.directory.policy.is_dir() else "begun"  # the policy is saved last
    is_begun = run.directory.is_begun()
    try:
        run.directory.check(resume=is_begun, overwrite=False)
    except InputError:  # the message of this error gives advice for the command `train` only
        path = run.directory.path
        found = ", ".join(sorted(each.name for each in path.iterdir())[:4]) if path.is_dir() else "a file"
        raise InputError(
            f"{path}: can't be used as the directory of a run, which must be writable and contain no other "
            f"files (found: {found or 'none'}); give another `output_dir` (--output), or delete this path"
        ) from None
    return "begun" if is_begun else "new"


def unlike_problems(runs: Sequence[PlannedRun]) -> str | None:
    """Return a warning if the recipes are not evaluated on the same problems and prompts, otherwise None."""

    def evaluated_on(run: PlannedRun) -> tuple[object, ...]:
        evaluation = run.recipe.evaluation
        return run.recipe.problems, evaluation.num_problems, evaluation.template, evaluation.few_shot

    first = [run for run in runs if run.seed == runs[0].seed]
    unlike = [run.variant for run in first[1:] if evaluated_on(run) != evaluated_on(first[0])]
    if not unlike:
        return None
    names = ", ".join(unlike)
    return (
        f"{names}: evaluated on other problems or prompts than {first[0].variant}, so the accuracies can't "
        "be compared directly; use the same settings of problems and evaluations in all recipes"
    )


def decoding_of(runs: Sequence[PlannedRun]) -> str:
    """Return the decoding mode for the comparison: the first decoding mode of the first variant."""
    return runs[0].recipe.evaluation.decodings[0]


def _check_decoding(runs: Sequence[PlannedRun]) -> None:
    decoding = decoding_of(runs)
    for run in runs:
        if decoding not in run.recipe.evaluation.decodings:
            raise InputError(
                f"{run.variant}: evaluation.decodings lacks {decoding}. All variants are compared with this "
                f"decoding mode, because it is the first decoding mode of {runs[0].variant}. Use the same "
                f"decoding modes for all variants (override evaluation.decodings=[{decoding}])"
            )
