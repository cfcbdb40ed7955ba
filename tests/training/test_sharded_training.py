"""Training with FSDP2: the weights are divided among the processes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import two_processes
import two_sharded_processes
from processes import run_forked
from small_runs import new_run, small_policy, trainer
from two_sharded_processes import NUM_UPDATES, RUNS, VARIABLES, adapter, flat_weights, result

from llm_reinforce import load_recipe
from llm_reinforce.checkpoint_files import find_checkpoint
from llm_reinforce.config import builtin_recipes
from llm_reinforce.errors import InputError
from llm_reinforce.policy import load_policy
from llm_reinforce.processes import Sharding, check_launch, sharding, working_command
from llm_reinforce.runs import RunDirectory
from llm_reinforce.training import data_parallel

REPOSITORY = Path(__file__).parents[2]


def launch(call: Any, folder: Path) -> subprocess.CompletedProcess[str]:
    return run_forked(
        lambda: two_processes.launch(call, folder, **VARIABLES), timeout=150, OMP_NUM_THREADS="1"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:

    directory = tmp_path_factory.mktemp("sharded")
    small_policy().save(directory / "base")
    return directory


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """Return the directory with the results of all runs in two processes, and with a run that was killed."""

    for name in ("left", "run"):
        new_run(folder / name)
    done = launch(two_sharded_processes.train_all, folder)
    assert done.returncode == 1, done.stderr[-4000:]
    assert (folder / "lost.txt").is_file(), done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def resumed(trained: Path) -> Path:
    """Return the directory with the results of resumed runs in two processes."""
    shutil.copytree(trained / "run", trained / "killed")
    one = adapter(trained, new_run(trained / "begun by one"))
    for update in one.updates():
        if update.number == 1:
            break
    done = launch(two_sharded_processes.resume_all, trained)
    assert done.returncode == 0, done.stderr[-4000:]
    return trained


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_sharded_run_equals_that_of_one_process(trained: Path, name: str) -> None:
    weights, metrics = result(RUNS[name](trained))
    is_half = weights.dtype == torch.bfloat16  # the two paths round differently
    tolerance = 1e-2 if is_half else 1e-5
    torch.testing.assert_close(torch.load(trained / f"{name}.pt"), weights, rtol=0, atol=tolerance)
    of_both = json.loads((trained / f"{name}.json").read_text())
    assert len(of_both) == len(metrics) > 0
    for row, sharded in zip(metrics, of_both, strict=True):
        # a run in one process may reuse the log-probabilities that it has sampled
        differences = (each.pop("sampling/sampling_logp_difference/max", 0.0) for each in (row, sharded))
        assert all(difference < (0.1 if is_half else 1e-5) for difference in differences)
        assert sharded == pytest.approx(row, rel=0.1 if is_half else 1e-3, abs=1e-4)


@pytest.mark.slow
def test_a_lost_process_ends_a_sharded_run(trained: Path) -> None:
    """A part of the optimizer is lost with the process, so the run continues from its regular checkpoint."""
    message = (trained / "lost.txt").read_text()
    assert message.startswith("the connection to another process was lost, because")
    assert "checkpoint" not in message
    checkpoint, faults = find_checkpoint(trained / "run" / "checkpoints")
    assert checkpoint is not None
    assert (checkpoint.name, faults) == ("update-000002", [])


@pytest.mark.slow
def test_a_killed_run_is_resumed(resumed: Path) -> None:
    uninterrupted = torch.load(resumed / "adapter.pt")
    assert torch.equal(torch.load(resumed / "run.pt"), uninterrupted)
    # a run may also be resumed with another number of processes, in both directions
    torch.testing.assert_close(torch.load(resumed / "begun by one.pt"), uninterrupted, rtol=0, atol=1e-5)
    in_one = adapter(resumed, RunDirectory(resumed / "killed"))
    assert in_one.train(resume=True).num_updates == NUM_UPDATES
    torch.testing.assert_close(flat_weights(in_one.policy), uninterrupted, rtol=0, atol=1e-5)
    saved = load_policy(resumed / "run" / "policy")
    assert torch.equal(flat_weights(saved), uninterrupted)


# ----------------------------------------------------------------------------- settings of the launch


def set_variables(values: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("FSDP_", "ACCELERATE_")):
            monkeypatch.delenv(name)
    for name, value in values.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"FSDP_VERSION": "1"}, r"version 1 of FSDP, .* add --fsdp_version 2"),
        ({"FSDP_OFFLOAD_PARAMS": "True"}, "fsdp_offload_params, which is not supported; remove"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "fsdp_activation_checkpointing, which is not"),
        ({"FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"}, "fsdp_auto_wrap_policy SIZE_BASED_WRAP, which"),
        ({"FSDP_IGNORED_MODULES": ".*head"}, "fsdp_ignored_modules, which"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "use_parallelism_config, which"),
        ({"ACCELERATE_USE_FSDP": "no", "ACCELERATE_USE_DEEPSPEED": "true"}, "use_deepspeed, which"),
    ],
)
def test_unsupported_settings_are_refused_before_the_policy_is_loaded(
    changed: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_variables({**VARIABLES, **changed}, monkeypatch)
    with pytest.raises(InputError, match=message):
        load_recipe("quickstart", ["policy.random_init=null", "policy.name_or_path=missing"]).train()


@pytest.mark.parametrize(
    "setting",
    ["training.mixed_precision: fp16", "training.optimizer: adamw_8bit", "policy.load_in_4bit: true"],
)
def test_unsupported_settings_of_a_recipe_are_refused(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_variables(VARIABLES, monkeypatch)
    settings = ["policy.random_init=null", "policy.name_or_path=missing", "policy.lora.rank=2"]
    with pytest.raises(InputError, match=f"{setting.removesuffix(': true')} is not supported with FSDP"):
        load_recipe("quickstart", [*settings, setting.replace(": ", "=")]).train()


def test_settings_of_fsdp_are_ignored_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    set_variables({"FSDP_OFFLOAD_PARAMS": "true", "FSDP_VERSION": "1"}, monkeypatch)
    assert sharding() is None


def test_one_process_has_nothing_to_divide(monkeypatch: pytest.MonkeyPatch) -> None:
    set_variables(VARIABLES, monkeypatch)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    one = trainer(num_updates=1)
    one.train()
    assert one.gradient_step.model is one.policy.model


def test_the_configuration_file_of_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launch with `recipes/accelerate/fsdp2.yaml`, up to the start of the processes."""
    import torch.distributed.run
    from accelerate.commands import launch as accelerate_launch

    set_variables({}, monkeypatch)
    found = []

    def started(arguments: Any) -> None:
        check_launch()
        found.append((sharding(), arguments.nproc_per_node, arguments.training_script))

    monkeypatch.setattr(torch.distributed.run, "run", started)
    file = REPOSITORY / "recipes" / "accelerate" / "fsdp2.yaml"
    assert file.stem not in builtin_recipes()
    rest = ["--config_file", str(file), "--num_processes", "4", "-m", "llm_reinforce", "train", "quickstart"]
    for options, layers in ((rest, ()), (["--fsdp_transformer_layer_cls_to_wrap", "A,B", *rest], ("A", "B"))):
        monkeypatch.setattr(sys, "argv", ["accelerate", *options])
        accelerate_launch.main()
        assert found.pop() == (Sharding(layers, reshard_after_forward=True), "4", "llm_reinforce")


