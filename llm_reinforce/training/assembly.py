"""Build the training loop of a run from its settings. Cheap checks are made before a model is loaded."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from llm_reinforce.config import ADAPTER_LEARNING_RATE, LEARNING_RATE, Config, RandomInitConfig
from llm_reinforce.console.run_display import Display, Silent
from llm_reinforce.console.text import MAX_PROMPT, visible
from llm_reinforce.errors import InputError, errors_in
from llm_reinforce.policy import (
    LanguagePolicy,
    check_bitsandbytes,
    check_completions_fit,
    check_prompts,
    check_prompts_fit,
    describe_policy,
    first_prompt,
    num_unknown_prompts,
    policy_from_config,
)
from llm_reinforce.problems import (
    GivenProblems,
    ProblemSplit,
    problems_from_config,
)
from llm_reinforce.rewards import WeightedReward, check_rewards, reward_from_config
from llm_reinforce.runs import RunDirectory
from llm_reinforce.server import SamplingServer, server_directory
from llm_reinforce.training.data_parallel import (
    check_sharded_settings,
    describe_processes,
    prepare_launch,
)
from llm_reinforce.training.loop import TrainingLoop
from llm_reinforce.training.warm_start import target_of

NUM_LOOKED_AT = 1_000  # number of training prompts that are searched for unknown characters


def build_loop(
    config: Config,
    *,
    policy: LanguagePolicy | None = None,
    problems: GivenProblems | None = None,
    rewards: Sequence[WeightedReward | None] = (),
    run_directory: RunDirectory | None = None,
    display: Display | None = None,
) -> TrainingLoop:
    """Return the training loop that the settings describe.

    Args:
        config: all settings of the run.
        policy: policy to train instead of the policy in the settings.
        problems: problems to use instead of those in the settings.
        rewards: one entry per reward in the settings. An entry is the function to use, or None to load the
            function that the settings name. Empty: load all functions that the settings name.
        run_directory: directory in which the run is recorded. None: the run is not recorded.
        display: display of the run. During this call, it shows one line about the problems, one line about
            the policy, the first prompt with its special tokens, and notes about the prompts.

    Raises:
        InputError: if the processes were launched with unsupported settings, or if the problems, a reward
            function or the policy cannot be loaded. Also raised if a prompt cannot be used: it does not fit
            into the context of the policy, it contains characters that `policy.random_init.alphabet` lacks,
            it ends in an end token, or the chat template changes it.
    """
    display = display or Silent()
    prepare_launch(config.training.mixed_precision)
    check_sharded_settings(config)
    if config.training.optimizer == "adamw_8bit":
        check_bitsandbytes("training.optimizer: adamw_8bit")
    split = problems_from_config(config, display.say, problems or GivenProblems())
    with errors_in("rewards"):
        given = rewards or [None] * len(config.rewards)
        functions = tuple(
            own or reward_from_config(settings) for own, settings in zip(given, config.rewards, strict=True)
        )
        check_rewards(functions, split.train)
    if config.policy.random_init is not None:
        has_warm_start = config.training.warm_start is not None and not split.demonstrations
        _check_alphabet(config.policy.random_init, split, has_warm_start, display.say)
    display.say(f"problems: {len(split.train):,} to train on, {len(split.held_out):,} held out")
    if policy is None:
        policy = policy_from_config(config.policy, seed=config.seed)
        _note_low_rate_of_adapter(policy, config, display.say)
    display.say(f"policy: {describe_policy(policy)}")
    notes = []
    for part in (split.train, split.held_out):
        check_prompts_fit(policy, part, config.sampling.max_new_tokens)
        notes += check_prompts(policy, part)
    if config.training.warm_start is not None:
        with errors_in("training.warm_start"):
            examples = split.demonstrations or split.train
            targets = [policy.encode_completion(target_of(problem)) for problem in examples]
            check_completions_fit(policy, examples, targets)
    if split.train:
        display.say(f"first prompt: {visible(first_prompt(policy, split.train), MAX_PROMPT)}")
    for note in dict.fromkeys(notes):
        display.say(note)
    looked_at = split.train[:NUM_LOOKED_AT]
    if num_unknown := num_unknown_prompts(policy, looked_at):
        display.say(
            f"{num_unknown:,} of the first {len(looked_at):,} training prompts contain characters that the "
            "tokenizer does not know; the policy reads its unknown token instead of each of these "
            "characters"
        )
    loop = TrainingLoop(
        policy,
        split.train,
        config.training,
        rewards=functions,
        reinforce=config.reinforce,
        sampling=config.sampling,
        held_out=split.held_out,
        evaluation=config.evaluation,
        demonstrations=split.demonstrations,
        run_directory=run_directory,
        display=display,
        seed=config.seed,
        server=server_from_config(config),
    )
    display.say(f"device: {describe_processes(loop.accelerator)}")
    return loop


def server_from_config(config: Config) -> SamplingServer | None:
    """Return the server that samples the episodes of a run; None if `sampling.server` is not set.

    The weights for the server are written to one of these directories:

    - a subdirectory of `sampling.server.directory`, if this setting is set. The name of the subdirectory
      depends on `output_dir`. Without `output_dir`, the subdirectory is temporary.
    - `OUTPUT_DIR.server`, next to `output_dir`, if only `output_dir` is set.
    - a temporary directory, if neither is set.
    """
    settings = config.sampling.server
    if settings is None:
        return None
    directory = None
    if "output_dir" in config.model_fields_set:
        directory = server_directory(config.output_dir)
        if settings.directory is not None:
            # a run deletes all older weights in its directory, so runs must not share a directory
            digest = hashlib.sha256(str(directory).encode()).hexdigest()[:8]
            directory = Path(settings.directory).expanduser() / f"{directory.name}-{digest}"
    is_half = config.policy.dtype != "float32" or config.training.mixed_precision != "no"
    temperature = config.sampling.temperature
    return SamplingServer(settings, temperature=temperature, is_half=is_half, directory=directory)


def _note_low_rate_of_adapter(policy: LanguagePolicy, config: Config, say: Callable[[str], None]) -> None:
    """Say so if an adapter in a directory is trained with the default learning rate for all weights.

    The default depends only on `policy.lora`, and the settings do not show that the directory
    `policy.name_or_path` contains an adapter.
    """
    is_adapter = hasattr(policy.model, "peft_config") and config.policy.lora is None
    if is_adapter and "learning_rate" not in config.training.model_fields_set:
        say(
            "note: an adapter is trained with the default learning rate for all weights, "
            f"{LEARNING_RATE:g}; adapters usually need a higher one, such as "
            f"training.learning_rate={ADAPTER_LEARNING_RATE:g}"
        )


def _check_alphabet(
    shape: RandomInitConfig, problems: ProblemSplit, has_warm_start: bool, say: Callable[[str], None]
) -> None:
    """Check that the alphabet of a policy with random weights contains the characters of the problems.

    The alphabet must contain all characters of the prompts. With a warm start on the problems, it must also
    contain all characters of the texts on which the warm start trains; see `target_of`. Answers on which no
    warm start trains may contain other characters. `say` is called with the number of these answers.

    Raises:
        InputError: if the alphabet lacks a character that it must contain.
    """
    known = set(shape.alphabet)
    for problem in (*problems.train, *problems.held_out):
        if foreign := sorted(set(problem.prompt) - known):
            where = f"the prompt {problem.prompt!r}"
        elif has_warm_start and (foreign := sorted(set(target_of(problem)) - known)):
            where = f"the solution or answer of {problem.prompt!r}, on which the warm start trains"
        else:
            continue
        raise InputError(
            f"policy.random_init.alphabet lacks {', '.join(map(repr, foreign))}, found in {where}; "
            "add the missing characters, or change the problems"
        )
    unwritable = sum(not known.issuperset(problem.answer or "") for problem in problems.train)
    if unwritable:
        say(
            f"{unwritable:,} training problems have an answer with characters that "
            "policy.random_init.alphabet lacks, so the policy cannot write these answers"
        )
