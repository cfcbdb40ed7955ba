"""Record a run: lock and prepare its directory, and write everything that is needed to resume the run."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from llm_reinforce.config import Config, dump_config, load_config
from llm_reinforce.durable_files import whole_directory
from llm_reinforce.errors import InputError
from llm_reinforce.policy import LanguagePolicy, check_reloads
from llm_reinforce.problems import GivenProblems, Problem, read_problems, write_problems
from llm_reinforce.runs import RunDirectory
from llm_reinforce.training.given import POLICY_FOLDER, PROBLEMS_FOLDER
from llm_reinforce.training.run_record import write_record

# settings that may differ when a run is resumed: they do not change the distribution of the results
FREE = (
    "training.trackers",
    "training.process_timeout",
    "sampling.cuda_graphs",
    *(f"sampling.server.{name}" for name in ("url", "sync", "directory", "timeout", "tolerance")),
)


@contextmanager
def recording(
    directory: RunDirectory,
    config: Config,
    *,
    policy: LanguagePolicy | None,
    problems: GivenProblems,
    record: Mapping[str, Any],
    resume: bool,
    overwrite: bool,
    say: Callable[[str], None],
) -> Iterator[None]:
    """Hold the lock of a run's directory within the context, and write the files that are needed to resume.

    The recipe, the environment, and the objects passed by the caller are written when the context is entered.

    Args:
        directory: directory of the run.
        config: settings of the run.
        policy: policy object passed by the caller, which is saved in the directory. None: the settings name
            the policy.
        problems: problem objects passed by the caller, which are saved in the directory.
        record: content of `environment.json`; see `run_record`.
        resume: continue the run in the directory.
        overwrite: replace the run in the directory.
        say: function that shows a message to the user.

    Raises:
        InputError: if another process holds the lock, if the directory cannot be used with these options (see
            `RunDirectory.check`), or if the run to resume was started with other problems.
    """
    with directory.locked():
        directory.prepare(resume=resume, overwrite=overwrite)
        write_record(directory, record, say)
        _write_problems(directory, problems)
        if policy is not None and not (directory.path / POLICY_FOLDER).is_dir():
            with whole_directory(directory.path / POLICY_FOLDER) as folder:
                policy.save(folder)
        directory.write_text("recipe.yaml", dump_config(config))
        yield


def check_same_run(directory: RunDirectory, config: Config) -> None:
    """Check that the run in the directory, if there is one, was started with the settings in `config`.

    `num_updates`, `num_tokens` and `stop_at` may be larger in `config` than in the settings of the run, and
    the settings in `FREE` may differ. If `config` has no `chat_template_date`, the date of the run is used.

    Raises:
        InputError: if settings differ. The message has one line per setting.
    """
    file = directory.path / "recipe.yaml"
    if not file.is_file():  # `RunDirectory.check` reports the missing file
        return
    if lines := differing_settings(file, config, may_grow=True):
        raise InputError(
            "\n".join(
                [
                    f"{file}: a run can only be resumed with the settings with which it was started; use "
                    "these settings, or start a new run in another output_dir. Differences:",
                    *lines,
                ]
            )
        )


def differing_settings(file: Path, config: Config, *, may_grow: bool = False) -> list[str]:
    """Compare the recipe of a run with other settings, and return one line of text per difference.

    Args:
        file: `recipe.yaml` of the run.
        config: settings that are compared with the recipe.
        may_grow: ignore a larger number of updates, a larger budget of tokens, a higher target accuracy, and
            different values of the settings in `FREE`.

    Raises:
        InputError: if the file is not a valid recipe.
    """
    before = load_config(file.parent)
    may_differ = {"output_dir"}  # different paths may lead to the same directory
    if config.policy.chat_template_date is None:
        may_differ.add("policy.chat_template_date")  # the date of the run is used
    if may_grow:
        may_differ |= {*(f"training.{name}" for name in _raised_limits(before, config)), *FREE}
    own, given = flattened(before.model_dump()), flattened(config.model_dump())
    shared = own.keys() & given.keys()
    return [
        f"  {key}: {own.get(key, 'absent')} in the run, {given.get(key, 'absent')} now"
        for key in sorted((own.keys() | given.keys()) - may_differ)
        if key not in shared or own[key] != given[key]
    ]


def with_recorded_date(directory: RunDirectory, config: Config) -> Config:
    """Return the settings with the chat-template date that is recorded for the run in the directory.

    The settings are returned unchanged if they contain a date, or if the directory contains no run with a
    date.
    """
    if config.policy.chat_template_date is not None or not (directory.path / "recipe.yaml").is_file():
        return config
    return with_date(config, load_config(directory.path).policy.chat_template_date)


def with_date(config: Config, date: str | None) -> Config:
    """Return the settings with `policy.chat_template_date` set to `date`; unchanged if `date` is None."""
    if date is None:
        return config
    return config.model_copy(update={"policy": config.policy.model_copy(update={"chat_template_date": date})})


def _raised_limits(before: Config, now: Config) -> list[str]:
    """Return the names of the settings that limit the length of a run and have a higher limit in `now`.

    None is higher than any number, because it means that there is no limit.
    """
    grown = []
    for name in ("num_updates", "num_tokens", "stop_at"):
        own, given = getattr(before.training, name), getattr(now.training, name)
        if own is not None and (given is None or own < given):
            grown.append(name)
    return grown


def flattened(values: object, path: str = "") -> dict[str, object]:
    """Flatten nested mappings, and lists of mappings, to one mapping with dotted keys.

    The index of a list entry becomes a part of the key, such as "rewards.0.weight". An empty mapping is kept
    as a value.
    """
    if isinstance(values, list | tuple) and any(isinstance(each, Mapping) for each in values):
        values = {str(place): each for place, each in enumerate(values)}
    if not isinstance(values, Mapping) or not values:
        return {path: values}
    flat: dict[str, object] = {}
    for key, value in values.items():
        flat |= flattened(value, f"{path}.{key}" if path else key)
    return flat


def check_can_be_recorded(policy: LanguagePolicy | None, problems: GivenProblems) -> None:
    """Check that the policy and the problems passed by the caller do not change when saved and loaded again.

    Raises:
        InputError: if the policy cannot be saved, or if the policy or a problem changes when it is saved and
            loaded.
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
                            f"problem {before.id!r} can't be recorded in output_dir, because "
                            f"{_difference(before, after)} when the written file is read back; change the "
                            "problem, or remove output_dir"
                        )


def _write_problems(directory: RunDirectory, problems: GivenProblems) -> None:
    """Write the problems passed by the caller, or check that a resumed run was started with these problems.

    Raises:
        InputError: if the resumed run has other problems.
    """
    for name, given in (("train", problems.train), ("held_out", problems.held_out)):
        if given is None:
            continue
        file = directory.path / PROBLEMS_FOLDER / f"{name}.jsonl"
        if not file.is_file():
            write_problems(file, given)
        elif _read_back(file, given) != list(given):
            raise InputError(
                f"{file}: the run was started with other problems, which are in this file; resume the run "
                "with these problems, or use load_recipe(output_dir).train(resume=True), which reads the file"
            )


def _read_back(file: Path, given: Sequence[Problem]) -> list[Problem]:
    # the file does not contain `algebra`, because the recipe sets it for all problems of the file
    return [
        replace(problem, algebra=given[0].algebra) for problem in read_problems(file, allow_doubtful=True)
    ]


def _difference(before: Problem, after: Problem) -> str:
    names = [each.name for each in fields(Problem) if getattr(before, each.name) != getattr(after, each.name)]
    name = names[0]
    return f"its {name} {str(getattr(before, name))[:40]!r} becomes {str(getattr(after, name))[:40]!r}"
