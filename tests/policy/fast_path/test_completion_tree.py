"""The tree of completions, by hand."""

import pytest
import torch

from llm_reinforce.policy.fast_path import completion_tree
from llm_reinforce.policy.fast_path.completion_tree import CompletionTree, pack_completions
from llm_reinforce.policy.fast_path.packing import pack_prompts

CPU = torch.device("cpu")
PROMPTS = [(1, 2, 3), (5,)]
COMPLETIONS = [(4, 6, 12), (7, 12), (4, 12), (4, 6, 6), (12,), (8, 12), (4, 6, 12)]
OF_PROMPT = [0, 1, 0, 0, 0, 0, 0]


def tree_of(bundled: int, monkeypatch: pytest.MonkeyPatch) -> CompletionTree:
    monkeypatch.setattr(completion_tree, "BUNDLE_SIZE", bundled)
    return pack_completions(COMPLETIONS, OF_PROMPT, [3, 1], CPU)


def test_what_completions_begin_with_stands_there_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tree_of(32, monkeypatch)
    # behind the first prompt 4, 4 6 and 8; behind the second 7
    assert tree.token_ids.tolist() == [4, 6, 8, 7]
    assert tree.positions.tolist() == [3, 4, 3, 1]
    # prompts are 0 and 1, so the tokens are 2, 3, 4, 5
    states = [[0, 2, 3], [1, 5], [0, 2], [0, 2, 3], [0], [0, 4], [0, 2, 3]]
    assert tree.states.tolist() == [state for of_one in states for state in of_one]
    assert tree.is_action.sum(dim=1).tolist() == [len(completion) for completion in COMPLETIONS]
    assert tree.bundles is not None
    assert tree.bundles.ends.tolist() == [2, 2, 3, 4]


def test_a_token_looks_at_its_prompt_at_what_it_follows_and_at_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundles = tree_of(32, monkeypatch).bundles
    assert bundles is not None
    assert bundles.prompt.tolist() == [0, 1]
    assert bundles.slots.tolist() == [[0, 1, 2], [3, 3, 3]]
    assert bundles.places.tolist() == [0, 1, 2, 3]
    rows = bundles.rows(pack_prompts(PROMPTS, CPU))
    # the prompts' tokens are 0 to 3, the completions' 4 to 7
    assert rows.queries.tolist() == [[4, 5, 6], [7, 7, 7]]
    assert rows.keys.tolist() == [[0, 1, 2, 4, 5, 6], [3, 3, 3, 7, 7, 7]]
    assert rows.mask is not None
    mask = rows.mask.long()
    assert mask[0].tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 1]]
    assert mask[1, 0].tolist() == [1, 0, 0, 1, 0, 0]


def test_a_bundle_lays_out_what_it_follows_in_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion_tree, "BUNDLE_SIZE", 2)
    bundles = pack_completions([(4, 6, 12), (4, 9, 9, 12)], [0, 0], [1], CPU).bundles
    assert bundles is not None
    assert bundles.slots.tolist() == [[0, 1], [2, 3]]
    assert bundles.seen.tolist() == [[0, 1, 4], [0, 2, 3]]
    mask = bundles.rows(pack_prompts([(5,)], CPU)).mask
    assert mask is not None
    assert mask.long().tolist() == [[[1, 1, 0, 0], [1, 1, 1, 0]], [[1, 1, 1, 0], [1, 1, 1, 1]]]


def test_where_one_completion_is_long_the_short_ones_share_a_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion_tree, "BUNDLE_SIZE", 2)
    completions = [(2, 3, 12), (1, 1, 1, 1, 1, 1, 12), (6, 7, 12), (4, 5, 12)]
    bundles = pack_completions(completions, [0] * 4, [1], CPU).bundles
    assert bundles is not None
    assert bundles.slots.tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]


def test_of_one_action_each_there_is_no_tree() -> None:
    tree = pack_completions([(4,), (5,)], [0, 0], [2], CPU)
    assert tree.bundles is None
    assert tree.token_ids.tolist() == []
    assert tree.states.tolist() == [0, 0]
