"""Recipes: every key is used or rejected, and all errors are reported at once, each with its place."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from llm_reinforce.config import Config, builtin_recipes, dump_config, load_config
from llm_reinforce.config import recipe_file as recipe_module
from llm_reinforce.errors import InputError

SMALLEST = """\
policy:
  name_or_path: smollm2-135m
problems:
  generate: {}
training:
  num_updates: 100
  learning_rate: 1e-5
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def load(tmp_path: Path, text: str = SMALLEST, *overrides: str) -> Config:
    return load_config(write(tmp_path, text), overrides)


def complaints(tmp_path: Path, text: str, *overrides: str) -> list[str]:
    """Return the lines of the error message, with the path of the file shortened to its name."""
    with pytest.raises(InputError) as caught:
        load(tmp_path, text, *overrides)
    return str(caught.value).replace(f"{tmp_path}/", "").splitlines()


def test_minimal_recipe_uses_defaults(tmp_path: Path) -> None:
    recipe = load(tmp_path)
    assert recipe.output_dir == "runs/x"
    assert recipe.training.learning_rate == 1e-5
    assert recipe.reinforce.baseline == "leave_one_out"
    assert [reward.function for reward in recipe.rewards] == ["correct_answer"]
    assert recipe.problems.generate is not None
    assert recipe.problems.generate.digits == (2,)


def test_config_is_frozen(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load(tmp_path).seed = 3


def test_scalars_follow_yaml_1_2(tmp_path: Path) -> None:
    text = SMALLEST.replace("1e-5", "1E-4") + "  max_grad_norm: 1\n  mixed_precision: no\noutput_dir: on\n"
    recipe = load(tmp_path, text)
    assert (recipe.training.learning_rate, recipe.training.max_grad_norm) == (1e-4, 1.0)
    assert (recipe.training.mixed_precision, recipe.output_dir) == ("no", "on")


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (
            "reinforce:\n  episodes_per_problm: 4",
            "x.yaml:9: reinforce.episodes_per_problm: unknown key; did you mean 'episodes_per_problem'?",
        ),
        (
            "reinforce:\n  learning_rate: 4",
            "x.yaml:9: reinforce.learning_rate: unknown key; did you mean 'training.learning_rate'?",
        ),
        ("seed: true", "x.yaml:8: seed: should be a whole number of at least 0 and below 1e+18, not true"),
        ("seed: '3'", "x.yaml:8: seed: should be a whole number of at least 0 and below 1e+18, not '3'"),
        ("seed: 3.0", "x.yaml:8: seed: should be a whole number of at least 0 and below 1e+18, not 3.0"),
        ("seed: 012", "x.yaml:8: seed: should be a whole number of at least 0 and below 1e+18, not '012'"),
        ("seed: -1", "x.yaml:8: seed: should be a whole number of at least 0 and below 1e+18, not -1"),
        (
            "sampling:\n  temperature: fast",
            "x.yaml:9: sampling.temperature: should be a number above 0, not 'fast'",
        ),
        (
            "sampling:\n  temperature: .inf",
            "x.yaml:9: sampling.temperature: should be a number above 0, not inf",
        ),
        (
            "sampling:\n  temperature: true",
            "x.yaml:9: sampling.temperature: should be a number above 0, not true",
        ),
        (
            "reinforce:\n  standardize: no",
            "x.yaml:9: reinforce.standardize: should be true or false or one of 'batch', 'group', not 'no'",
        ),
        ("output_dir: 5", "x.yaml:8: output_dir: should be text of at least one character, not 5"),
        ("rewards: []", "x.yaml:8: rewards: should be a list of at least 1 item, not an empty list"),
        (
            "rewards: correct_answer",
            "x.yaml:8: rewards: should be a list of at least 1 item, not 'correct_answer'",
        ),
        ("sampling:", "x.yaml:8: sampling: should be a mapping, not null"),
        ("sampling: [1]", "x.yaml:8: sampling: should be a mapping, not a list of 1 item"),
        ("sampling: 5", "x.yaml:8: sampling: should be a mapping, not 5"),
        ("  betas: [0.9]", "x.yaml:8: training.betas.1: missing; give a value, because there is no default"),
        ("seed: 1\nseed: 2", "x.yaml:9: seed: given twice, first on line 8; remove one of the two"),
        ("5: 1", "x.yaml:8: a key should be text, not 5 (quote it)"),
        (
            "reinforce:\n  denominator: 0",
            (
                "x.yaml:9: reinforce.denominator: should be one of 'episodes', 'tokens', 'episode_lengths' "
                "or a number above 0, not 0"
            ),
        ),
        (
            "reinforce:\n  denominator: token",
            (
                "x.yaml:9: reinforce.denominator: should be one of 'episodes', 'tokens', 'episode_lengths' "
                "or a number above 0, not 'token'; did you mean 'tokens'?"
            ),
        ),
        (
            "evaluation:\n  decodings:\n    - greedy\n    - sampld",
            (
                "x.yaml:11: evaluation.decodings.1: should be one of 'greedy', 'sampled', not 'sampld'; "
                "did you mean 'sampled'?"
            ),
        ),
        (
            "rewards:\n  - function: concisenes",
            (
                "x.yaml:9: rewards.0.function: no built-in reward 'concisenes'; "
                "did you mean 'conciseness'? "
                "(built-in rewards: correct_answer, answer_format, conciseness, readability, "
                "intermediate_steps; for a function of your own, write path/to/file.py:function)"
            ),
        ),
    ],
)
def test_error_names_line_and_key(tmp_path: Path, lines: str, complaint: str) -> None:
    assert complaints(tmp_path, SMALLEST + lines + "\n") == [complaint]


