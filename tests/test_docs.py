"""The README and the pages of docs/: their commands, code, tables and links are checked against the code."""

import importlib
import importlib.util
import json
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import click
import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

import llm_reinforce
from llm_reinforce.analysis import gradient_statistics
from llm_reinforce.cli import app
from llm_reinforce.config import (
    BUILT_IN_REWARD_ARGUMENTS,
    VARIANTS,
    Config,
    ReinforceConfig,
    builtin_recipes,
    load_config,
)
from llm_reinforce.policy import LanguagePolicy
from llm_reinforce.problems import NAMED_SETS, find_problems
from llm_reinforce.server import SERVER_METRICS
from llm_reinforce.training.objective import RatioCounts
from llm_reinforce.verifier import verify
from llm_reinforce.verifier.plain_answers import read_answer

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "llm_reinforce"
PAGES = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in sorted(PAGES.items())}
PROGRAMS = ("llm-reinforce", ".venv/bin/llm-reinforce")
FENCED = re.compile(r"(?:^<!-- ([^\n]*) -->\n)?^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FEW = "problems.generate.digits=[1]"  # the 8,100 problems of the quick start take a second to prepare
OPTIONS_OF_FEW = ("--set", FEW, "--set", "problems.num_held_out=10")
OF_BATCHES = (  # settings with metrics of their own
    "reinforce.refill=1",
    "reinforce.curriculum={}",
    "reinforce.kl.coefficient=0",
    "reinforce.entropy_target.value=1",
)
RECIPE = "policy: {random_init: {}}\nproblems: {generate: {}}\n"  # what a recipe needs at least


@dataclass(frozen=True)
class Block:
    """A code block of a page, with the text of the comment above it."""

    page: str
    marker: str
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page}: {self.marker or self.code.splitlines()[0]}"


def find_blocks() -> Iterator[Block]:
    for page, text in TEXTS.items():
        for found in FENCED.finditer(text):
            yield Block(page, found[1] or "", found[2], found[3])


BLOCKS = list(find_blocks())


def block(page: str, marker: str) -> str:
    """Return the code block below `<!-- marker -->`."""
    (found,) = (each.code for each in BLOCKS if (each.page, each.marker) == (page, marker))
    return found


def rows_of(text: str) -> list[list[str]]:
    """Return the cells of the first table in the text, without its head."""
    table = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert table
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table[0].splitlines()[2:]]


def table(page: str, marker: str) -> list[list[str]]:
    """Return the cells of the table below `<!-- table: marker -->`, without its head."""
    return rows_of(TEXTS[page].split(f"<!-- table: {marker} -->\n")[1])


def section(page: str, heading: str) -> str:
    return TEXTS[page].split(f"\n## {heading}\n")[1].split("\n## ")[0]


def code_words(text: str) -> list[str]:
    """Return the texts in code font."""
    return re.findall(r"`([^`]+)`", text)


def changed(code: str, changes: Mapping[str, str]) -> str:
    """Return the code with texts replaced, each of which must occur."""
    for old, new in changes.items():
        assert old in code, old
        code = code.replace(old, new)
    return code


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


def options_of(overrides: list[str]) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


def train(recipe: str, *overrides: str) -> None:
    invoke("train", recipe, *options_of(list(overrides)))


