"""Settings of several updates per batch: derived defaults, named variants, YAML, overrides and keywords."""

from pathlib import Path

import pytest

from llm_reinforce.config import VARIANTS, ClipConfig, ImportanceConfig, ReinforceConfig, load_config
from llm_reinforce.config.keywords import config_from_keywords

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
