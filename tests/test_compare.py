"""The command `compare` and the function `compare()`: planning, training, resuming and reporting runs."""

import json
import os
import re
import shutil
import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import llm_reinforce
from llm_reinforce.analysis.recipe_comparison_plan import (
    Shape,
    Variant,
    plan_runs,
    unlike_problems,
    variants_of,
)
from llm_reinforce.analysis.recipe_source import config_of
from llm_reinforce.cli import app
from llm_reinforce.config import load_config
from llm_reinforce.errors import InputError
from llm_reinforce.runs import RunDirectory
from llm_reinforce.training import TrainingLoop

RECIPE = """\
policy:
  random_init:
    {num_layers: 1, num_heads: 2, hidden_size: 8, intermediate_size: 16, max_length: 24,
     alphabet: "0123456789+="}
problems: {generate: {digits: [1]}, num_held_out: 10}
sampling: {max_new_tokens: 3}
reinforce: {problems_per_update: 4, episodes_per_problem: 2}
training: {num_updates: 2, learning_rate: 1e-2, schedule: constant}
evaluation: {every: 1, decodings: [sampled, greedy]}
"""
HAS_MATPLOTLIB = find_spec("matplotlib") is not None  # before tests hide it
SHORT = ("--tokens", "100", "--evaluations", "2", "--target", "0.05")
TWO = ("--variant", "with: reinforce.baseline=leave_one_out", "--variant", "none: reinforce.baseline=none")


@pytest.fixture(autouse=True)
def _temporary_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    (tmp_path / "other.yaml").write_text(RECIPE.replace("1e-2", "1e-3"))
    monkeypatch.chdir(tmp_path)
    without_matplotlib(monkeypatch)


def without_matplotlib(patch: pytest.MonkeyPatch) -> None:
    """Let the import of matplotlib fail, since plots take more time than the tiny runs."""
    patch.setitem(sys.modules, "matplotlib", None)


def compared(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["compare", *arguments])