def test_all_errors_are_reported_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = SMALLEST.replace("1e-5", "fast").replace("smollm2-135m", "[]") + "wibble: 1\n"
    messages = complaints(tmp_path, text, "seed=-1")
    assert [line.split(": ")[0] for line in messages] == ["x.yaml:2", "x.yaml:7", "x.yaml:8", "--set seed=-1"]


def test_error_for_missing_key_names_its_section(tmp_path: Path) -> None:
    text = SMALLEST + "  warm_start: {batch_size: 4}\n"
    (message,) = complaints(tmp_path, text)
    assert "training.warm_start.num_updates: num_updates and epochs are both missing" in message
    messages = complaints(tmp_path, "seed: 1\n")
    assert messages == [
        f"x.yaml: {key}: missing; give a value, because there is no default" for key in ("policy", "problems")
    ]


def test_default_learning_rate_depends_on_the_policy(tmp_path: Path) -> None:
    def rate(policy: str) -> float | None:
        file = tmp_path / "recipe.yaml"
        file.write_text(f"policy: {policy}\nproblems: {{generate: {{}}}}\n")
        return load_config(file).training.learning_rate

    assert rate("{name_or_path: x}") == 1e-5
    assert rate("{name_or_path: x, lora: {}}") == 1e-4
    assert rate("{random_init: {}}") == 5e-4


