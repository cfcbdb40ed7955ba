"""Write `environment.json`, and compare the environment of a resumed run with the recorded environment."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from llm_reinforce.config import Config
from llm_reinforce.errors import InputError, texts_without_secrets
from llm_reinforce.problems import Problem
from llm_reinforce.rewards import WeightedReward
from llm_reinforce.rewards.source_texts import describe_reward
from llm_reinforce.runs import RunDirectory, environment
from llm_reinforce.runs.environment import changed_by, changes, differences, path_entries

ENVIRONMENT = "environment.json"


def run_record(
    config: Config,
    *,
    problems: Sequence[Problem],
    held_out: Sequence[Problem],
    rewards: Sequence[WeightedReward],
    device: str,
    num_processes: int,
) -> dict[str, Any]:
    """Return the content of `environment.json`. Values of secret environment variables are removed.

    Args:
        config: settings of the run.
        problems: training problems.
        held_out: held-out problems.
        rewards: reward functions, in the order of `config.rewards`.
        device: device of the run.
        num_processes: number of processes that train together.
    """
    sources = (config.problems.train, config.problems.held_out, config.training.warm_start)
    data = [source.data for source in sources if source is not None and source.data is not None]
    models = (config.policy.name_or_path, config.reinforce.kl and config.reinforce.kl.reference)
    given = [*(model for model in models if model), *data]
    directory = str(Path(config.output_dir).expanduser().absolute())  # may not exist yet
    pairs = zip(config.rewards, rewards, strict=True)
    record: dict[str, Any] = texts_without_secrets(
        {
            **environment(config.seed, device, num_processes),
            # a server draws its own random numbers, in an order that depends on its load
            "is_bit_reproducible": config.sampling.server is None,
            "paths": {config.output_dir: directory, **path_entries(given)},
            "data": {"training": digest_of(problems), "held_out": digest_of(held_out)},
            "rewards": {
                str(place): describe_reward(keys.function, reward.function)
                for place, (keys, reward) in enumerate(pairs)
            },
        }
    )
    return record


def digest_of(problems: Iterable[Problem]) -> dict[str, Any]:
    """Return the number of problems and a SHA-256 digest of their contents and order."""
    digest, count = hashlib.sha256(), 0
    for problem in problems:
        values = {each.name: getattr(problem, each.name) for each in fields(problem)}
        values["columns"] = dict(problem.columns)
        # a value that JSON cannot represent is replaced by its type; its `repr` may contain a memory address
        line = json.dumps(values, sort_keys=True, default=lambda value: type(value).__qualname__)
        digest.update(line.encode("utf-8") + b"\n")
        count += 1
    return {"num_problems": count, "sha256": digest.hexdigest()}


def write_record(directory: RunDirectory, here: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Write `environment.json`. A resumed run appends the changes of its environment to the list `resumed`.

    Args:
        directory: directory of the run.
        here: record of this process; see `run_record`.
        say: function that is called with a note if the changes may affect the results of the resumed run.

    Raises:
        InputError: if the file exists but was not written by a run.
    """
    file, whole = directory.path / ENVIRONMENT, dict(here)
    if file.is_file():
        try:
            whole = json.loads(file.read_text(encoding="utf-8"))
            before = {name: value for name, value in whole.items() if name != "resumed"}
            for session in whole.get("resumed", []):
                before = changed_by(before, session)
            whole["resumed"] = [*whole.get("resumed", []), changes(before, here)]
            different = differences(before, here)
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(
                f"{file}: not the environment.json of a run ({error}); delete the file to resume the run"
            ) from error
        if different:
            say(_note(before, here, different))
    directory.write_text(ENVIRONMENT, json.dumps(whole, indent=2) + "\n")


def _note(before: Mapping[str, Any], here: Mapping[str, Any], different: Sequence[str]) -> str:
    """Return a note about the changes of the environment since the run was last trained."""
    before_it, now = before.get("num_processes", here["num_processes"]), here["num_processes"]
    count = ""
    if before_it != now:
        count = (
            f"the run was last trained in {before_it} process{'es' if before_it > 1 else ''} and is resumed "
            f"in {now}; "
        )
    rest = [line for line in different if not line.startswith("num_processes ")]
    also = f"; these entries have changed: {', '.join(rest)}" if rest else ""
    return f"{count}the resumed run may not be equal, bit for bit, to a run that was not interrupted{also}"