def refused(*arguments: str) -> str:
    result = compared(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return " ".join(result.stderr.split())


def read(name: str) -> Any:
    return json.loads(Path("runs/compare", name).read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A complete comparison of two recipes with two seeds, which tests must not change."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.yaml").write_text(RECIPE)
    (folder / "other.yaml").write_text(RECIPE.replace("1e-2", "1e-3"))
    files = [str(folder / name) for name in ("tiny.yaml", "other.yaml")]
    result = compared(*files, "--seeds", "2", *SHORT, "--output", str(folder / "out"), "--set", "seed=5")
    assert result.exit_code == 0, result.output
    return folder / "out", result


@pytest.fixture(scope="module")
def one_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory `runs` of a finished comparison of tiny.yaml with one seed; tests copy it."""
    folder = tmp_path_factory.mktemp("one_run")
    (folder / "tiny.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        without_matplotlib(patch)
        result = compared("tiny.yaml", "--seeds", "1", *SHORT)
        assert result.exit_code == 0, result.output
    return folder / "runs"


def test_each_run_is_a_normal_run_with_the_budget(finished: tuple[Path, Result]) -> None:
    output, _ = finished
    for name in ("tiny", "other"):
        for seed in (5, 6):
            run = RunDirectory(output / name / f"seed-{seed}")
            recipe = load_config(run.path / "recipe.yaml")
            assert (recipe.seed, recipe.training.num_tokens) == (seed, 100)
            assert recipe.output_dir == str(run.path)
            sampled = [row["num_tokens"] for row in run.rows("metrics.jsonl")]
            assert sampled[-1] >= 100 > sampled[-2]
            assert run.policy.is_dir()


def test_all_variants_are_compared_with_the_same_decoding_mode() -> None:
    variants = ("--variant", "a:", "--variant", "b: evaluation.decodings=[greedy,sampled]")
    assert compared("tiny.yaml", *variants, "--seeds", "1", *SHORT).exit_code == 0
    assert read("comparison.json")["decoding"] == "sampled"
    rows = RunDirectory(Path("runs/compare/b/seed-0")).rows("evaluations.jsonl")
    sampled = [row["accuracy"] for row in rows if row["decoding"] == "sampled"]
    assert read("curves.json")["b"]["seeds"]["0"]["accuracy"] == sampled


def test_overrides_of_a_config_are_adapted_like_those_of_a_recipe() -> None:
    few = ["training.num_updates=2"]
    with pytest.warns(UserWarning, match="num_warmup_updates"):
        by_name = config_of("quickstart", few)
    with pytest.warns(UserWarning, match="num_warmup_updates"):
        by_config = config_of(load_config("quickstart"), few)
    assert by_config == by_name


def test_results_agree_with_the_logs_of_the_runs(finished: tuple[Path, Result]) -> None:
    output, _ = finished
    summary = json.loads((output / "comparison.json").read_text())
    assert (summary["seeds"], summary["num_tokens"], summary["decoding"]) == ([5, 6], 100, "sampled")
    assert [row["name"] for row in summary["runs"]] == ["tiny", "other"]
    curves = json.loads((output / "curves.json").read_text())
    for row in summary["runs"]:
        for place, seed in enumerate((5, 6)):
            run = RunDirectory(output / row["name"] / f"seed-{seed}")
            measured = [each for each in run.rows("evaluations.jsonl") if each["decoding"] == "sampled"]
            assert curves[row["name"]]["seeds"][str(seed)]["accuracy"] == [
                each["accuracy"] for each in measured
            ]
            assert row["measures"]["final"]["values"][place] == measured[-1]["accuracy"]
            assert row["num_sampled"][place] == run.rows("metrics.jsonl")[-1]["num_tokens"]
    assert set(summary["runs"][1]["differences"]) == {"final", "area", "tokens", "timed"}


def test_tables(finished: tuple[Path, Result]) -> None:
    _, result = finished
    message = result.stdout
    assert "sampled accuracy on held-out problems; 100 sampled tokens per run, 2 seeds" in message
    for title in (
        "final accuracy",
        "area under the learning curve, 0..1",
        "tokens to 5% accuracy",
        "accuracy after the time of the fastest variant",
    ):
        assert title in message
    assert re.search(r"other +[\d.]+% \[[\d.]+, [\d.]+\] +[+-][\d.]+ \[[+-][\d.]+, [+-][\d.]+\]", message)
    assert re.search(r"\d of 2", message)
    words = " ".join(message.split())
    assert "difference: value minus the value of tiny with the same seed, averaged; the p-value of" in words
    assert "tiny, seed 5: held-out accuracy" in result.stderr
    assert "4 of 4 runs" in result.stderr


def test_runs_equal_those_of_train(finished: tuple[Path, Result]) -> None:
    output, _ = finished
    done = output / "other" / "seed-6"
    alone = CliRunner().invoke(app, ["train", str(done / "recipe.yaml"), "--set", "output_dir=alone"])
    assert alone.exit_code == 0, alone.output
    weights = "policy/model.safetensors"
    assert (done / weights).read_bytes() == Path("alone", weights).read_bytes()


def test_complete_runs_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[int] = []
    updates = TrainingLoop.updates

    def counted(self: TrainingLoop, **arguments: Any) -> Any:
        trained.append(self.seed)
        return updates(self, **arguments)

    monkeypatch.setattr(TrainingLoop, "updates", counted)
    assert compared("tiny.yaml", "--seeds", "1", *SHORT).exit_code == 0
    again = compared("tiny.yaml", "--seeds", "1", *SHORT, "--json")
    assert again.exit_code == 0, again.output
    assert "1 of 1 runs are complete" in again.stderr
    assert json.loads(again.stdout) == read("comparison.json")
    more = compared("tiny.yaml", "--seeds", "2", *SHORT)  # one additional seed
    assert more.exit_code == 0, more.output
    assert trained == [0, 1]
    other_target = compared("tiny.yaml", "--seeds", "2", *SHORT[:-1], "0.5")
    assert other_target.exit_code == 0
    assert trained == [0, 1]
    assert read("comparison.json")["target"] == 0.5


def outcome() -> dict[str, object]:
    """Return the results and weights of a comparison, to check that two comparisons are identical."""
    weights = {
        str(file): file.read_bytes() for file in sorted(Path("runs/compare").rglob("policy/*.safetensors"))
    }
    return {**weights, "comparison": read("comparison.json"), "curves": read("curves.json")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, object], str]:
    """The outcome and the output of comparing `TWO` with one seed, without a disturbance."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "tiny.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        without_matplotlib(patch)
        result = compared("tiny.yaml", "--seeds", "1", *SHORT, *TWO)
        assert result.exit_code == 0, result.output
        return outcome(), result.stdout


@pytest.mark.parametrize("checkpoint_every", ["1", "null"])
def test_killed_comparison_is_continued_by_the_same_command(
    undisturbed: tuple[dict[str, object], str], monkeypatch: pytest.MonkeyPatch, checkpoint_every: str
) -> None:
    command = ["tiny.yaml", "--seeds", "1", *SHORT, *TWO, "--set"]
    command.append(f"training.checkpoint_every={checkpoint_every}")
    append, num_lines = RunDirectory.append, 0

    def killed(self: RunDirectory, name: str, row: Any) -> None:
        nonlocal num_lines
        num_lines += name == "metrics.jsonl"
        if num_lines == 8:  # in the second run
            raise RuntimeError("the machine went down")
        append(self, name, row)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "append", killed)
        assert compared(*command).exit_code == 1
    assert Path("runs/compare/with/seed-0/policy").is_dir()
    assert Path("runs/compare/none/seed-0/metrics.jsonl").is_file()
    assert not Path("runs/compare/none/seed-0/policy").exists()
    resumed = compared(*command)
    assert resumed.exit_code == 0, resumed.output
    assert "1 of 2 runs are complete" in resumed.stderr
    assert outcome() == undisturbed[0]


