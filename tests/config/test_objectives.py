"""Settings of several updates per batch: derived defaults, named variants, YAML, overrides and keywords."""

import re
from pathlib import Path
from typing import Any

import pytest

from llm_reinforce.config import (
    VARIANTS,
    ClipConfig,
    ImportanceConfig,
    ReinforceConfig,
    dump_config,
    load_config,
)
from llm_reinforce.config.keywords import config_from_keywords
from llm_reinforce.errors import InputError

RECIPE = "policy: {random_init: {}}\nproblems: {generate: {}}\nsampling: {max_new_tokens: 4}\n"
DESCRIBED = {"policy": {"random_init": {}}, "problems": {"generate": {}}, "sampling": {"max_new_tokens": 4}}


def test_several_updates_per_batch_are_clipped_unless_there_are_weights() -> None:
    assert ReinforceConfig().clip is None
    assert ReinforceConfig(updates_per_batch=2).clip == ClipConfig(form="ppo", low=0.2, high=0.2)
    assert ReinforceConfig(updates_per_batch=2, clip=None).clip == ClipConfig()
    weighted = ReinforceConfig(updates_per_batch=2, importance=ImportanceConfig(level="token"))
    assert (weighted.clip, weighted.importance.limit, weighted.importance.beyond_limit) == (
        None,
        2.0,
        "truncate",
    )


def test_correction_can_be_turned_off(tmp_path: Path) -> None:
    config = config_from_keywords(None, DESCRIBED, {"updates_per_batch": 2, "clip": False})
    assert config.reinforce.clip is False
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_config(config))
    assert load_config(file) == config
    file.write_text(RECIPE)
    assert load_config(file, ["reinforce.updates_per_batch=2", "reinforce.clip=false"]) == config.model_copy(
        update={"output_dir": "runs/recipe"}
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"variant": "grpo"}, "clip: the variant grpo clips the ratios; remove this setting or the variant"),
        (
            {"importance": {"level": "token"}},
            "clip: has no effect if `importance` is set; remove this setting",
        ),
    ],
)
def test_correction_that_is_turned_off_in_vain_is_rejected(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ReinforceConfig(**{"updates_per_batch": 2, "clip": False, **given})


@pytest.mark.parametrize("variant", VARIANTS)
def test_variant_sets_its_keys(variant: str) -> None:
    keys = dict(VARIANTS[variant])
    clip = keys.pop("clip", None)
    one, several = (ReinforceConfig(variant=variant, updates_per_batch=number) for number in (1, 2))
    for settings in (one, several):
        assert {key: getattr(settings, key) for key in keys} == keys
    assert one.clip is None
    assert several.clip == ClipConfig(**(clip or {}))


def test_bounds_of_a_variant_can_be_changed() -> None:
    for high in ({"high": 0.3}, ClipConfig(high=0.3)):
        assert ReinforceConfig(variant="dapo", updates_per_batch=2, clip=high).clip.high == 0.3
    low = ReinforceConfig(variant="cispo", updates_per_batch=2, clip={"low": 0.5})
    assert low.clip == ClipConfig(form="cispo", low=0.5, high=4.0)


def test_variant_can_be_replaced_by_another_one() -> None:
    base = config_from_keywords(None, DESCRIBED, {"variant": "grpo", "updates_per_batch": 2})
    changed = config_from_keywords(base, {}, {"variant": "rloo"}).reinforce
    assert (changed.baseline, changed.standardize, changed.denominator) == (
        "leave_one_out",
        False,
        "episodes",
    )


def test_yaml_overrides_and_keywords_give_equal_settings(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE)
    given = load_config(file, ["reinforce.updates_per_batch=4", "reinforce.importance.level=per_decision"])
    file.write_text(RECIPE + "reinforce: {updates_per_batch: 4, importance: {level: per_decision}}\n")
    keywords = {"updates_per_batch": 4, "importance": {"level": "per_decision"}}
    expected = config_from_keywords(None, DESCRIBED, keywords).reinforce
    assert given.reinforce == load_config(file).reinforce == expected
    assert expected.importance == ImportanceConfig(level="per_decision")


def test_numbers_of_updates_are_rounded_up_to_whole_batches() -> None:
    settings = ReinforceConfig(updates_per_batch=4)
    assert settings.problems_of_update == 4
    assert [settings.in_whole_batches(number) for number in (1, 4, 5)] == [4, 4, 8]


OF_BATCHES = {
    "truncated": {"penalty": 2.0, "from": 2},
    "kl": {"coefficient": 0.1, "estimator": "k3", "refresh_every": 5},
    "entropy_target": {"value": 0.5},
    "curriculum": {"pools": {"hard": 2.0}},
    "refill": 2,
    "standardize_rewards": True,
}


def test_settings_of_batches_are_written_and_read_again(tmp_path: Path) -> None:
    config = config_from_keywords(None, DESCRIBED, OF_BATCHES)
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_config(config))
    assert load_config(file) == config
    assert config.reinforce.length_penalty.from_ == 2
    changed = load_config(file, ["reinforce.truncated.from=3", "reinforce.curriculum.pools=null"]).reinforce
    assert (changed.length_penalty.from_, changed.length_penalty.penalty) == (3, 2.0)
    assert changed.curriculum.pools is None
    assert load_config(file, ["reinforce.truncated=mask"]).reinforce.length_penalty is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"truncated": {"from": 4}},
            "reinforce.truncated.from: should be below 4 (the value of sampling.max_new_tokens), not 4",
        ),
        (
            {"truncated": {"from": 2, "form": 3}},
            "reinforce.truncated.form: unknown key; did you mean 'from'?",
        ),
        ({"truncated": "maks"}, "did you mean 'mask'?"),
        (
            {"kl": {"coefficient": 0.1, "reference": "other", "refresh_every": 3}},
            "reinforce.kl.refresh_every: would replace the reference policy by the current policy, but",
        ),
        (
            {"entropy_target": {"value": 1.0}, "entropy_coefficient": 0.5},
            "reinforce.entropy_target.max_coefficient: should be at least 0.5 (the value of",
        ),
        (
            {"curriculum": {"pools": {"easy_above": 0.1}}},
            "reinforce.curriculum.pools.easy_above: should be at least 0.25 (the value of hard_below), not",
        ),
        (
            {"curriculum": {"pools": {"hard_below": 0.8}}},
            "reinforce.curriculum.pools.easy_above: should be at least 0.8 (the value of hard_below), not",
        ),
        (
            {"refill": 2, "episodes_per_problem": 1, "baseline": "none"},
            "reinforce.refill: refill compares episodes of one problem; set episodes_per_problem to at least",
        ),
        (
            {"standardize_rewards": True, "baseline": "greedy"},
            "reinforce.standardize_rewards: standardize_rewards can't be used with baseline: greedy",
        ),
        (
            {"stop_at": 0.5, "num_held_out": 0},
            "training.stop_at: needs held-out problems, but problems.num_held_out is 0",
        ),
        (
            {"training": {"warm_start": {"epochs": 1, "num_updates": 2}}},
            "training.warm_start.num_updates: num_updates and epochs cannot both be set",
        ),
    ],
    ids=str,
)
def test_settings_of_batches_that_conflict_are_rejected(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        config_from_keywords(None, DESCRIBED, given)
