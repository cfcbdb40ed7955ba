"""Conversion of Python keyword arguments to a Config, which is validated like a recipe."""

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel

from llm_reinforce.config.recipe_file import adapt_document
from llm_reinforce.config.run_config import Config
from llm_reinforce.config.section import Section
from llm_reinforce.config.strict_yaml import Document, KeyPath, validate
from llm_reinforce.errors import InputError, nearest

CALLER = "ReinforceTrainer"  # prefix of messages, used instead of the file name of a recipe

OF_TRL = {  # arguments of TRL's trainers, and what to use instead in this toolkit
    "model": "use policy, the first argument",
    "processing_class": "use policy=(model, tokenizer)",
    "tokenizer": "use policy=(model, tokenizer)",
    "train_dataset": "use problems, the second argument",
    "eval_dataset": "use held_out",
    "reward_funcs": "use rewards, the third argument",
    "reward_weights": "use rewards={function: weight}",
    "reward_processing_classes": "instead, write a reward function that calls the model",
    "args": "use config, or keyword arguments",
    "peft_config": "use lora={'rank': …, 'alpha': …}",
    "callbacks": "write a loop over trainer.updates() instead",
    "num_generations": "use episodes_per_problem",
    "max_steps": "use num_updates",
    "num_train_epochs": "use num_updates, the number of optimizer steps",
    "per_device_train_batch_size": "use problems_per_update",
    "gradient_accumulation_steps": "use training={'micro_batch_tokens': …}",
    "max_completion_length": "use max_new_tokens",
    "max_prompt_length": "this argument is not needed, because prompts are never truncated",
    "warmup_steps": "use training={'num_warmup_updates': …}",
    "lr": "use learning_rate",
    "lr_scheduler_type": "use training={'schedule': …}",
    "beta": "use kl={'coefficient': …, 'estimator': 'k3'}",
    "ref_model": "use kl={'coefficient': …, 'reference': …}",
    "sync_ref_model": "use kl={'coefficient': …, 'refresh_every': …}",
    "ref_model_sync_steps": "use kl={'coefficient': …, 'refresh_every': …}",
    "mask_truncated_completions": "use truncated='mask'",
    "multi_objective_aggregation": "use standardize_rewards",
    "epsilon": "use clip={'low': …, 'high': …} and updates_per_batch",
    "epsilon_high": "use clip={'high': …} and updates_per_batch",
    "num_iterations": "use updates_per_batch; each episode is used in only one update",
    "steps_per_generation": "use updates_per_batch",
    "importance_sampling_level": "use importance={'level': …}",
    "loss_type": "use variant",
    "scale_rewards": "use standardize",
    "bf16": "use mixed_precision='bf16'",
    "fp16": "use mixed_precision='fp16'",
    "logging_steps": "this argument is not needed, because every update is logged",
    "save_steps": "use checkpoint_every",
    "eval_steps": "use evaluation={'every': …}",
    "report_to": "use trackers=['tensorboard'], or the names of other trackers",
}


def config_from_keywords(
    base: Config | None, described: Mapping[str, Any], keywords: Mapping[str, Any]
) -> Config:
    """Return a Config built from a base Config, from objects passed by the caller, and from keywords.

    A keyword argument has the name of a section, as in `training={"num_updates": 10}` or
    `training=TrainingConfig(…)`, or the name of a key in a section, as in `num_updates=10`. Keyword arguments
    override `described`, and `described` overrides `base`. If a setting of `base` is not valid together with
    the other settings, its default is used, and a warning is issued.

    Args:
        base: settings to start from; None to start from the defaults.
        described: settings derived from objects that the caller passed, such as the model, as a mapping from
            top-level keys to values.
        keywords: keyword arguments that the caller passed.

    Raises:
        InputError: if a keyword is unknown or ambiguous, or if a value is invalid. The message has one line
            for each error.
    """
    data: dict[str, Any] = base.model_dump(mode="json", exclude_unset=True) if base is not None else {}
    changed = [(key, *path) for key, value in described.items() for path in _paths(_plain(value))]
    for key, value in described.items():
        # a policy or a data set replaces that of `base`, but a learning rate does not replace other settings
        data[key] = {**data.get(key, {}), **_plain(value)} if key == "training" else _plain(value)
    problems = []
    plain = {name: _plain(value) for name, value in keywords.items()}
    for name, value in plain.items():
        if name in Config.model_fields:
            is_section = isinstance(value, Mapping) and isinstance(data.get(name), Mapping)
            data[name] = {**data[name], **value} if is_section else value
            changed += [(name, *path) for path in _paths(value)]
            continue
        sections = sections_with(name)
        if len(sections) != 1:
            problems.append(f"{CALLER}: {_keyword_error(name, sections)}")
            continue
        if isinstance(same := plain.get(sections[0]), Mapping) and name in same:
            problems.append(
                f"{CALLER}: {name} is given twice, as an argument and in {sections[0]}; remove one of the two"
            )
            continue
        section = data.setdefault(sections[0], {})
        section[name] = value
        changed += [(sections[0], name, *path) for path in _paths(value)]
    if problems:
        raise InputError("\n".join(problems))
    document = Document(CALLER, data, changed=changed)
    return validate(Config, document) if base is None else validate(Config, document, adapt_document)


def sections_with(key: str) -> list[str]:
    """Return the names of the sections of a Config that have a key with this name.

    If the section `policy` or `problems` has this key, only this section is returned. For example,
    `template=` sets `problems.template`, and not `evaluation.template`, whose default is `problems.template`.
    """
    found = [section for section, known in _keys_of_sections() if key == known]
    return [section for section in found if section in ("policy", "problems")] or found


def _keys_of_sections() -> Iterator[tuple[str, str]]:
    for name, field in Config.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, Section) and name != "rewards":
                yield from ((name, key) for key in kind.model_fields)


def _keyword_error(keyword: str, sections: list[str]) -> str:
    if sections:
        options = " or ".join(f"{section}={{{keyword!r}: …}}" for section in sections)
        return f"{keyword} is a key of the sections {' and '.join(sections)}; write {options}"
    if keyword in OF_TRL:
        return f"unknown argument {keyword!r}; {OF_TRL[keyword]}"
    known = [*Config.model_fields, *(key for _, key in _keys_of_sections())]
    return f"unknown argument {keyword!r}{nearest(keyword, known)}"


def _paths(value: Any) -> Iterator[KeyPath]:
    """Yield the paths of all values in a nested mapping. If the argument is not a mapping, yield ()."""
    if not isinstance(value, Mapping):
        yield ()
        return
    for key, inner in value.items():
        yield from ((key, *path) for path in _paths(inner))


def _plain(value: Any) -> Any:
    """Replace every settings object in `value` by a dict of the keys that were set explicitly."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value
