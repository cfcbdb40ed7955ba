"""The run's directory around its training: locked, prepared, and complete for a resume."""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from llm_reinforce.config import Config, dump_config, load_config
from llm_reinforce.durable_files import whole_directory
from llm_reinforce.errors import InputError
from llm_reinforce.policy import LanguagePolicy, check_reloads
from llm_reinforce.problems import GivenProblems, Problem, read_problems, write_problems
from llm_reinforce.runs import RunDirectory, environment
from llm_reinforce.training.given import POLICY_FOLDER, PROBLEMS_FOLDER


@contextmanager
def recording(
    directory: RunDirectory,
    config: Config,
    *,
    policy: LanguagePolicy | None,
    problems: GivenProblems,
    device: str,
    resume: bool,
    overwrite: bool,
) -> Iterator[None]:
    """Hold the directory's lock, with the run's recipe, environment and the caller's own objects written
    there.

    Args:
        policy, problems: the caller's own objects, which the recipe refers to by their place in the
            directory.
        resume: continue the run there; with `overwrite`, replace it; with neither, it must be empty.

    Raises:
        InputError: the directory can't be used so, or the run in it has other settings or problems.
    """
    with directory.locked():
        directory.prepare(resume=resume, overwrite=overwrite)
        _write_environment(directory, config.seed, device)
        _write_problems(directory, problems)
        if policy is not None and not (directory.path / POLICY_FOLDER).is_dir():
            with whole_directory(directory.path / POLICY_FOLDER) as folder:
                policy.save(folder)
        directory.write_text("recipe.yaml", dump_config(config))
        yield


def check_same_run(directory: RunDirectory, config: Config) -> None:
    """Check that a run in the directory, if there is one, has these settings; only its length may have grown.

    Raises:
        InputError: other settings differ; one line each.
    """
    file = directory.path / "recipe.yaml"
    if not file.is_file():  # RunDirectory.check reports what that means
        return
    if lines := differing_settings(file, config, may_grow=True):
        raise InputError(
            "\n".join([f"{file}: a run is resumed with its own settings, and these differ:", *lines])
        )


def differing_settings(file: Path, config: Config, *, may_grow: bool = False) -> list[str]:
    """Return the settings in which a run's own recipe differs from the one given, a line each.

    Args:
        file: the run's `recipe.yaml`.
        may_grow: the number of updates, and a budget of tokens, may be larger now.

    Raises:
        InputError: the file can't be read as a recipe.
    """
    before = load_config(file)
    may_differ = {"output_dir"}  # the directory is this one, however it is written
    if may_grow:
        may_differ |= {f"training.{name}" for name in _grown(before, config)}
    own, given = _flat(before.model_dump()), _flat(config.model_dump())
    shared = own.keys() & given.keys()
    return [
        f"  {key}: {own.get(key, 'absent')} in the run, {given.get(key, 'absent')} now"
        for key in sorted((own.keys() | given.keys()) - may_differ)
        if key not in shared or own[key] != given[key]
    ]


def _grown(before: Config, now: Config) -> list[str]:
    """The limits to a run's length that have been raised."""
    grown = ["num_updates"] if before.training.num_updates < now.training.num_updates else []
    own, given = before.training.num_tokens, now.training.num_tokens
    if own is not None and (given is None or own < given):
        grown.append("num_tokens")
    return grown


def _flat(values: object, path: str = "") -> dict[str, object]:
    """Nested mappings, and lists of them, as one mapping of dotted keys; an empty one counts as a value."""
    if isinstance(values, list | tuple) and any(isinstance(each, Mapping) for each in values):
        values = {str(place): each for place, each in enumerate(values)}
    if not isinstance(values, Mapping) or not values:
        return {path: values}
    flat: dict[str, object] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{path}.{key}" if path else key)
    return flat


def _write_environment(directory: RunDirectory, seed: int, device: str) -> None:
    """Write the environment in which the run was started; a resumed run adds its own."""
    file, here = directory.path / "environment.json", environment(seed, device)
    whole: dict[str, Any] = here
    if file.is_file():
        try:
            whole = json.loads(file.read_text(encoding="utf-8"))
            whole["resumed"] = [*whole.get("resumed", []), here]
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(
                f"{file}: not what a run writes ({error}); remove it to resume the run"
            ) from error
    directory.write_text("environment.json", json.dumps(whole, indent=2) + "\n")


def check_can_be_recorded(policy: LanguagePolicy | None, problems: GivenProblems) -> None:
    """Check that the caller's own objects can be written so that they are read back the same.

    Raises:
        InputError: they can't.
    """
    if policy is not None:
        check_reloads(policy)
    with tempfile.TemporaryDirectory() as scratch:
        for given in (problems.train, problems.held_out):
            if given is not None:
                file = Path(scratch) / "problems.jsonl"
                write_problems(file, given)
                for before, after in zip(given, _read_back(file, given), strict=True):
                    if before != after:
                        raise InputError(
                            f"problem {before.id!r}: it can't be recorded in output_dir, because "
                            f"{_difference(before, after)} when it is read back; change it, or leave "
                            "output_dir out"
                        )


def _write_problems(directory: RunDirectory, problems: GivenProblems) -> None:
    """Write the caller's own problems, or check that a resumed run has the same.

    Raises:
        InputError: it has others.
    """
    for name, given in (("train", problems.train), ("held_out", problems.held_out)):
        if given is None:
            continue
        file = directory.path / PROBLEMS_FOLDER / f"{name}.jsonl"
        if not file.is_file():
            write_problems(file, given)
        elif _read_back(file, given) != list(given):
            raise InputError(f"{file}: the run was started with other problems; resume it with these")


def _read_back(file: Path, given: Sequence[Problem]) -> list[Problem]:
    # the recipe has `algebra` for all problems of a file
    return [
        replace(problem, algebra=given[0].algebra) for problem in read_problems(file, allow_doubtful=True)
    ]


def _difference(before: Problem, after: Problem) -> str:
    names = [each.name for each in fields(Problem) if getattr(before, each.name) != getattr(after, each.name)]
    name = names[0]
    return f"its {name} {str(getattr(before, name))[:40]!r} becomes {str(getattr(after, name))[:40]!r}"
