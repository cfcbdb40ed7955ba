"""The runs of a comparison of recipes: variants, their seeds, and a directory for each run."""

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

NAME = re.compile(r"\w[\w .,+=@()-]{0,59}")  # a folder's name, and a label in the plot
OWN_KEYS = {  # settings that compare sets itself, and where they come from
    "output_dir": "the runs are written below the comparison's own directory (--output)",
    "training.num_tokens": "the budget of every run is that of the comparison (--tokens)",
    "training.num_updates": "every run ends with the budget of the comparison (--tokens)",
    "evaluation.every": "all runs are evaluated equally often (--evaluations)",
    "evaluation.unit": "all runs are evaluated equally often (--evaluations)",
}


@dataclass(frozen=True, slots=True)
class Variant:
    """A recipe and the settings that are changed in it."""

    name: str
    recipe: RecipeSource
    overrides: tuple[str, ...] = ()

    @property
    def recipe_name(self) -> str:
        """The recipe as given, or the name of a Config."""
        return name_of(self.recipe) if isinstance(self.recipe, Config) else str(self.recipe)


@dataclass(frozen=True, slots=True)
class Shape:
    """The settings that all runs of a comparison share.

    Attributes:
        num_seeds: number of seeds of each variant, counted from the first variant's `seed`.
        num_tokens: the budget of a run, in sampled tokens.
        num_evaluations: number of evaluations of a run, at equal distances in tokens, besides the first one.
        output: a run's directory is `output/NAME/seed-N`.
    """

    num_seeds: int
    num_tokens: int
    num_evaluations: int
    output: Path


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run and its progress: `done`, `begun` (it is resumed) or `new`."""

    variant: str
    seed: int
    recipe: Config
    directory: RunDirectory
    progress: Literal["done", "begun", "new"] = "new"

    @property
    def title(self) -> str:
        return f"{self.variant}, seed {self.seed}"


def variants_of(
    recipes: Sequence[RecipeSource], variants: Sequence[str] | Mapping[str, Sequence[str]] = ()
) -> list[Variant]:
    """Return the recipes under the names of their files, or the variants of the one recipe.

    Args:
        variants: each `"NAME: section.key=value …"`, or a mapping from names to lists of `section.key=value`.

    Raises:
        InputError: variants of several recipes, one that can't be read, or two of the same name.
    """
    if not recipes:
        raise InputError("compare: no recipe; name one or more")
    if variants and len(recipes) > 1:
        names = ", ".join(map(name_of, recipes))
        raise InputError(
            f"--variant changes one recipe, and there are {len(recipes)} ({names}); name one recipe, and "
            "give each variant of it"
        )
    if isinstance(variants, Mapping):
        chosen = [Variant(name, recipes[0], tuple(overrides)) for name, overrides in variants.items()]
    else:
        chosen = [_variant(recipes[0], text) for text in variants]
    chosen = chosen or [Variant(name_of(recipe), recipe) for recipe in recipes]
    for index, variant in enumerate(chosen):
        if not NAME.fullmatch(variant.name) or variant.name != variant.name.rstrip(" ."):
            raise InputError(
                f"{variant.name!r} can't be a variant's name, which names a folder: use at most 60 letters, "
                "digits, spaces and . , + = @ ( ) -, beginning with a letter or digit"
            )
        # file systems of macOS and Windows ignore case
        if any(variant.name.casefold() == other.name.casefold() for other in chosen[:index]):
            hint = "" if variants else ' (--variant "NAME: key=value …" names variants of one recipe)'
            raise InputError(f"two variants are named {variant.name!r}; give each its own name{hint}")
    return chosen


def _variant(recipe: RecipeSource, text: str) -> Variant:
    name, colon, settings = text.partition(":")
    form = 'should read "NAME: section.key=value section.key=value"'
    try:
        overrides = tuple(shlex.split(settings))
    except ValueError as error:  # an open quote
        raise InputError(f"--variant {text!r}: {form}, and can't be parsed: {error}") from None
    if not colon:
        raise InputError(f"--variant {text!r}: {form}")
    for override in overrides:
        if "=" not in override:
            raise InputError(
                f"--variant {text!r}: {form}, and {override!r} has no = (quote a value with spaces)"
            )
    return Variant(name.strip(), recipe, overrides)


def plan_runs(chosen: Sequence[Variant], overrides: Sequence[str], shape: Shape) -> list[PlannedRun]:
    """Return all runs, seed by seed, so that an interrupted comparison is complete for the first seeds.

    Raises:
        InputError: a recipe can't be used as it is, or a directory holds something else.
    """
    for variant in chosen:
        _check_own_keys(overrides, "--set ")
        _check_own_keys(variant.overrides, f"--variant {variant.name!r}: ", seed=True)
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
            why = "all variants have the same seeds; set the first one for all (--set seed=…)"
        if why:
            raise InputError(f"{where}{override}: can't be set here: {why}")


def _load(variant: Variant, overrides: Sequence[str]) -> Config:
    try:
        return config_of(variant.recipe, overrides)
    except InputError as error:
        lines = str(error).splitlines()
        raise InputError("\n".join(f"{variant.name}: {line}" for line in lines)) from None


def _planned(variant: Variant, overrides: Sequence[str], seed: int, shape: Shape) -> PlannedRun:
    own = _load(variant, overrides).reinforce
    # an episode has at least one token, so this many updates always exhaust the budget
    most_updates = -(-shape.num_tokens // (own.problems_per_update * own.episodes_per_problem))
    folder = shape.output / variant.name / f"seed-{seed}"
    recipe = _load(
        variant,
        [
            *overrides,
            f"seed={seed}",
            f"output_dir={json.dumps(str(folder))}",
            f"training.num_tokens={shape.num_tokens}",
            f"training.num_updates={most_updates}",
            "evaluation.unit=tokens",
            f"evaluation.every={max(1, shape.num_tokens // shape.num_evaluations)}",
        ],
    )
    return PlannedRun(variant.name, seed, recipe, RunDirectory(folder.expanduser()))


def _progress(run: PlannedRun) -> Literal["done", "begun", "new"]:
    """Return the progress of a run on disk.

    Raises:
        InputError: its directory holds another run, or something else.
    """
    own = run.directory.path / "recipe.yaml"
    if own.is_file():
        if lines := differing_settings(own, run.recipe, may_grow=False):
            head = (
                f"{run.directory.path} holds a run with other settings; name another --output, or remove it:"
            )
            raise InputError("\n".join([head, *lines]))
        return "done" if run.directory.policy.is_dir() else "begun"  # the policy is saved last
    is_begun = run.directory.is_begun()
    try:
        run.directory.check(resume=is_begun, overwrite=False)
    except InputError:  # its advice is for `train`
        path = run.directory.path
        found = ", ".join(sorted(each.name for each in path.iterdir())[:4]) if path.is_dir() else "a file"
        raise InputError(
            f"{path} can't be written to, or is no run of this comparison ({found or 'empty'}); name another "
            "--output, or remove it"
        ) from None
    return "begun" if is_begun else "new"


def unlike_problems(runs: Sequence[PlannedRun]) -> str | None:
    """Return a sentence if the recipes are not evaluated on the same problems."""

    def evaluated_on(run: PlannedRun) -> tuple[object, ...]:
        evaluation = run.recipe.evaluation
        return run.recipe.problems, evaluation.num_problems, evaluation.template, evaluation.few_shot

    first = [run for run in runs if run.seed == runs[0].seed]
    unlike = [run.variant for run in first[1:] if evaluated_on(run) != evaluated_on(first[0])]
    if not unlike:
        return None
    names = ", ".join(unlike)
    return f"{names}: other problems than {first[0].variant}'s; accuracies on them can't be compared directly"


def decoding_of(runs: Sequence[PlannedRun]) -> str:
    """Return the decoding whose accuracy is compared: the first variant's first one."""
    return runs[0].recipe.evaluation.decodings[0]


def _check_decoding(runs: Sequence[PlannedRun]) -> None:
    decoding = decoding_of(runs)
    for run in runs:
        if decoding not in run.recipe.evaluation.decodings:
            raise InputError(
                f"{run.variant}: evaluation.decodings lacks {decoding}, which {runs[0].variant} is compared "
                f"by; use the same for all (--set evaluation.decodings=[{decoding}])"
            )