IMPOSSIBLE = [
    ("policy={name_or_path: x, random_init: {}}", "policy.random_init", "name_or_path cannot both be set"),
    ("policy.name_or_path=null", "policy", "needs name_or_path or random_init"),
    ("problems={generate: {}, train: {data: a.jsonl}}", "problems.train", "`generate` cannot both be set"),
    ("problems.generate=null", "problems", "needs `generate`"),
    ("problems.held_out={data: a.jsonl}", "problems.held_out", "used only with `train`"),
    ("problems.template=hello", "problems.template", "should contain {prompt}"),
    ("problems.generate.form=hello", "problems.generate.form", "should contain {expression} or {spaced}"),
    ("problems.generate.operations=[]", "problems.generate.operations", "a list of at least 1 item"),
    ("problems.generate={digits: [1], operands: [0, 9]}", "problems.generate", "both given; remove one"),
    ("problems.generate={operands: [9, 0]}", "problems.generate.operands",
    "the smallest operand, then the largest"), ("problems.generate={held_out_operands: [0, 9]}",
     "problems.generate.held_out_operands", "used only with operands"),
    ("problems.generate={operands: [0, 5], held_out_operands: [0, 9]}",
     "problems.generate.held_out_operands", "should be a range within that of `operands` (0 to 5)"),
    ("problems.generate={operations: [chain]}", "problems.generate.num_operands", "at least 3 for a chain"),
    ("problems.generate={operations: [division, subtraction], num_operands: 3}",
     "problems.generate.num_operands", "not used for division and subtraction"),
    ("problems.generate.operations=[division, division]", "problems.generate.operations", "value once"),
    ("problems.generate.digits=[1, 1]", "problems.generate.digits", "should list each value once"),
    ("problems={train: {data: a.jsonl, config: main}}", "problems.train.config", "not used for a file"),
    ("problems={train: {data: ~/A.JSONL, split: test}}", "problems.train.split", "not used for a file"),
    ("rewards=[{function: correct_answer, arguments: {pattern: a}}]",
     "rewards.0.arguments.pattern", "not an argument of correct_answer (this function takes no arguments)"),
    ("rewards=[{function: conciseness, arguments: {max_token: 9}}]",
     "rewards.0.arguments.max_token", "not an argument of conciseness; did you mean 'max_tokens'?"),
    ("rewards=[{function: answer_format, arguments: {pattern: '('}}]",
     "rewards.0.arguments.pattern", "'(' is not a valid regular expression"),
    ("rewards=[{function: answer_format, arguments: {pattern: 5}}]",
     "rewards.0.arguments.pattern", "should be text or null, not 5"),
    ("rewards=[{function: answer_format, arguments: {form: boxes}}]",
     "rewards.0.arguments.form", "'phrase' or null, not 'boxes'; did you mean 'boxed'?"),
    ("rewards=[{function: answer_format, arguments: {form: boxed, pattern: a}}]",
     "rewards.0.arguments.form", "form and pattern cannot both be set"),
    ("rewards=[{function: conciseness, arguments: {max_tokens: 0}}]",
     "rewards.0.arguments.max_tokens", "should be a whole number of at least 1, not 0"),
    ("rewards=[{function: readability, arguments: {max_words: x}}]",
     "rewards.0.arguments.max_words", "should be a whole number of at least 1, not 'x'"),
    ("rewards=[{function: intermediate_steps, arguments: {right: '1.0'}}]",
     "rewards.0.arguments.right", "should be a number, not '1.0'"),
    ("rewards=[{function: intermediate_steps, arguments: {max_steps: 2.5}}]",
     "rewards.0.arguments.max_steps", "should be a whole number of at least 1, not 2.5"),
    ("rewards=[{function: correct_answer, conversational: true}]",
     "rewards.0.conversational", "used only by functions with TRL's signature"),
    ("problems={train: {data: a.jsonl}, held_out: {data: b.jsonl}, num_held_out: 0}",
     "problems.num_held_out", "held_out is not used if num_held_out is 0"),
    ("rewards=[{function: 'file.py:'}]", "rewards.0.function", "should have the form package.module"),
    (
        "rewards=[{function: conciseness}, {function: conciseness}]",
        "rewards.1.function",
        "listed twice with the same arguments",
    ),
    ("reinforce.episodes_per_problem=1", "reinforce.episodes_per_problem", "baseline: leave_one_out"),
    ("reinforce={baseline: group_mean, episodes_per_problem: 1}",
     "reinforce.episodes_per_problem", "group_mean"),
    (
        "reinforce={baseline: batch_mean, problems_per_update: 1, episodes_per_problem: 1}",
        "reinforce.episodes_per_problem",
        "for baseline: batch_mean",
    ),
    (
        "reinforce={baseline: none, standardize: true, problems_per_update: 1, episodes_per_problem: 1}",
        "reinforce.episodes_per_problem",
        "for standardize: true",
    ),
    ("reinforce.moving_average_decay=0.9", "reinforce.moving_average_decay", "the baseline is leave_one_out"),
    ("reinforce={baseline: optimal, episodes_per_problem: 1}",
     "reinforce.episodes_per_problem", "for baseline: optimal"),
    ("reinforce={baseline: greedy, value: {gae_lambda: 0.9}}",
     "reinforce.value", "the baseline is greedy"),
    ("reinforce.value={}", "reinforce.value", "used only with baseline: value"),
    ("reinforce={baseline: value, moving_average_decay: 0.5}",
     "reinforce.moving_average_decay", "the baseline is value"),
    ("reinforce={baseline: value, value: {gae_lambda: 1.5}}", "reinforce.value.gae_lambda", "at most 1"),
    ("reinforce={baseline: value, value: {num_steps: 0}}", "reinforce.value.num_steps", "at least 1"),
    ("reinforce.updates_per_batch=3", "reinforce.updates_per_batch",
     "(16) must be a multiple of updates_per_batch (3)"),
    ("reinforce.clip={}", "reinforce.clip", "has no effect with updates_per_batch: 1"),
    ("reinforce={updates_per_batch: 2, clip: {low: 0.1}, importance: {level: token}}",
     "reinforce.clip", "policy that sampled the episodes; remove `importance` or `clip`"),
    ("reinforce={updates_per_batch: 2, variant: grpo, importance: {level: token}}",
     "reinforce.clip", "remove `importance` or the variant"),
    ("reinforce.importance.limit=null", "reinforce.importance.level", "missing"),
    ("reinforce.importance={level: token, limit: 0.5}", "reinforce.importance.limit", "at least 1"),
    ("reinforce.importance={level: token, limit: null, beyond_limit: mask}",
     "reinforce.importance.beyond_limit", "has no effect with limit: null"),
    ("reinforce={updates_per_batch: 2, clip: {low: 1.5}}", "reinforce.clip.low", "at most 1"),
    ("reinforce={variant: grpo, baseline: none}",
     "reinforce.baseline", "the variant grpo sets baseline to 'group_mean', not 'none'"),
    ("reinforce={variant: dr_grpo, standardize: true}",
     "reinforce.standardize", "the variant dr_grpo sets standardize to false, not 'batch'"),
    ("reinforce={variant: dapo, updates_per_batch: 2, clip: {form: cispo}}",
     "reinforce.clip.form", "the variant dapo sets form to ppo, not cispo"),
    ("reinforce.variant=gripo", "reinforce.variant", "did you mean 'grpo'?"),
    ("reinforce={standardize: group, baseline: none, episodes_per_problem: 1}",
     "reinforce.episodes_per_problem", "at least 2 for standardize: group"),
    ("reinforce={baseline: valu}", "reinforce.baseline", "did you mean 'value'?"),
    ("training.num_warmup_updates=101", "training.num_warmup_updates", "at most 100 (the value of"),
    ("training={schedule: constant, num_updates: 9, learning_rate: 1, num_warmup_updates: 1}",
     "training.num_warmup_updates", "not used with schedule: constant"),
    ("training={num_tokens: 10, schedule: cosine, num_updates: 9, learning_rate: 1}",
     "training.schedule", "cosine decays to 0 over num_updates, but num_tokens may stop the run earlier"),
    ("training.warm_start={num_updates: 5, num_warmup_updates: 6}", "training.warm_start.num_warmup_updates",
     "should be at most 5 (the value of num_updates), not 6"),
    ("evaluation.num_problems=201", "evaluation.num_problems", "at most 200 (the value of"),
    ("evaluation.samples_per_problem=4", "evaluation.samples_per_problem", "used only with sampled decoding"),
    ("evaluation.template=x", "evaluation.template", "should contain {prompt}"),
    ("evaluation.few_shot=-1", "evaluation.few_shot", "at least 0"),
    ("evaluation.decodings=[greedy, greedy]", "evaluation.decodings", "each decoding mode only once"),
    ("policy={name_or_path: a, system_prompt: b, use_chat_template: false}",
     "policy.system_prompt", "not used without a chat template"),
    ("policy={random_init: {}, lora: {}}", "policy.lora", "not used with random_init"),
    ("policy={random_init: {alphabet: 0120}}", "policy.random_init.alphabet", "each character once"),
    ("policy={random_init: {hidden_size: 20}}", "policy.random_init.hidden_size", "2 x num_heads"),
    ("policy={random_init: {num_heads: 3}}", "policy.random_init.hidden_size", "2 x num_heads"),
    ("policy={random_init: {max_length: 32}}", "sampling.max_new_tokens", "no room for a prompt"),
    ("policy={random_init: {alphabet: '0123456789+'}}", "problems.generate", "lacks: '='"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "key", "complaint"), IMPOSSIBLE)