def test_interrupted_comparison_is_continued_by_the_same_command(
    undisturbed: tuple[dict[str, object], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["tiny.yaml", "--seeds", "1", *SHORT, *TWO]
    append, num_lines = RunDirectory.append, 0

    def interrupted(self: RunDirectory, name: str, row: Any) -> None:
        nonlocal num_lines
        append(self, name, row)
        num_lines += name == "metrics.jsonl"
        if name == "metrics.jsonl" and num_lines == 8:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(RunDirectory, "append", interrupted)
    stopped = compared(*command)
    assert stopped.exit_code == 130, stopped.output
    assert "stopped during the run none, seed 0; number of complete runs: 1. Run the same" in stopped.stderr
    assert list(Path("runs/compare/none/seed-0/checkpoints").iterdir())
    resumed = compared(*command)
    assert resumed.exit_code == 0, resumed.output
    assert "resuming from update-" in resumed.stderr
    assert outcome() == undisturbed[0]


def test_run_killed_before_its_first_update_is_started(tmp_path: Path) -> None:
    folder = tmp_path / "runs/compare/tiny/seed-0"
    folder.mkdir(parents=True)
    (folder / ".lock").touch()
    (folder / "environment.json").write_text("{}")
    assert compared("tiny.yaml", "--seeds", "1", *SHORT).exit_code == 0


def test_directory_with_another_run_is_refused(tmp_path: Path, one_run: Path) -> None:
    shutil.copytree(one_run, "runs")
    before = Path("runs/compare/tiny/seed-0/metrics.jsonl").read_bytes()
    message = refused("tiny.yaml", "--seeds", "1", *SHORT, "--set", "training.learning_rate=1e-1")
    assert "runs/compare/tiny/seed-0: contains a run with other settings; give another" in message
    assert "training.learning_rate: 0.01 in the run, 0.1 now" in message
    message = refused("tiny.yaml", "--seeds", "1", *SHORT[2:], "--tokens", "200")
    assert "training.num_tokens: 100 in the run, 200 now" in message
    assert Path("runs/compare/tiny/seed-0/metrics.jsonl").read_bytes() == before
    (tmp_path / "runs/compare/other/seed-0").mkdir(parents=True)
    (tmp_path / "runs/compare/other/seed-0/thesis.txt").write_text("mine")
    message = refused("other.yaml", "--seeds", "1", *SHORT)
    assert "must be writable and contain no other files (found: thesis.txt)" in message
    assert "--set" not in message  # the advice for `train` does not apply
    Path("file").write_text("mine")
    message = refused("other.yaml", "--seeds", "1", *SHORT, "--output", "file/below")
    assert "file is a file; give a directory" in message


def test_incomplete_logs_are_reported(one_run: Path) -> None:
    shutil.copytree(one_run, "runs")
    Path("runs/compare/tiny/seed-0/metrics.jsonl").write_text("")
    message = refused_after_runs("tiny.yaml", "--seeds", "1", *SHORT)
    assert "runs/compare/tiny/seed-0: the logs are incomplete (metrics.jsonl has no line for" in message


def refused_after_runs(*arguments: str) -> str:
    result = compared(*arguments)
    assert result.exit_code == 2
    return " ".join(result.stderr.split())


def test_one_seed_has_no_interval(undisturbed: tuple[dict[str, Any], str]) -> None:
    results, printed = undisturbed
    assert "one seed gives no interval and no test" in printed
    assert "p" not in printed.split("mean")[1].splitlines()[0].split()
    runs = results["comparison"]["runs"]
    assert runs[0]["measures"]["final"]["interval"] is None
    assert runs[1]["differences"]["final"]["t_p_value"] is None


def test_tables_are_printed_without_matplotlib(one_run: Path) -> None:
    shutil.copytree(one_run, "runs")
    result = compared("tiny.yaml", "--seeds", "1", *SHORT)
    assert result.exit_code == 0, result.output
    assert "[plots]'` and then the same command again" in " ".join(result.stderr.split())
    assert "final accuracy" in result.stdout
    assert not list(Path("runs/compare").glob("*.png"))


@pytest.mark.skipif(not HAS_MATPLOTLIB, reason="matplotlib is not installed")
def test_plots_are_written_with_matplotlib(finished: tuple[Path, Result]) -> None:
    output, _ = finished
    names = {file.name for file in output.iterdir() if file.is_file()}
    plots = {f"{name}.{suffix}" for name in ("curves", "comparison") for suffix in ("png", "svg")}
    assert names == {"comparison.json", "curves.json", *plots}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nowhere.yaml"], "nowhere: nowhere.yaml: no such file or built-in recipe"),
        (
            ["tiny.yaml", "./tiny.yaml"],
            "two variants are named 'tiny'; give them different names, for",
        ),
        (["tiny.yaml", "--variant", "a: seed=1"], "all variants have the same seeds"),
        (["tiny.yaml", "--variant", "a:", "--variant", "A:"], "two variants are named 'A'"),
        (
            ["tiny.yaml", "other.yaml", "--variant", "a:"],
            "variants (--variant) change a single recipe",
        ),
        (["tiny.yaml", "--variant", "reinforce.baseline=none"], 'should read "NAME: section.key=value'),
        (["tiny.yaml", "--variant", "a: none"], "'none' has no =; a variant should read"),
        (["tiny.yaml", "--variant", "a: x='1"], "can't be parsed: No closing quotation"),
        (["tiny.yaml", "--variant", "../a:"], "'../a' is not a valid name of a variant"),
        (["tiny.yaml", "--variant", "a.: "], "'a.' is not a valid name of a variant"),
        (["tiny.yaml", "--variant", "a: reinforce.baseline=non"], "a: --set reinforce.baseline=non: "),
        (
            ["tiny.yaml", "--set", "output_dir=x"],
            "override (--set) output_dir=x: this setting can't be changed in a comparison",
        ),
        (
            ["tiny.yaml", "--set", "training.num_updates=5"],
            "all runs have the same budget; set the budget with `tokens` (--tokens)",
        ),
        (
            ["tiny.yaml", "--variant", "a: evaluation.every=5"],
            "evaluated equally often; set the number with `evaluations` (--evaluations)",
        ),
        (["tiny.yaml", "--target", "0"], "target: should be above 0 and at most 1, not 0"),
        (["tiny.yaml", "--target", "90"], "target: should be above 0 and at most 1, not 90"),
        (
            ["tiny.yaml", "--set", "training.schedule=cosine"],
            "training.schedule: .*cosine decays to 0 over num_updates",
        ),
        (
            ["tiny.yaml", "--variant", "a:", "--variant", "b: evaluation.decodings=[greedy]"],
            "b: evaluation.decodings lacks sampled. All variants are compared with this decoding mode",
        ),
    ],
)
def test_invalid_comparisons_are_refused(arguments: list[str], complaint: str) -> None:
    message = refused(*arguments, "--seeds", "2", "--tokens", "100")
    assert re.search(complaint if ".*" in complaint else re.escape(complaint), message), message
    assert not Path("runs").exists()


