"""Tests of the tree of completions against layouts written by hand."""

import pytest
import torch

from llm_reinforce.policy.fast_path import completion_tree
from llm_reinforce.policy.fast_path.completion_tree import CompletionTree, pack_completions
from llm_reinforce.policy.fast_path.packing import pack_prompts

CPU = torch.device("cpu")
PROMPTS = [(1, 2, 3), (5,)]
COMPLETIONS = [(4, 6, 12), (7, 12), (4, 12), (4, 6, 6), (12,), (8, 12), (4, 6, 12)]
OF_PROMPT = [0, 1, 0, 0, 0, 0, 0]


def tree_of(bundle_size: int, monkeypatch: pytest.MonkeyPatch) -> CompletionTree:
    monkeypatch.setattr(completion_tree, "BUNDLE_SIZE", bundle_size)
    return pack_completions(COMPLETIONS, OF_PROMPT, [3, 1], CPU)


def test_shared_prefixes_occur_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tree_of(32, monkeypatch)
    # the first prompt is followed by 4, 4 6 and 8, the second by 7
    assert tree.token_ids.tolist() == [4, 6, 8, 7]
    assert tree.positions.tolist() == [3, 4, 3, 1]
    # states 0 and 1 are the prompts, 2 to 5 the tokens
    states = [[0, 2, 3], [1, 5], [0, 2], [0, 2, 3], [0], [0, 4], [0, 2, 3]]
    assert tree.states.tolist() == [state for of_one in states for state in of_one]
    assert tree.is_action.sum(dim=1).tolist() == [len(completion) for completion in COMPLETIONS]
    assert tree.bundles is not None
    assert tree.bundles.ends.tolist() == [2, 2, 3, 4]


def test_token_attends_to_its_prompt_its_ancestors_and_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundles = tree_of(32, monkeypatch).bundles
    assert bundles is not None
    assert bundles.prompt.tolist() == [0, 1]
    assert bundles.slots.tolist() == [[0, 1, 2], [3, 3, 3]]
    assert bundles.places.tolist() == [0, 1, 2, 3]
    rows = bundles.rows(pack_prompts(PROMPTS, CPU))
    # tokens 0 to 3 belong to prompts, 4 to 7 to completions
    assert rows.queries.tolist() == [[4, 5, 6], [7, 7, 7]]
    assert rows.keys.tolist() == [[0, 1, 2, 4, 5, 6], [3, 3, 3, 7, 7, 7]]
    assert rows.mask is not None
    mask = rows.mask.long()
    assert mask[0].tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 1]]
    assert mask[1, 0].tolist() == [1, 0, 0, 1, 0, 0]


def test_bundle_attends_to_ancestors_in_another_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion_tree, "BUNDLE_SIZE", 2)
    bundles = pack_completions([(4, 6, 12), (4, 9, 9, 12)], [0, 0], [1], CPU).bundles
    assert bundles is not None
    assert bundles.slots.tolist() == [[0, 1], [2, 3]]
    assert bundles.seen.tolist() == [[0, 1, 4], [0, 2, 3]]
    mask = bundles.rows(pack_prompts([(5,)], CPU)).mask
    assert mask is not None
    assert mask.long().tolist() == [[[1, 1, 0, 0], [1, 1, 1, 0]], [[1, 1, 1, 0], [1, 1, 1, 1]]]


def test_short_completions_share_a_bundle_as_wide_as_the_longest_completion(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(completion_tree, "BUNDLE_SIZE", 2)
    completions = [(2, 3, 12), (1, 1, 1, 1, 1, 1, 12), (6, 7, 12), (4, 5, 12)]
    bundles = pack_completions(completions, [0] * 4, [1], CPU).bundles
    assert bundles is not None
    assert bundles.slots.tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]


def test_tree_is_empty_if_completions_have_one_action() -> None:
    tree = pack_completions([(4,), (5,)], [0, 0], [2], CPU)
    assert tree.bundles is None
    assert tree.token_ids.tolist() == []
    assert tree.states.tolist() == [0, 0]