def test_incompatible_settings_are_rejected(tmp_path: Path, override: str, key: str, complaint: str) -> None:
    (message,) = complaints(tmp_path, SMALLEST, override)
    assert f"{key}: " in message
    assert complaint in message


@pytest.mark.parametrize(
    "override",
    [
        "problems.generate={operations: [chain, division], num_operands: 3}",
        "problems.generate={operations: [subtraction], num_operands: 2}",
        "problems.generate={operands: [0, 19], held_out_operands: [0, 9]}",
        "problems.generate={digits: [2], operands: [0, 19]}",  # as written in the recipe of a run
        "problems={train: {data: a.jsonl, split: train}}",
        "problems={train: {data: a/json, config: main, split: test}}",
        "reinforce={baseline: greedy, episodes_per_problem: 1}",
        "reinforce={baseline: value, episodes_per_problem: 1}",
        "reinforce={baseline: value, value: {gae_lambda: 0}}",
        "rewards=[{function: conciseness, arguments: {max_tokens: 9}}]",
        "rewards=[{function: 'mine.py:f', arguments: {pattern: '('}}]",
    ],
)
def test_compatible_settings_are_accepted(tmp_path: Path, override: str) -> None:
    load(tmp_path, SMALLEST, override)


def test_errors_in_reward_arguments_name_their_lines(tmp_path: Path) -> None:
    rewards = "rewards:\n"
    rewards += "  - function: answer_format\n    arguments:\n      pattern: '('\n"
    rewards += "  - function: conciseness\n    arguments:\n      max_words: 3\n"
    messages = complaints(tmp_path, SMALLEST + rewards)
    assert [line.split(": ")[0] for line in messages] == ["x.yaml:11", "x.yaml:14"]