def test_required_options() -> None:
    assert compared("tiny.yaml", "--seeds", "2").exit_code == 2
    assert compared("tiny.yaml", "--seeds", "0", "--tokens", "5").exit_code == 2
    assert compared("tiny.yaml", "--seeds", "2", "--tokens", "0").exit_code == 2


def test_variants_are_split_like_shell_words() -> None:
    variants = ["plain:", "a b: x.y=1 'z.u={a: 1, b: 2}'"]
    assert variants_of(["tiny.yaml"], variants) == [
        Variant("plain", "tiny.yaml"),
        Variant("a b", "tiny.yaml", ("x.y=1", "z.u={a: 1, b: 2}")),
    ]


def test_all_variants_have_the_same_seeds_and_tokens(
    tmp_path: Path,
) -> None:
    shape = Shape(2, 1000, 10, tmp_path / "a 'b': c")
    variants = variants_of(
        ["tiny.yaml"], ["small:", "large: reinforce.problems_per_update=64", "few: problems.num_held_out=5"]
    )
    runs = plan_runs(variants, ["seed=7"], shape)
    assert [(run.seed, run.variant) for run in runs] == [
        (seed, name) for seed in (7, 8) for name in ("small", "large", "few")
    ]
    for run in runs:
        training, evaluation = run.recipe.training, run.recipe.evaluation
        assert (training.num_tokens, evaluation.every, evaluation.unit) == (1000, 100, "tokens")
        assert run.recipe.output_dir == str(run.directory.path)
        # enough updates even if every episode has one token
        shape_of = run.recipe.reinforce
        num_episodes = shape_of.problems_per_update * shape_of.episodes_per_problem
        assert training.num_updates * num_episodes >= 1000 > (training.num_updates - 1) * num_episodes
    assert str(unlike_problems(runs)).startswith("few: evaluated on other problems or prompts than small, so")


