"""The predicted memory of a run follows from the sizes of the model and of the batch."""

import pytest
from small_runs import small_policy, trainer

from llm_reinforce.config import ReinforceConfig, SamplingConfig, TrainingConfig
from llm_reinforce.policy import memory_per_token
from llm_reinforce.training.memory import ON_CPU, optimizer_bytes, predict_memory

LAYERS, HIDDEN, INTERMEDIATE, VOCABULARY = 1, 16, 32, 6  # of the small policy, which has a key for each head


def test_memory_per_token_follows_from_the_shape() -> None:
    found = memory_per_token(small_policy(), (1, 2), num_completions=3, max_new_tokens=4)
    assert found.cached == LAYERS * 2 * HIDDEN * 4
    # queries, keys, values, outputs of attention, gate, up, and outputs of the feed-forward layer
    assert found.kept == LAYERS * (5 * HIDDEN + 2 * INTERMEDIATE) * 4
    assert found.logits == VOCABULARY * 4
    # at least the inputs of the layers, of gate and up, and of the last product
    assert found.saved > LAYERS * (3 * HIDDEN + 4 * INTERMEDIATE) * 4
    recomputed, saved = (
        found.of_backward(1000, gradient_checkpointing=gradient_checkpointing)
        for gradient_checkpointing in (True, False)
    )
    assert recomputed - saved == pytest.approx(1000 * HIDDEN * 4)  # of a model with one layer


def test_size_of_the_optimizer() -> None:
    policy = small_policy()
    num = sum(each.numel() for each in policy.model.parameters())
    one = trainer(policy, num_updates=1)
    one.train()
    state = one.optimizer.state_dict()["state"]
    measured = sum(state[index][name].nbytes for index in state for name in ("exp_avg", "exp_avg_sq"))
    assert optimizer_bytes(policy.model.parameters(), one.training) == measured == 8 * num
    policy.model.bfloat16()
    assert optimizer_bytes(policy.model.parameters(), TrainingConfig()) == 12 * num
    assert optimizer_bytes(policy.model.parameters(), TrainingConfig(master_weights=False)) == 4 * num


def test_float32_copies_are_part_of_the_memory_in_use() -> None:
    policy = small_policy()
    policy.model.bfloat16()
    num = sum(each.numel() for each in policy.model.parameters())
    assert predict_memory(trainer(policy), 0.0).parts["optimizer"] == 8 * num


def test_processes_of_a_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    one = trainer()
    alone = predict_memory(one, 0.0).available
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert predict_memory(one, 0.0).available < 0.5 * alone


def test_larger_batches_need_more_memory() -> None:
    def peaks(num_episodes: int, **training: int) -> tuple[float, float]:
        one = trainer(
            reinforce=ReinforceConfig(problems_per_update=4, episodes_per_problem=num_episodes),
            sampling=SamplingConfig(max_new_tokens=5),
            training=training,
        )
        found = predict_memory(one, 0.0)
        return found.sampling - ON_CPU, found.update - ON_CPU

    small, large = peaks(2), peaks(200)
    assert all(one < 0.1 * other for one, other in zip(small, large, strict=True))
    limited = peaks(200, micro_batch_tokens=100)
    assert limited[1] < 0.2 * large[1]