def test_fp16_needs_float32_weights_or_an_adapter(tmp_path: Path) -> None:
    overrides = ["policy.dtype=float16", "training.mixed_precision=fp16"]
    (message,) = complaints(tmp_path, SMALLEST, *overrides)
    assert message.startswith("--set training.mixed_precision=fp16: training.mixed_precision: ")
    assert load(tmp_path, SMALLEST, *overrides, "policy.lora={}").policy.lora is not None


def test_conflict_is_reported_with_other_errors_of_its_section(tmp_path: Path) -> None:
    messages = complaints(tmp_path, SMALLEST + "reinforce:\n  wibble: 1\n  episodes_per_problem: 1\n")
    assert [line.split(": ")[0] for line in messages] == ["x.yaml:9", "x.yaml:10"]


@pytest.mark.parametrize(
    "override",
    [
        "policy.gradient_checkpointing=true",
        "policy.lora.dropout=0.1",
        "training.stop_at_accuracy=0.9",
        "training.warm_start={num_updates: 50, stop_at_accuracy: 0.3}",
        "training.warm_start={num_updates: 50, evaluate_every: 5}",
    ],
)
def test_unknown_keys_are_rejected(tmp_path: Path, override: str) -> None:
    (message,) = complaints(tmp_path, SMALLEST, override)
    assert "unknown key" in message