def test_failing_run_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mine.py").write_text("def mine(completion, problem):\n    raise OSError('no server')\n")
    result = compared("tiny.yaml", "--seeds", "2", *SHORT, "--set", "rewards=[{function: 'mine.py:mine'}]")
    assert result.exit_code == 2
    assert "tiny, seed 0: reward 'mine' failed on all 4 trial episodes" in result.stderr


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "compare runs in one process" in refused("tiny.yaml", "--seeds", "2", *SHORT)


def test_from_python_in_one_call(
    undisturbed: tuple[dict[str, object], str], capsys: pytest.CaptureFixture[str]
) -> None:
    comparison = llm_reinforce.compare(
        "tiny.yaml",
        seeds=1,
        tokens=100,
        variants={"with": ["reinforce.baseline=leave_one_out"], "none": ["reinforce.baseline=none"]},
        evaluations=2,
        target=0.05,
    )
    assert list(comparison.variants) == ["with", "none"]
    assert comparison.summary == read("comparison.json")
    assert comparison.num_done == 2
    assert outcome() == undisturbed[0]  # that of the command
    assert load_config("runs/compare/none/seed-0").reinforce.baseline == "none"
    assert capsys.readouterr() == ("", "")  # nothing is shown without a terminal


def test_configs_are_compared_like_recipe_files(finished: tuple[Path, Result]) -> None:
    output, _ = finished
    by_file = json.loads((output / "curves.json").read_text())
    configs = {name: load_config(f"{name}.yaml", ["seed=5"]) for name in ("tiny", "other")}
    named = [config.model_copy(update={"output_dir": f"runs/{name}"}) for name, config in configs.items()]
    shape = {"seeds": 1, "tokens": 100, "evaluations": 2, "target": 0.05}
    by_config = llm_reinforce.compare(named, output_dir="configs", **shape)
    for name, (curve,) in by_config.curves.items():
        assert list(curve.accuracy) == by_file[name]["seeds"]["5"]["accuracy"]
        assert list(curve.num_tokens) == by_file[name]["seeds"]["5"]["num_tokens"]
    assert [row["recipe"] for row in by_config.summary["runs"]] == ["tiny", "other"]
    with pytest.raises(InputError, match="two variants are named 'tiny'"):
        llm_reinforce.compare([named[0], named[0]], **shape)
    again = llm_reinforce.compare(output / "tiny/seed-5", **{**shape, "tokens": 50}, variants={"run": []})
    assert list(again.variants) == ["run"]
