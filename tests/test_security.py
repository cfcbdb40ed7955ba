"""Untrusted input: paths stay inside their directories, secrets are not printed, and code is not executed."""

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from llm_reinforce.cli import app
from llm_reinforce.config import AdapterConfig, RandomInitConfig
from llm_reinforce.errors import InputError, without_secrets
from llm_reinforce.evaluation.pipeline import answer_file_name
from llm_reinforce.policy import fetch, load_policy, random_policy

SECRETS = {
    "HF_TOKEN": "hf_plantedPLANTEDplanted",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
}
SHORT = ("--max-new-tokens", "3")
RECIPE = """\
policy:
  random_init:
    {num_layers: 1, num_heads: 2, hidden_size: 8, intermediate_size: 16, max_length: 24,
     alphabet: "0123456789+="}
problems: {generate: {digits: [1]}, num_held_out: 4}
sampling: {max_new_tokens: 3}
reinforce: {problems_per_update: 4, episodes_per_problem: 2}
training: {num_updates: 2, learning_rate: 1e-3}
evaluation: {every: 1}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current directory, which contains a tiny recipe."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("tiny.yaml").write_text(RECIPE)
    return tmp_path / "here"


@pytest.fixture
def policy(folder: Path) -> Path:
    """Return the directory of a saved policy."""
    shape = RandomInitConfig(
        alphabet="0123456789+=", num_layers=1, num_heads=2, hidden_size=8, intermediate_size=8, max_length=24
    )
    random_policy(shape).save(folder / "policy")
    return folder / "policy"


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def contents(root: Path) -> str:
    return "".join(path.read_bytes().decode(errors="replace") for path in root.rglob("*") if path.is_file())


# -------------------------------------------------------------------------------- names and paths


@given(
    st.text(max_size=400)
    | st.sampled_from(["..", "../../etc/passwd", "/etc/passwd", "a\0b", "~", "日" * 300])
)
def test_name_of_a_data_set_gives_a_safe_file_name(data: str) -> None:
    name = answer_file_name(data, "greedy")
    assert Path(name).name == name
    assert "\0" not in name
    assert len(name.encode()) < 200


def test_answers_to_an_outside_data_set_stay_in_the_output_directory(folder: Path, policy: Path) -> None:
    outside = folder.parent / ("日" * 60 + ".jsonl")
    outside.write_text('{"prompt": "1+1=", "answer": "2"}\n')
    before = files(folder.parent)
    result = command(
        "evaluate", "--policy", policy, "--data", f"../{outside.name}", "--output", "out", *SHORT
    )
    assert result.exit_code == 0, result.output
    new = files(folder.parent) - before
    assert len(new) == 2  # results and answers
    assert all(name.startswith("here/out/") for name in new)


@pytest.mark.parametrize("name", ["../../x", "/x", "smollm2-135m/../x", ""])
def test_only_known_models_can_be_fetched(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_REINFORCE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match="unknown model"):
        fetch(name, lambda gguf, directory: directory, lambda sentence: None)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("run", ["runs/a b;rm -rf $HOME;$(touch sprung)[bold]x[-]\u202e", "runs/-x"])
def test_special_characters_in_the_name_of_a_run_have_no_effect(folder: Path, run: str) -> None:
    result = command("train", "tiny.yaml", "--set", f"output_dir={json.dumps(run)}")
    assert result.exit_code == 0, result.output
    assert {name for name in files(folder) if not name.startswith(run + "/")} == {"tiny.yaml"}
    assert "\u202e" not in result.output


# --------------------------------------------------------------------------------------- secrets


def test_secrets_are_replaced_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SHORT_TOKEN", "a")
    text = f"GET https://user:{SECRETS['HF_TOKEN']}@host a {SECRETS['WANDB_API_KEY']}"
    assert without_secrets(text) == "GET https://user:<HF_TOKEN>@host a <WANDB_API_KEY>"


@pytest.mark.parametrize("isolation", ["null", "{num_workers: 1}"])
@pytest.mark.parametrize("is_hopeless", [False, True])
def test_secrets_are_not_in_files_or_output_of_a_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, isolation: str, is_hopeless: bool
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    well = "False" if is_hopeless else "len(completion) % 2"
    Path("mine.py").write_text(
        "import os\ndef mine(completion, problem):\n"
        f"    if {well}: return 1.0\n"
        "    raise OSError('401 for ' + os.environ['HF_TOKEN'] + ' ' + os.environ['WANDB_API_KEY'])\n"
    )
    reward = f"rewards=[{{function: 'mine.py:mine', isolation: {isolation}}}]"
    settings = ["--set", reward, "--set", "training.max_unscored_share=1.0"]
    result = command("train", "tiny.yaml", *settings, "--debug")
    said = result.output + (result.stderr or "")
    assert result.exit_code == (2 if is_hopeless else 0), said
    assert "401 for <HF_TOKEN> <WANDB_API_KEY>" in said
    for value in SECRETS.values():
        assert value not in said + contents(folder)


# ------------------------------------------------------------------------------- malicious files


def trap(sprung: Path) -> bytes:
    """Return a pickle that creates a folder when it is loaded."""

    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(sprung),)

    return pickle.dumps({"lm_head.weight": Trap()})


def test_loading_the_malicious_pickle_creates_the_folder(folder: Path) -> None:
    pickle.loads(trap(folder / "sprung"))
    assert Path("sprung").exists()


PICKLES = ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "adapter_model.bin", "tokenizer.pkl")


def test_pickles_beside_a_policy_are_not_loaded(folder: Path, policy: Path) -> None:
    for name in PICKLES:
        (policy / name).write_bytes(trap(folder / "sprung"))
    result = command("sample", "--policy", policy, "1+1=", *SHORT)
    assert result.exit_code == 0, result.output
    (policy / "model.safetensors").unlink()
    assert command("sample", "--policy", policy, "1+1=").exit_code == 2
    assert not Path("sprung").exists()


def test_pickles_and_code_beside_an_adapter_are_not_executed(
    folder: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = folder / "adapter"
    monkeypatch.syspath_prepend(adapter)  # makes the library named in the adapter importable
    load_policy(policy, lora=AdapterConfig(rank=2)).save(adapter)
    for name in PICKLES:
        (adapter / name).write_bytes(trap(folder / "sprung"))
    evil = f"import os\nos.mkdir({str(folder / 'sprung')!r})\n"
    for place in (adapter, policy):
        (place / "evil.py").write_text(evil)
    for file in (adapter / "adapter_config.json", policy / "config.json"):
        values = json.loads(file.read_text())
        classes = {"auto_map": {"AutoModelForCausalLM": "evil.M"}, "trust_remote_code": True}
        mapping = {"auto_mapping": {"base_model_class": "M", "parent_library": "evil"}}
        file.write_text(json.dumps({**values, **(classes if file.parent == policy else mapping)}))
    result = command("sample", "--policy", adapter, "1+1=", *SHORT)
    assert result.exit_code in (0, 2), result.output
    (adapter / "adapter_model.safetensors").unlink()
    assert command("sample", "--policy", adapter, "1+1=").exit_code == 2
    assert not Path("sprung").exists()


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a finished run of two updates, which tests copy."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert command("train", "tiny.yaml", "--set", "output_dir=run").exit_code == 0
    return folder / "run"


@pytest.mark.parametrize("name", ["policy.safetensors", "optimizer.safetensors", "state.json"])
def test_pickles_in_a_checkpoint_are_not_loaded(folder: Path, finished_run: Path, name: str) -> None:
    """The digests match, so the integrity check does not reject the file."""
    shutil.copytree(finished_run, "run")
    checkpoint = folder / "run" / "checkpoints" / "update-000002"
    (checkpoint / name).write_bytes(trap(folder / "sprung"))
    digests = json.loads((checkpoint / "manifest.json").read_text())
    digests[name] = hashlib.sha256((checkpoint / name).read_bytes()).hexdigest()
    (checkpoint / "manifest.json").write_text(json.dumps(digests))
    longer = ("--set", "training.num_updates=3")
    result = command("train", "tiny.yaml", "--set", "output_dir=run", "--resume", *longer)
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    assert not Path("sprung").exists()


@pytest.mark.parametrize("suffix", ["pkl", "jsonl", "json", "bin", "npy", "arrow", "parquet", "xml"])
def test_pickles_are_not_loaded_as_data_sets(folder: Path, policy: Path, suffix: str) -> None:
    Path(f"data.{suffix}").write_bytes(trap(folder / "sprung"))
    result = command("evaluate", "--policy", policy, "--data", f"data.{suffix}")
    assert result.exit_code == 2, result.output
    assert not Path("sprung").exists()


def test_code_of_a_data_set_is_not_executed(folder: Path, policy: Path) -> None:
    (folder / "set").mkdir()
    (folder / "set" / "set.py").write_text(f"import os\nos.mkdir({str(folder / 'sprung')!r})\n")
    assert command("evaluate", "--policy", policy, "--data", folder / "set").exit_code == 2
    assert not Path("sprung").exists()


def test_code_beside_a_policy_is_not_executed(folder: Path, policy: Path) -> None:
    for name in ("evil.py", "custom_generate/generate.py"):
        (policy / name).parent.mkdir(exist_ok=True)
        (policy / name).write_text(f"import os\nos.mkdir({str(folder / 'sprung')!r})\n")
    for name, classes in (
        ("config.json", {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["evil.T", "evil.T"]}),
    ):
        values = json.loads((policy / name).read_text())
        (policy / name).write_text(json.dumps({**values, "auto_map": classes}))
    for arguments in (
        ["sample", "--policy", policy, "1+1="],
        ["train", "tiny.yaml", "--set", f"policy={{name_or_path: {policy}}}"],
    ):
        result = command(*arguments)
        assert result.exit_code in (0, 2), result.output  # loaded with the built-in class, or rejected
    assert not Path("sprung").exists()


def test_chat_templates_cannot_execute_code(folder: Path, policy: Path) -> None:
    call = f"cycler.__init__.__globals__.os.mkdir({str(folder / 'sprung')!r})"
    (policy / "chat_template.jinja").write_text(f"{{{{ {call} }}}}{{{{ messages[0].content }}}}")
    result = command("sample", "--policy", policy, "1+1=", *SHORT)
    assert result.exit_code != 0
    assert "Traceback" not in result.output
    assert not Path("sprung").exists()


def test_reward_function_of_a_run_is_executed_only_in_training(folder: Path, policy: Path) -> None:
    """Sampling from and evaluating the policy of a run do not execute the reward file in its recipe."""
    Path("evil.py").write_text(f"import os\nos.mkdir({str(folder / 'sprung')!r})\n")
    recipe = RECIPE + f"rewards: [{{function: '{folder / 'evil.py'}:f'}}]\n"
    for name in ("recipe.yaml", "evil.yaml"):
        Path(name).write_text(recipe)
    sums = '{"prompt": "1+1=", "answer": "2"}\n'
    Path("sums.jsonl").write_text(sums)
    for arguments in (
        ["sample", "--policy", folder, "1+1="],
        ["evaluate", "--policy", folder, "--data", "sums.jsonl"],
        ["recipes", "validate", "evil.yaml"],
    ):
        result = command(*arguments)
        assert result.exit_code == 0, result.output
    assert not Path("sprung").exists()


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.mkdir", "!!python/object/new:os.mkdir", "!!python/name:os.mkdir"]
)
def test_yaml_tags_are_not_executed(tag: str) -> None:
    Path("evil.yaml").write_text(RECIPE + f"output_dir: {tag} [sprung]\n")
    for arguments in (
        ["train", "evil.yaml"],
        ["recipes", "validate", "evil.yaml"],
        ["train", "tiny.yaml", "--set", f"seed={tag} [sprung]"],
    ):
        assert command(*arguments).exit_code == 2
    assert files(Path()) == {"tiny.yaml", "evil.yaml"}
    assert not Path("sprung").exists()