def test_the_command_of_an_error_message_keeps_fsdp(monkeypatch: pytest.MonkeyPatch) -> None:
    set_variables(VARIABLES, monkeypatch)
    assert working_command(2).startswith(
        "ACCELERATE_USE_FSDP=true FSDP_VERSION=2 torchrun --nproc_per_node 2"
    )


def test_policies_that_cannot_be_divided_are_refused() -> None:
    policy = small_policy()
    with pytest.raises(InputError, match=r"names Missing, but the policy .*, such as LlamaDecoderLayer"):
        data_parallel.ShardedModel(policy.model, torch.device("cpu"), layer_classes=("LlamaMLP", "Missing"))
    policy.model.lm_head.weight.data = policy.model.lm_head.weight.data.to(torch.bfloat16)
    with pytest.raises(InputError, match=r"several data types \(torch.bfloat16, torch.float32\)"):
        data_parallel.ShardedModel(policy.model, torch.device("cpu"))
    policy.model.lm_head.weight = torch.nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(InputError, match=r"the weight lm_head.weight is quantized, .* without FSDP"):
        data_parallel.ShardedModel(policy.model, torch.device("cpu"))


def test_layers_that_share_a_weight_must_not_be_separated() -> None:
    # in a fork, because torch keeps process groups until a process ends, and later forks would hang
    done = run_forked(check_shared_weights, 100)
    assert done.returncode == 0, done.stderr


def check_shared_weights() -> None:
    policy, cpu = small_policy(), torch.device("cpu")
    policy.model.lm_head.weight = policy.model.model.embed_tokens.weight
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    with pytest.raises(InputError, match=r"the weight lm_head.weight is shared with .*; remove this setting"):
        data_parallel.ShardedModel(policy.model, cpu, layer_classes=("Embedding", "LlamaDecoderLayer"))
    sharded = data_parallel.ShardedModel(policy.model, cpu)
    assert sharded.module.lm_head.weight is sharded.module.model.embed_tokens.weight