def test_overrides_set_keys_list_items_and_missing_sections(tmp_path: Path) -> None:
    text = SMALLEST + "rewards:\n  - function: correct_answer\n"
    overrides = [
        "rewards.0.weight=0.5",
        "policy.lora.rank=4",
        "training.learning_rate=3e-4",
        "output_dir=a=b",
    ]
    recipe = load(tmp_path, text, *overrides, "seed=1", "seed=2")
    assert recipe.rewards[0].weight == 0.5
    assert recipe.policy.lora is not None
    assert (recipe.policy.lora.rank, recipe.training.learning_rate) == (4, 3e-4)
    assert (recipe.output_dir, recipe.seed) == ("a=b", 2)


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("seed", "--set seed: should have the form section.key=value"),
        ("a..b=1", "--set a..b=1: should have the form section.key=value"),
        ("rewards.1.weight=2",
         "--set rewards.1.weight=2: no item '1' in rewards, which is a list of 1 item; items are counted "
         "from 0"),
        ("seed.x=2", "--set seed.x=2: no key 'x' in seed, which is 7"),
        (
            "training.betas=[0.9, x]",
            ("--set training.betas=[0.9, x]: training.betas.1: "
            "should be a number of at least 0 and below 1, not 'x'"),
        ),
        ("sampling.wibble=1", ("--set sampling.wibble=1: sampling.wibble: unknown key; known keys: "
         "max_new_tokens, temperature, batch_size, cuda_graphs, server")),
        ("sampling={batch_size: 1, batch_size: 2}", ("--set sampling={batch_size: 1, batch_size: 2}: "
         "sampling.batch_size: given twice, first on line 1; remove one of the two")),
    ],
)  # fmt: skip
def test_error_names_the_invalid_override(tmp_path: Path, override: str, complaint: str) -> None:
    text = SMALLEST + "seed: 7\nrewards: [{function: correct_answer}]\n"
    assert complaints(tmp_path, text, override) == [complaint]


def test_override_replaces_an_invalid_value(tmp_path: Path) -> None:
    assert load(tmp_path, SMALLEST.replace("100", "many"), "training.num_updates=5").training.num_updates == 5


@pytest.mark.parametrize("overrides", [
    [],
    ["reinforce={baseline: moving_average, moving_average_decay: 0.5, denominator: 3}", "output_dir='1e-5'"],
    ["reinforce={baseline: value, value: {gae_lambda: 0.95, hidden_size: 32}}"],
    ["reinforce={updates_per_batch: 4, importance: {level: sequence, limit: null}}"],
    ["reinforce={variant: dapo, updates_per_batch: 4, clip: {high: 0.3}}"],
    ["reinforce={variant: grpo}"],
    ['policy={random_init: {alphabet: "0123456789+=\\n no"}}', "problems.template='no {prompt}'"],
    ["problems={train: {data: openai/gsm8k, config: main}, held_out: {data: a, split: 'on'}}",
     "rewards=[{function: 'a.py:f', weight: -1, arguments: {x: [1, 2.5, null, 'no', '1e3'], y: {z: true}}}]"],
    ['problems.template="{prompt}\\x85 \\u2028a\\u2029"'],
    ["policy.lora={target_modules: [q_proj]}", "policy.system_prompt='null'",
     "training.warm_start.num_updates=50"],
])  # fmt: skip
def test_dumped_recipe_loads_as_an_equal_config(tmp_path: Path, overrides: list[str]) -> None:
    recipe = load(tmp_path, SMALLEST, *overrides)
    again = tmp_path / "recipe.yaml"
    again.write_text(dump_config(recipe), encoding="utf-8")
    assert load_config(again) == recipe


def test_tags_are_rejected_and_execute_nothing(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    (message,) = complaints(tmp_path, SMALLEST + f"output_dir: !!python/object/apply:os.mkdir ['{victim}']\n")
    assert message.startswith("x.yaml:8: invalid YAML: the tag !!python/object/apply:os.mkdir is not allowed")
    assert not victim.exists()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "x.yaml: the file is empty"),
        ("# nothing\n", "x.yaml: the file is empty"),
        ("- a\n", "x.yaml: should be a mapping, not a list of 1 item"),
        ("seed: 1\npolicy: [1, 2\nproblems: 3\n", "x.yaml:3: invalid YAML"),
        ("seed: &a 1\n", "x.yaml:1: invalid YAML: anchors"),
        ("seed: *a\n", "x.yaml:1: invalid YAML: anchors"),
        ("seed: \x01\n", "x.yaml: invalid YAML"),
        ("seed: 1\noutput_dir: " + "9" * 5000, "x.yaml:2: invalid YAML: Exceeds the limit"),
        ("seed: " + "[" * 1000, "x.yaml: invalid YAML: the document is nested too deeply"),
    ],
)
def test_files_that_are_not_recipes_are_rejected(tmp_path: Path, text: str, complaint: str) -> None:
    (message,) = complaints(tmp_path, text)
    assert message.startswith(complaint)


