"""Adaptation of a recipe to settings that the user changes, and errors that follow from misspelled keys."""

import warnings
from pathlib import Path

import pytest

from llm_reinforce.config import load_config
from llm_reinforce.config.keywords import config_from_keywords
from llm_reinforce.errors import InputError

RECIPE = """\
policy: {random_init: {alphabet: "0123456789+="}}
problems:
  generate: {operations: [addition], digits: [2], form: "{expression}="}
  num_held_out: 500
reinforce: {baseline: moving_average, moving_average_decay: 0.8}
training: {num_updates: 100, num_warmup_updates: 10, schedule: cosine}
evaluation: {num_problems: 300}
sampling: {max_new_tokens: 4}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "sums.yaml"
    file.write_text(RECIPE)
    return file


@pytest.mark.parametrize(
    ("override", "noted"),
    [
        ("training.num_updates=2", ["training.num_warmup_updates"]),
        ("training.schedule=constant", ["training.num_warmup_updates"]),
        ("reinforce.baseline=none", ["reinforce.moving_average_decay"]),
        ("reinforce.variant=grpo", ["reinforce.baseline", "reinforce.moving_average_decay"]),
        ("problems.num_held_out=50", ["evaluation.num_problems"]),
        ("policy.name_or_path=somewhere", ["policy.random_init"]),
        ("problems.train={data: sums.jsonl}", ["problems.generate"]),
        ("problems.train.data=sums.jsonl", ["problems.generate"]),
        ("problems.generate.operands=[0, 19]", ["problems.generate.digits"]),
    ],
)
def test_settings_that_do_not_fit_an_override_get_their_defaults(
    recipe: Path, override: str, noted: list[str]
) -> None:
    with pytest.warns(UserWarning, match="of the recipe") as caught:
        load_config(recipe, [override])
    assert [str(each.message).split()[0].rstrip(":") for each in caught] == noted


@pytest.mark.parametrize(
    ("reinforce", "override", "noted"),
    [
        ("updates_per_batch: 4, clip: {low: 0.1}", "updates_per_batch=1", "clip"),
        ("updates_per_batch: 4, clip: false", "updates_per_batch=1", "clip"),
        ("variant: grpo, updates_per_batch: 4, clip: {high: 0.3}", "updates_per_batch=1", "clip"),
        ("updates_per_batch: 4, clip: {low: 0.1}", "importance.level=token", "clip"),
        ("updates_per_batch: 4, importance: {level: token}", "clip.low=0.1", "importance"),
        ("updates_per_batch: 4, importance: {level: token}", "clip=false", "importance"),
        ("baseline: value, value: {hidden_size: 8}", "baseline=none", "value"),
    ],
)
def test_sections_of_the_objective_that_do_not_fit_an_override_are_removed(
    tmp_path: Path, reinforce: str, override: str, noted: str
) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(
        "policy: {random_init: {}}\nproblems: {generate: {}}\nsampling: {max_new_tokens: 4}\n"
        f"reinforce: {{{reinforce}}}\n"
    )
    with pytest.warns(UserWarning, match=f"^reinforce.{noted}.* of the recipe"):
        changed = load_config(file, [f"reinforce.{override}"]).reinforce
    assert noted not in changed.model_fields_set


def test_default_of_the_warm_start_fits_its_number_of_updates(recipe: Path) -> None:
    """The default of 10 warmup updates is not a setting of the recipe or of the user."""
    recipe.write_text(RECIPE.replace("training: {", "training: {warm_start: {num_updates: 80}, "))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warm_start = load_config(recipe, ["training.warm_start.num_updates=3"]).training.warm_start
    assert warm_start is not None
    assert warm_start.num_warmup_updates == 3
    with pytest.raises(InputError, match=r"should be at most 3 \(the value of num_updates\), not 4"):
        load_config(recipe, ["training.warm_start.num_updates=3", "training.warm_start.num_warmup_updates=4"])


def test_setting_whose_default_does_not_fit_either_is_named_with_its_value(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace('alphabet: "', 'hidden_size: 192, alphabet: "'))
    with pytest.raises(
        InputError, match=r"sums.yaml:1: .*hidden_size: .* 14 \(2 x num_heads\), not 192; to change it, add"
    ):
        load_config(recipe, ["policy.random_init.num_heads=7"])


def test_override_to_add_is_shown(recipe: Path) -> None:
    with pytest.raises(
        InputError, match=r"; to change it, add --set training\.schedule=constant_with_warmup$"
    ):
        load_config(recipe, ["training.num_tokens=1000"])


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["trainig.num_updates=3", "trainig.learning_rate=1e-3"], "trainig"),  # 10 warmup updates
        (["policy.nam_or_path=x"], "policy.nam_or_path"),  # conflicts with random_init
        (["problems.generat.operands=[0, 9]"], "problems.generat"),  # replaces digits
        (["reinforce.baselin=none"], "reinforce.baselin"),  # does not use moving_average_decay
    ],
)
def test_misspelled_override_causes_no_error_about_settings_of_the_recipe(
    recipe: Path, overrides: list[str], key: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError) as caught:
            load_config(recipe, overrides)
    assert {line.split(": ")[1] for line in str(caught.value).splitlines()} == {key}


def test_settings_of_the_user_are_never_changed(recipe: Path) -> None:
    overrides = ["training.num_updates=2", "training.num_warmup_updates=5"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(
            InputError, match=r"training.num_warmup_updates: should be at most 2 \(the value of num_updates"
        ):
            load_config(recipe, overrides)
        with pytest.raises(InputError, match="max_new_tokens: 900 tokens leave no room"):
            load_config(recipe, ["sampling.max_new_tokens=900"])
        with pytest.raises(InputError, match="cosine decays to 0 over num_updates"):
            load_config(recipe, ["training.num_tokens=1000"])
        load_config(recipe, ["training.num_updates=20"])


def test_invalid_recipes_are_not_adapted(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("num_warmup_updates: 10", "num_warmup_updates: 200"))
    with pytest.raises(InputError, match=r"sums.yaml:6: training.num_warmup_updates: should be at most"):
        load_config(recipe, ["seed=1"])


def test_keywords_adapt_a_config(recipe: Path) -> None:
    with pytest.warns(UserWarning, match=r"training.num_warmup_updates: 10 of the recipe does not fit"):
        config = config_from_keywords(load_config(recipe), {}, {"num_updates": 2})
    assert (config.training.num_updates, config.training.num_warmup_updates) == (2, 0)
    with pytest.warns(UserWarning, match=r"policy.random_init of the recipe is not used"):
        config = config_from_keywords(load_config(recipe), {}, {"policy": {"name_or_path": "somewhere"}})
    assert config.policy.name_or_path == "somewhere"
    with pytest.raises(InputError) as misspelled:
        config_from_keywords(load_config(recipe), {}, {"policy": {"nam_or_path": "somewhere"}})
    assert len(str(misspelled.value).splitlines()) == 1
    with pytest.raises(InputError, match=r"should be at most 2 \(the value of num_updates"):
        config_from_keywords(
            load_config(recipe), {}, {"training": {"num_updates": 2, "num_warmup_updates": 10}}
        )


@pytest.mark.parametrize(
    ("text", "errors"),
    [
        (
            "polcy: {name_or_path: x}\nproblems: {generate: {}}",
            ["polcy: unknown key; did you mean 'policy'?"],
        ),
        (
            "policy: {name_or_pth: x}\nproblems: {generate: {}}",
            ["policy.name_or_pth: unknown key; did you mean 'name_or_path'?"],
        ),
        (
            "policy: {name_or_path: x}\nproblems: {generate: {}}\n"
            "training: {num_update: 1000, num_warmup_updates: 200}",
            ["training.num_update: unknown key; did you mean 'num_updates'?"],
        ),
        (
            "polcy: {name_or_path: x}\nproblems: {generate: {}}\nseed: x\nseed: 1",
            [
                "polcy: unknown key; did you mean 'policy'?",
                "seed: should be a whole number",
                "seed: given twice",
            ],
        ),
        (
            "polcy: {nam_or_path: x}\nproblems: {generate: {}}",
            [
                "polcy: unknown key; did you mean 'policy'?",
                "policy.nam_or_path: unknown key; did you mean 'name_or_path'?",
            ],
        ),
    ],
)
def test_misspelled_keys_cause_no_further_errors(tmp_path: Path, text: str, errors: list[str]) -> None:
    file = tmp_path / "typo.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        load_config(file)
    lines = [line.partition(": ")[2] for line in str(caught.value).splitlines()]
    assert len(lines) == len(errors)
    assert all(any(line.startswith(error) for line in lines) for error in errors)


def test_override_of_a_misspelled_section_causes_no_further_error(recipe: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_config(recipe, ["trainin.num_updates=500"])
    assert str(caught.value).splitlines() == [
        "--set trainin.num_updates=500: trainin: unknown key; did you mean 'training'?"
    ]