@pytest.fixture(scope="module")
def finished_runs(tmp_path_factory: pytest.TempPathFactory, tiny_run: list[str]) -> Path:
    """Return a directory with tiny finished runs in runs/: quickstart, from_scratch, greedy, value."""
    directory = tmp_path_factory.mktemp("docs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        train("quickstart", *tiny_run, FEW)
        train("from_scratch", *(override for override in tiny_run if "warm_start" not in override))
        for baseline in ("greedy", "value"):  # these log metrics of their own
            own = (f"reinforce.baseline={baseline}", f"output_dir=runs/{baseline}")
            others = OF_BATCHES if baseline == "value" else ()
            train("quickstart", *tiny_run, FEW, *own, *others)
    return directory


@pytest.fixture
def in_runs(finished_runs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in the directory of the finished runs."""
    monkeypatch.chdir(finished_runs)
    return finished_runs


@pytest.fixture
def in_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ------------------------------------------------------------------------------------------ pages and links


def test_readme_has_at_most_220_lines() -> None:
    assert len(TEXTS["README.md"].splitlines()) <= 220


@pytest.mark.parametrize("page", [name for name in TEXTS if name != "README.md"])
def test_page_opens_with_a_title_and_its_purpose(page: str) -> None:
    assert re.match(r"# [^\n]+\n\nThis (page|is) [^.]*?\.", TEXTS[page], re.DOTALL)


def anchors_of(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page: str) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", TEXTS[page]):
        if "://" in target:
            continue
        path = PAGES[page].parent / target if target else PAGES[page]
        assert path.is_file(), target
        assert not anchor or anchor in anchors_of(path), f"{target}#{anchor}"


def test_site_and_readme_lead_to_every_page() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))

    def pages(nav: Any) -> set[str]:
        if isinstance(nav, str):
            return {nav}
        return set().union(*(pages(each) for each in (nav.values() if isinstance(nav, dict) else nav)))

    names = {name.removeprefix("docs/") for name in TEXTS if name.startswith("docs/")}
    assert {name for name in pages(site["nav"]) if "/" not in name} == names
    for name in names - {"index.md"}:
        assert f"]({name}" in TEXTS["docs/index.md"], name
        assert f"](docs/{name})" in TEXTS["README.md"], name


def test_files_named_in_the_pages_exist() -> None:
    for page, text in TEXTS.items():
        for file in re.findall(r"\b(?<!\w/)(?:tests|docs|recipes|data)/[\w/]+\.(?:py|yaml|jsonl)\b", text):
            assert (ROOT / file).is_file(), f"{page}: {file}"
    modules = {path.name for path in PACKAGE.rglob("*.py")}
    for page in ("docs/speed.md", "docs/code-layout.md"):
        for name in re.findall(r"`(?!tests/)(?:[\w/]+/)?(\w+\.py)`", TEXTS[page]):
            assert name in modules, f"{page}: {name}"
    for script in table("docs/reliability.md", "benchmarks"):
        assert (ROOT / "tests" / "benchmarks" / script[0].strip("`").split()[0]).is_file()


# ------------------------------------------------------------------------------------------ commands


def shell_lines() -> Iterator[tuple[str, str]]:
    """Yield the commands in the pages' shell blocks, one at a time, with the page."""
    for each in BLOCKS:
        if each.language == "bash":
            for line in each.code.replace("\\\n", " ").splitlines():
                for command in line.split(" && "):
                    yield each.page, command.partition(" #")[0].strip()


def parse(command: click.Command, arguments: list[str]) -> None:
    """Check the names of options and the number of arguments, without running the command."""
    if isinstance(command, click.Group):
        name, *rest = arguments
        assert name in command.commands, name
        parse(command.commands[name], rest)
    else:
        command.make_context(command.name, list(arguments))


def test_commands_of_the_pages_parse() -> None:
    root, num_parsed = get_command(app), 0
    for page, line in shell_lines():
        program, *arguments = shlex.split(line)
        if program in PROGRAMS:
            num_parsed += 1
            try:
                parse(root, arguments)
            except Exception as error:
                pytest.fail(f"{page}: {line}: {error!r}")
        else:
            others = (".", "curl", "pip", "python3", ".venv/bin/pip", ".venv/bin/python")
            assert program in (*others, "torchrun", "accelerate", "sbatch"), line
    assert num_parsed > 20


def commands_of(group: Any, prefix: str = "") -> dict[str, Any]:
    """Return the commands that do something, by their full names."""
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        inner = hasattr(command, "commands")
        found |= commands_of(command, f"{prefix}{name} ") if inner else {f"{prefix}{name}": command}
    return found


def options_of_command(command: Any) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts}


def test_options_in_the_text_exist() -> None:
    root = get_command(app)
    known = set().union(options_of_command(root), *map(options_of_command, commands_of(root).values()))
    others = {  # of scripts, pip and tensorboard
        "--svamp",
        "--multiarith",
        "--gsm",  # of --gsm8k
        "--trl",
        "--help",
        "--hits",
        "--by",
        "--busy",
        "--layers",
        "--scaling",
        "--vllm-python",
        "--multi_gpu",
        "--use_fsdp",
        "--num_processes",
        "--machine_rank",
        "--master_port",
        "--main_process_port",
        "--nodes",
        "--index-url",
        "--completions",
        "--show",
        "--logdir",
        "--rounds",
        "--sides",
    }
    for page in TEXTS:
        for text in code_words(FENCED.sub("", TEXTS[page])):
            for option in re.findall(r"(?<![-\w])--[a-z][a-z_-]+", text):
                assert option in known | others, f"{page}: {option}"


def test_command_table_names_every_command() -> None:
    shown = [code_words(row[0])[0] for row in table("docs/command-line.md", "commands")]
    names = commands_of(get_command(app))
    assert len(shown) == len(names)
    for name in names:
        assert any(each == name or each.startswith(f"{name} ") for each in shown), name


def test_option_table_names_options_of_their_commands() -> None:
    commands = commands_of(get_command(app))
    for options, names, *_ in table("docs/command-line.md", "options"):
        for name in code_words(names):
            meant = [each for full, each in commands.items() if f"{full} ".startswith(f"{name} ")]
            if name == "llm-reinforce":
                meant = [get_command(app)]
            elif names.startswith("all except"):
                meant = [each for full, each in commands.items() if full != name]
            assert meant, name
            for text in code_words(options):
                assert all(text.split()[0] in options_of_command(command) for command in meant), (text, name)


def test_quick_start_command_runs_the_quick_start(in_empty: Path) -> None:
    *setup, last = block("README.md", "command: quickstart").strip().split(" && ")
    assert setup == ["python3 -m venv .venv", ".venv/bin/pip install -c constraints.txt -e ."]
    program, *arguments = shlex.split(last)
    assert program in PROGRAMS
    invoke(*arguments, *OPTIONS_OF_FEW, "--dry-run")


def test_ci_runs_the_test_command_of_the_readme() -> None:
    assert ".venv/bin/python -m pytest" in block("README.md", "command: tests")
    assert "readme_command tests" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_getting_started_can_be_followed(in_runs: Path) -> None:
    page = "docs/getting-started.md"
    Path("problems.jsonl").write_text(block(page, "file: problems.jsonl"), encoding="utf-8")
    lines = [line for each, line in shell_lines() if each == page]
    for start in (
        "sample --policy runs/quickstart",
        "recipes list",
        "recipes copy",
        "recipes validate",
        "verify",
    ):
        (line,) = (line for line in lines if line.startswith(f"llm-reinforce {start}"))
        invoke(*shlex.split(line.replace("path/to/", ""))[1:])
    for line in lines:
        if line.startswith("llm-reinforce train mine.yaml"):
            invoke(*shlex.split(line.removesuffix("--dry-run"))[1:], *OPTIONS_OF_FEW, "--dry-run")


def test_evaluate_command_prints_the_shown_table(in_runs: Path) -> None:
    program, *arguments = shlex.split(block("docs/evaluation.md", "command: evaluate").replace("\\\n", " "))
    assert program in PROGRAMS
    (shown,) = (each.code for each in BLOCKS if (each.page, each.language) == ("docs/evaluation.md", "text"))

    def words(text: str) -> str:
        return " ".join(re.sub(r"[-+]?[0-9][0-9.e-]*%?", "0", text).split())

    arguments[arguments.index("generate:digits=2,num=500,seed=25")] = "generate:digits=2,num=20,seed=25"
    found = words(invoke(*arguments))
    for part in (  # the other rows are hidden if all of their values are 0
        "0 problems, greedy runs/from_scratch runs/quickstart accuracy 0 [0, 0] 0 [0, 0]",
        "mean length 0 [0, 0] 0 [0, 0] in brackets: 0 intervals accuracy: difference 0 points [0, 0]",
    ):
        assert part in found
        assert part in words(shown)


def test_evaluate_command_of_the_readme_follows_the_quick_start(in_runs: Path) -> None:
    (line,) = (line for page, line in shell_lines() if page == "README.md" and " evaluate " in line)
    assert "20 problems, greedy" in invoke(*shlex.split(line.replace("num=500", "num=20"))[1:])


def test_compare_command_compares(in_empty: Path, tiny_run: list[str]) -> None:
    program, *arguments = shlex.split(block("docs/compare.md", "command: compare").replace("\\\n", " "))
    assert program in PROGRAMS
    for option, small in (("--seeds", "1"), ("--tokens", "100")):
        arguments[arguments.index(option) + 1] = small
    own = ("training.num_updates", "training.num_warmup_updates", "problems.num_held_out")
    tiny = options_of([override for override in tiny_run if not override.startswith(own)])
    tiny += options_of(["evaluation.num_problems=8"])
    output = invoke(*arguments, "--evaluations", "1", *tiny)
    summary = json.loads(Path("runs/compare/comparison.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in summary["runs"]] == ["leave_one_out", "none", "none, lr 1e-4"]
    for title, *_ in table("docs/compare.md", "measures"):
        assert title.replace("the target", "80% accuracy") in output
    files = {name for row in rows_of(section("docs/compare.md", "Output")) for name in code_words(row[0])}
    written = {path.name for path in Path("runs/compare").iterdir() if path.is_file()}
    assert written == {name for name in files if "." in name}


@pytest.fixture
def without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the import of matplotlib fail, since plots take more time than the tiny runs."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)


@pytest.mark.usefixtures("without_matplotlib")
def test_variance_command_prints_the_shown_rows(
    in_empty: Path, tiny_run: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradient_statistics, "NUM_RESAMPLES", 99)
    program, *arguments = shlex.split(block("docs/variance.md", "command: variance"))
    assert program in PROGRAMS
    smaller = [override for override in tiny_run if "num_held_out" not in override]
    options = options_of([*smaller, "reinforce.episodes_per_problem=2"])
    output = invoke(*arguments, *options, "--problems", "32")
    (shown,) = (each.code for each in BLOCKS if (each.page, each.language) == ("docs/variance.md", "text"))
    for line in shown.splitlines()[1:]:
        if word := re.match(r"\w+", line):  # the head, and a row of an estimator
            assert re.search(rf"^{word[0]} ", output, re.MULTILINE), word[0]


def test_claims_page_names_every_claim() -> None:
    named = re.findall(r"llm-reinforce claims (\w+)", block("docs/variance.md", "commands: claims"))
    claims = [name for name in commands_of(get_command(app)) if name.startswith("claims ")]
    assert [f"claims {name}" for name in named] == claims


# ------------------------------------------------------------------------------------------ recipes


@pytest.mark.parametrize("each", [each for each in BLOCKS if each.language == "yaml"], ids=str)
def test_yaml_is_part_of_a_valid_recipe(each: Block, tmp_path: Path) -> None:
    recipe = yaml.safe_load(RECIPE) | yaml.safe_load(each.code)
    text = RECIPE if set(yaml.safe_load(each.code)).isdisjoint(yaml.safe_load(RECIPE)) else ""
    if not text:
        missing = {key: recipe[key] for key in recipe.keys() - yaml.safe_load(each.code).keys()}
        text = yaml.safe_dump(missing) if missing else ""
    file = tmp_path / "recipe.yaml"
    file.write_text(text + each.code, encoding="utf-8")
    load_config(file)


def test_recipe_table_names_every_recipe() -> None:
    named = [row[0].strip("`") for row in rows_of(section("README.md", "Recipes"))]
    assert sorted(named) == sorted(builtin_recipes())
    for path in builtin_recipes().values():
        load_config(path)
        assert "Measured" in path.read_text(encoding="utf-8").split("\nseed:")[0]


def test_results_are_those_of_the_recipe_heads() -> None:
    name = ""
    for row in rows_of(section("README.md", "Results")):
        name = row[0].strip("`") or name
        head = builtin_recipes()[name].read_text(encoding="utf-8").split("\nseed:")[0]
        figures = re.findall(r"[0-9.]+% \[[0-9., ]+\]", " | ".join(row))
        assert len(figures) == 2
        assert f"seed {row[2].split()[0]}:" in head
        for figure in figures:
            assert figure in head, f"{name}: {figure}"


def test_tables_of_word_problems_are_those_of_the_measured_values() -> None:
    script = runpy.run_path(str(ROOT / "tests" / "benchmarks" / "word_problems_plot.py"))
    results = script["read_results"](ROOT / "docs" / "results")
    for name, printed in script["tables"](results).items():
        assert f"<!-- table: {name} -->\n{printed}\n" in TEXTS["docs/results.md"]


# ------------------------------------------------------------------------------------------ Python


def test_reward_files_run_in_a_recipe(in_empty: Path, tiny_run: list[str]) -> None:
    page = "docs/reward-functions.md"
    assert block("README.md", "file: short.py") == block(page, "file: short.py")
    functions = []
    for each in BLOCKS:
        if each.page == page and each.marker.startswith("file: "):
            file = each.marker.removeprefix("file: ")
            Path(file).write_text(each.code, encoding="utf-8")
            functions += [f"{file}:{name}" for name in re.findall(r"^def (\w+)", each.code, re.MULTILINE)]
    assert len(functions) == 3
    rewards = json.dumps([{"function": function} for function in functions])
    train("quickstart", *tiny_run, FEW, f"rewards={rewards}")
    metrics = [json.loads(line) for line in Path("runs/quickstart/metrics.jsonl").read_text().splitlines()]
    for function in functions:
        assert all(f"rewards/{function.partition(':')[2]}/mean" in row for row in metrics), function


def test_example_of_the_readme_is_that_of_the_python_page() -> None:
    example = block("README.md", "python: example")
    assert example in [each.code for each in BLOCKS if each.page == "docs/python.md"]


@pytest.mark.usefixtures("without_matplotlib")
def test_examples_of_the_python_page_run_one_after_the_other(
    in_runs: Path, tiny_run: list[str], tiny_policy: LanguagePolicy, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_policy.save("tiny-model")
    Path("sums.jsonl").write_text('{"prompt": "1+2=", "answer": "3"}\n{"prompt": "2+2=", "answer": "4"}\n')
    small = {"num_updates": 1, "problems_per_update": 1, "max_new_tokens": 4, "num_held_out": 1}
    tiny = [*(override for override in tiny_run if not override.startswith("training.num_updates")), FEW]
    unused = ("training.num_warmup_updates", "problems.num_held_out")
    compared = [override for override in tiny if not override.startswith(unused)]
    compared.append("evaluation.num_problems=8")
    changes: dict[str, dict[str, str]] = {
        "": {'"smollm2-135m", "gsm8k"': '"tiny-model", "sums.jsonl"', '"runs/mine"': '"runs/mine", **small'},
        "python: own": {"num_updates=30": "num_updates=1", "range(10)": "range(4)", "=64": "=16"},
        "python: result": {"num_updates=5": "num_updates=1"},
        "python: recipe": {
            '"training.warm_start.num_updates=20"': "*tiny",
            "num_updates=10": "num_updates=1",
        },
        "python: compare": {
            "seeds=5": "seeds=1",
            "tokens=80_000": "tokens=100, evaluations=1, overrides=compared",
        },
    }
    names: dict[str, Any] = {"__name__": "example", "small": small, "tiny": tiny, "compared": compared}
    for each in BLOCKS:
        if each.page == "docs/python.md" and each.language == "python":
            exec(compile(changed(each.code, changes.get(each.marker, {})), str(each), "exec"), names)
    printed = capsys.readouterr().out
    assert "Verdict(correct=True" in printed
    assert names["result"].accuracy <= 1.0
    assert [path.name for path in Path("runs/two_baselines").iterdir() if path.is_dir()]


def test_examples_that_read_a_run(in_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for marker in ("python: read", "python: load"):
        exec(block("docs/run-directory.md", marker), {})
    assert len(capsys.readouterr().out.split()) == 2


def test_commands_and_example_of_the_report_page(in_runs: Path) -> None:
    assert (in_runs / "runs/quickstart/report.html").is_file()  # written by `train`
    exec(block("docs/report.md", "python: report"), {})
    for line in block("docs/report.md", "command: reports").splitlines():
        replaced = line.replace("runs/compare", "runs").replace(
            "runs/first runs/second", "runs/greedy runs/value"
        )
        invoke(*shlex.split(replaced)[1:])
    assert (in_runs / "runs/report.html").is_file()
    assert (in_runs / "both.html").is_file()


def test_verify_example_prints_its_comments(capsys: pytest.CaptureFixture[str]) -> None:
    code = block("docs/verifier.md", "python: verify")
    exec(code, {})
    assert capsys.readouterr().out.splitlines() == re.findall(r"# (.+)", code)


def test_every_python_block_is_run_by_a_test() -> None:
    run = {"docs/python.md", "docs/report.md", "docs/run-directory.md", "docs/verifier.md"}
    for each in BLOCKS:
        if each.language == "python":
            assert each.page in run or each.marker.startswith(("file: ", "python: example")), each


def test_api_page_has_every_public_name() -> None:
    paths = re.findall(r"^::: ([\w.]+)$", TEXTS["docs/api.md"], re.MULTILINE)
    for path in paths:
        module, _, name = path.rpartition(".")
        assert getattr(importlib.import_module(module), name) is getattr(llm_reinforce, name)
    described = {path.rpartition(".")[2] for path in paths}
    for name in llm_reinforce.__all__:
        assert name in described or f"`{name}`" in TEXTS["docs/api.md"] or name == "__version__", name


# ------------------------------------------------------------------------------------------ tables


def test_settings_page_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("generate_settings", ROOT / "docs" / "generate_settings.py")
    assert spec
    assert spec.loader
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert TEXTS["docs/settings.md"] == generator.settings_page(), "run python docs/generate_settings.py"


def test_defaults_on_the_python_page() -> None:
    config = Config.model_validate({"policy": {"name_or_path": "x"}, "problems": {"generate": {}}})
    sections = (config.training, config.reinforce, config.sampling)
    defaults = {key: value for each in sections for key, value in each.model_dump().items()}
    for keys, shown, *_ in table("docs/python.md", "defaults"):
        values = re.findall(r"[\w.-]+", shown.replace("`", ""))
        for key, value in zip(code_words(keys), values, strict=False):
            if key not in ("learning_rate", "num_held_out"):
                assert str(defaults[key]) == value, key


def test_reward_table_has_every_built_in_reward() -> None:
    rows = {row[0].strip("`"): code_words(row[1]) for row in table("docs/reward-functions.md", "rewards")}
    assert rows == {name: list(kind.model_fields) for name, kind in BUILT_IN_REWARD_ARGUMENTS.items()}


def test_baseline_table_has_every_baseline() -> None:
    names = [row[0].strip("`") for row in table("docs/baselines.md", "baselines")]
    assert sorted(names) == sorted(get_args(ReinforceConfig.model_fields["baseline"].annotation))


def test_data_table_has_every_named_set() -> None:
    names = [name for row in table("docs/evaluation.md", "data") for name in code_words(row[0])]
    assert set(NAMED_SETS) <= set(names)
    (generated,) = (name for name in names if name.startswith("generate:"))
    assert len(find_problems(generated.replace("num=500", "num=5"))) == 5


def test_metric_table_has_every_logged_name_and_no_other(in_runs: Path) -> None:
    rows = [
        json.loads(line)
        for run in ("quickstart", "greedy", "value")
        for line in (in_runs / "runs" / run / "metrics.jsonl").read_text().splitlines()
    ]
    logged = {key for row in rows for key in row} - {"update"}
    logged = {re.sub(r"^rewards/\w+/", "rewards/NAME/", name) for name in logged}
    logged = {re.sub(r"^verdicts/\w+", "verdicts/REASON", name) for name in logged}
    documented = {name for row in table("docs/run-directory.md", "metrics") for name in code_words(row[0])}
    only_with_failures = {"rewards/NAME/num_failed", "greedy/num_unscored"}
    only_with_right_answers = {"value/explained_variance", "step/signal_share"}
    only_in_half_precision = {"frac_weights_changed"}
    of_ratios = {
        name
        for correction in ({}, {"importance": {"level": "token"}})
        for name in RatioCounts(1, 1.0, 1.0).metrics(ReinforceConfig(updates_per_batch=2, **correction))
    }
    rare = only_with_failures | only_with_right_answers | only_in_half_precision | of_ratios
    assert logged | rare | set(SERVER_METRICS) == documented


def test_variant_table_has_every_variant_with_its_settings() -> None:
    shown = {}
    for name, baseline, spread, denominator, clip, _ in table("docs/objectives.md", "variants"):
        keys: dict[str, Any] = {"baseline": baseline, "standardize": spread, "denominator": denominator}
        keys = {key: yaml.safe_load(value.strip("`")) for key, value in keys.items()}
        if clip:
            form, low, high = clip.split(", ")
            keys["clip"] = {"form": form.strip("`"), "low": float(low), "high": float(high)}
        shown[name.strip("`")] = keys
    assert shown == VARIANTS


def test_objectives_page_names_every_setting_of_the_loss() -> None:
    named = " ".join(row[0] for row in table("docs/objectives.md", "equations"))
    others = {"variant", "moving_average_decay", "value", "problems_per_update", "episodes_per_problem"}
    others |= {"updates_per_batch", "refill", "curriculum"}
    settings = {name.split(":")[0] for name in code_words(named)}
    assert settings == set(ReinforceConfig.model_fields) - others


def test_file_table_has_every_file_of_a_run(in_runs: Path) -> None:
    documented = {code_words(row[0])[0].split("/")[0] for row in table("docs/run-directory.md", "files")}
    assert {entry.name for entry in (in_runs / "runs" / "quickstart").iterdir()} == documented


def test_layer_table_has_every_layer_in_order() -> None:
    named = [row[0].strip("`/") for row in table("docs/code-layout.md", "layers")]
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in settings if contract["type"] == "layers")
    in_order = [[name.strip(" ()") for name in layer.split("|")] for layer in reversed(layers)]
    rank = {name: number for number, layer in enumerate(in_order) for name in layer}
    assert sorted(named) == sorted(name for name in rank if (PACKAGE / name).is_dir())
    ranks = [rank[name] for name in named if name != "policy_gradient"]  # it needs torch alone
    assert ranks == sorted(ranks)


def test_table_of_answers_that_are_read_and_refused() -> None:
    rows = {row[0].strip("`"): code_words(row[1]) for row in table("docs/verifier.md", "answers")}
    for example in rows["read as a number"]:
        assert verify(f"#### {example}", example).reason == "equal", example
        assert read_answer(example).value is not None, example
    for reason in ("several_values", "relation", "not_evaluated", "not_a_number"):
        for example in rows[reason]:
            if example != "6=6":
                assert verify(f"#### {example}", "42").reason == reason, example