def test_built_in_recipes_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "llm_reinforce" / "recipes"
    folder.mkdir(parents=True)
    (folder / "quickstart.yaml").write_text(SMALLEST)
    monkeypatch.setattr(
        recipe_module, "__file__", str(tmp_path / "llm_reinforce" / "config" / "recipe_file.py")
    )
    assert list(builtin_recipes()) == ["quickstart"]
    assert load_config("quickstart").output_dir == "runs/quickstart"
    with pytest.raises(
        InputError, match=r"recipes/quikstart\.yaml: no such file .* did you mean 'quickstart'"
    ):
        load_config("recipes/quikstart.yaml")


def test_files_are_looked_up_in_the_current_directory_then_beside_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = (tmp_path / "recipes").resolve()
    folder.mkdir()
    for name in ("mine.py", "problems.jsonl", "other.jsonl"):
        (folder / name).touch()
    (folder / "x.yaml").write_text(
        "policy: {random_init: {}}\ntraining: {num_updates: 1, learning_rate: 1e-3}\n"
        "problems: {train: {data: problems.jsonl}, held_out: {data: other.jsonl}}\n"
        "rewards: [{function: 'mine.py:f'}, {function: 'yours.py:f'}, {function: correct_answer}]\n"
    )

    def named() -> list[str]:
        recipe = load_config(folder / "x.yaml")
        assert recipe.problems.train is not None
        assert recipe.problems.held_out is not None
        data = [recipe.problems.train.data, recipe.problems.held_out.data]
        return [*data, *(reward.function for reward in recipe.rewards)]

    monkeypatch.chdir(tmp_path)
    beside = [f"{folder}/problems.jsonl", f"{folder}/other.jsonl", f"{folder}/mine.py:f"]
    assert named() == [*beside, "yours.py:f", "correct_answer"]
    (tmp_path / "mine.py").touch()  # the current directory comes first
    assert named()[2] == "mine.py:f"
    monkeypatch.chdir(folder)
    assert named()[:3] == ["problems.jsonl", "other.jsonl", "mine.py:f"]


def test_models_are_looked_up_beside_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = (tmp_path / "recipes").resolve()
    for name in ("sft/adapter", "base", "start"):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").touch()
    recipe = (
        "policy: {name_or_path: sft/adapter}\nproblems: {generate: {}}\ntraining: {num_updates: 1}\n"
        "reinforce: {kl: {coefficient: 0.1, reference: base}}\n"
    )
    (folder / "x.yaml").write_text(recipe)
    monkeypatch.chdir(tmp_path)
    config = load_config(folder / "x.yaml")
    assert config.policy.name_or_path == f"{folder}/sft/adapter"
    assert config.reinforce.kl is not None
    assert config.reinforce.kl.reference == f"{folder}/base"
    (tmp_path / "base").mkdir()  # the current directory comes first
    (folder / "x.yaml").write_text(recipe.replace("sft/adapter", "start"))
    assert load_config(folder / "x.yaml").reinforce.kl == config.reinforce.kl.model_copy(
        update={"reference": "base"}
    )
    start = load_config(folder / "x.yaml", ["reinforce.kl.reference=start"]).reinforce.kl
    assert start is not None
    assert start.reference == "start"


def test_binary_file_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read as a text file"):
        load_config(path)


def test_every_setting_has_a_description() -> None:
    schema = Config.model_json_schema()
    for section in (schema, *schema["$defs"].values()):
        for key, field in section.get("properties", {}).items():
            assert field.get("description"), key


def test_output_dir_follows_a_run_and_not_a_folder_with_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(SMALLEST + "output_dir: runs/before\n")
    assert load_config(tmp_path).output_dir == "runs/before"
    (tmp_path / "environment.json").write_text("{}")  # written by a run
    assert load_config(tmp_path).output_dir == str(tmp_path)
    assert load_config(tmp_path / "recipe.yaml").output_dir == "runs/before"
