"""What `llm-reinforce compare` runs: kinds of runs, their seeds, and a directory for each run."""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from llm_reinforce.config import Config, load_config
from llm_reinforce.console.messages import note
from llm_reinforce.errors import InputError

if TYPE_CHECKING:
    from llm_reinforce.runs import RunDirectory

NAME = re.compile(r"\w[\w .,+=@()-]{0,59}")  # it is a folder's name and a line of the plot
OWN_KEYS = {  # what compare sets itself, and how it is asked for
    "output_dir": "--output says where the runs go",
    "training.num_tokens": "--tokens is the budget of every run",
    "training.num_updates": "--tokens is what ends every run",
    "evaluation.every": "--evaluations says how often, for all runs alike",
    "evaluation.unit": "--evaluations says how often, for all runs alike",
}


@dataclass(frozen=True, slots=True)
class Kind:
    """One of the things compared: a recipe, and what is changed in it."""

    name: str
    recipe: str
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Shape:
    """What all runs of a comparison share.

    Attributes:
        num_seeds: each kind runs with so many, counted on from the first kind's `seed`.
        num_tokens: the budget of a run, in sampled tokens.
        num_evaluations: of each run, so many at equal distances in tokens, beside that before training.
        output: a run's directory is `output/NAME/seed-N`.
    """

    num_seeds: int
    num_tokens: int
    num_evaluations: int
    output: Path


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run, and how far it is: `done`, `begun` (it goes on) or `new`."""

    kind: str
    seed: int
    recipe: Config
    directory: "RunDirectory"
    progress: Literal["done", "begun", "new"] = "new"

    @property
    def title(self) -> str:
        return f"{self.kind}, seed {self.seed}"


def kinds_of(recipes: Sequence[str], variants: Sequence[str]) -> list[Kind]:
    """The recipes by their files' names; or the variants of the one recipe, each `NAME: key=value …`.

    Raises:
        InputError: variants of several recipes, one that can't be read, or two kinds of one name.
    """
    if variants and len(recipes) > 1:
        raise InputError(
            f"--variant changes one recipe, and there are {len(recipes)} ({', '.join(recipes)}): name one, "
            "and make a variant of it each time"
        )
    kinds = [_variant(recipes[0], text) for text in variants] if variants else []
    kinds = kinds or [Kind(Path(recipe).stem, recipe) for recipe in recipes]
    for index, kind in enumerate(kinds):
        if not NAME.fullmatch(kind.name) or kind.name != kind.name.rstrip(" ."):
            raise InputError(
                f"{kind.name!r} can't name a folder and a line of the plot: take letters, digits, blanks and "
                ". , + = @ ( ) -, at most 60, a letter or a digit first"
            )
        # the folders of a Mac or of Windows know no capitals
        if any(kind.name.casefold() == other.name.casefold() for other in kinds[:index]):
            way_out = "" if variants else ' (--variant "NAME: key=value …" names variants of one recipe)'
            raise InputError(f"two are called {kind.name!r}; give each a name of its own{way_out}")
    return kinds


def _variant(recipe: str, text: str) -> Kind:
    name, colon, settings = text.partition(":")
    form = 'should read "NAME: section.key=value section.key=value"'
    try:
        overrides = tuple(shlex.split(settings))
    except ValueError as error:  # an open quote
        raise InputError(f"--variant {text!r}: {form}, and can't be taken apart: {error}") from None
    if not colon:
        raise InputError(f"--variant {text!r}: {form}")
    for override in overrides:
        if "=" not in override:
            raise InputError(
                f"--variant {text!r}: {form}, and {override!r} has no = (quote a value with blanks)"
            )
    return Kind(name.strip(), recipe, overrides)


def plan_runs(kinds: Sequence[Kind], overrides: Sequence[str], shape: Shape) -> list[PlannedRun]:
    """All runs, seed by seed, so that what is done first is the comparison of fewer seeds.

    Raises:
        InputError: a recipe can't be used as it is, or a directory holds something else.
    """
    for kind in kinds:
        _check_own_keys(overrides, "--set ")
        _check_own_keys(kind.overrides, f"--variant {kind.name!r}: ", seed=True)
    settings = [[*overrides, *kind.overrides] for kind in kinds]
    first = _load(kinds[0], settings[0])
    runs = []
    for seed in range(first.seed, first.seed + shape.num_seeds):
        for kind, own in zip(kinds, settings, strict=True):
            runs.append(_planned(kind, own, seed, shape))
    _tell_unlike_questions(runs[: len(kinds)])
    _check_decoding(runs[: len(kinds)])
    return [replace(run, progress=_progress(run)) for run in runs]


def _check_own_keys(overrides: Sequence[str], where: str, *, seed: bool = False) -> None:
    for override in overrides:
        key = override.partition("=")[0].strip()
        why = OWN_KEYS.get(key)
        if seed and key == "seed":
            why = "all kinds have the same seeds; --set seed=… sets the first of them"
        if why:
            raise InputError(f"{where}{override}: not read here: {why}")


def _load(kind: Kind, overrides: Sequence[str]) -> Config:
    try:
        return load_config(kind.recipe, overrides)
    except InputError as error:
        lines = str(error).splitlines()
        raise InputError("\n".join(f"{kind.name}: {line}" for line in lines)) from None


def _planned(kind: Kind, overrides: Sequence[str], seed: int, shape: Shape) -> PlannedRun:
    from llm_reinforce.runs import RunDirectory

    own = _load(kind, overrides).reinforce
    # an episode has one action at least: so many updates the budget never outlasts
    most_updates = -(-shape.num_tokens // (own.problems_per_update * own.episodes_per_problem))
    folder = shape.output / kind.name / f"seed-{seed}"
    recipe = _load(
        kind,
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
    return PlannedRun(kind.name, seed, recipe, RunDirectory(folder.expanduser()))


def _progress(run: PlannedRun) -> Literal["done", "begun", "new"]:
    """How far a run is on the disk.

    Raises:
        InputError: its directory holds another run, or something else.
    """
    from llm_reinforce.training import differing_settings

    own = run.directory.path / "recipe.yaml"
    if own.is_file():
        if lines := differing_settings(own, run.recipe, may_grow=False):
            head = (
                f"{run.directory.path} holds a run with other settings; give another --output, or remove it:"
            )
            raise InputError("\n".join([head, *lines]))
        return "done" if run.directory.policy.is_dir() else "begun"  # the policy is saved last
    is_begun = run.directory.is_begun()
    try:
        run.directory.check(resume=is_begun, overwrite=False)
    except InputError:  # its ways out are those of `train`
        path = run.directory.path
        found = ", ".join(sorted(each.name for each in path.iterdir())[:4]) if path.is_dir() else "a file"
        raise InputError(
            f"{path} can't be written to, or is no run of this comparison ({found or 'empty'}); give another "
            "--output, or remove it"
        ) from None
    return "begun" if is_begun else "new"


def _tell_unlike_questions(runs: Sequence[PlannedRun]) -> None:
    """Accuracies of different questions can be compared, but somebody should know it."""

    def asked(run: PlannedRun) -> tuple[object, ...]:
        evaluation = run.recipe.evaluation
        return run.recipe.problems, evaluation.num_problems, evaluation.template, evaluation.few_shot

    unlike = [run.kind for run in runs[1:] if asked(run) != asked(runs[0])]
    if unlike:
        note(f"{', '.join(unlike)}: other problems than {runs[0].kind}'s; the accuracies aren't of one thing")


def decoding_of(runs: Sequence[PlannedRun]) -> str:
    """How the answers are chosen whose accuracy is compared: the first kind's first decoding."""
    return runs[0].recipe.evaluation.decodings[0]


def _check_decoding(runs: Sequence[PlannedRun]) -> None:
    decoding = decoding_of(runs)
    for run in runs:
        if decoding not in run.recipe.evaluation.decodings:
            raise InputError(
                f"{run.kind}: evaluation.decodings lacks {decoding}, by which {runs[0].kind} is measured; "
                f"--set evaluation.decodings=[{decoding}] measures all alike"
            )
