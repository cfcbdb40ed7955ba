"""Answers on disk, and results in the format of lm-evaluation-harness."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_reinforce.errors import InputError
from llm_reinforce.evaluation import (
    AnswerFile,
    TaskResult,
    fingerprint,
    harness_results,
    measure_accuracy,
    open_answers,
    problems_digest,
)
from llm_reinforce.policy import LanguagePolicy
from llm_reinforce.problems import Problem

PROBLEMS = [Problem(f"{a}+{b}=", str(a + b), id=f"{a}{b}") for a in range(3) for b in range(3)]
IDENTITY = {"data": "sums", "seed": 0, "stop": ("x",)}


def evaluated(policy: LanguagePolicy, journal: AnswerFile | None = None) -> Any:
    return measure_accuracy(
        policy,
        PROBLEMS,
        decoding="sampled",
        samples_per_problem=2,
        max_new_tokens=3,
        batch_size=6,
        journal=journal,
    )


def test_written_answers_are_read_again(tiny_policy: LanguagePolicy, tmp_path: Path) -> None:
    path = tmp_path / "new" / "answers.jsonl"
    whole = evaluated(tiny_policy)
    assert evaluated(tiny_policy, open_answers(path, IDENTITY, PROBLEMS)) == whole
    lines = path.read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[0]) == {"evaluation": {**IDENTITY, "stop": ["x"]}}
    assert len(lines) == 1 + len(PROBLEMS)
    row = json.loads(lines[1])
    assert set(row) == {"index", "id", "prompt", "answer", "completions"}
    again = open_answers(path, IDENTITY, PROBLEMS)
    assert len(again.done) == 9
    assert evaluated(tiny_policy, again) == whole


@pytest.mark.parametrize("kept", [1, 4, 9])
def test_incomplete_file_is_continued(tiny_policy: LanguagePolicy, tmp_path: Path, kept: int) -> None:
    path = tmp_path / "answers.jsonl"
    whole = evaluated(tiny_policy, open_answers(path, IDENTITY, PROBLEMS))
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:kept]) + lines[kept][:10], encoding="utf-8")
    again = open_answers(path, IDENTITY, PROBLEMS)
    assert len(again.done) == kept - 1
    assert evaluated(tiny_policy, again) == whole
    assert sorted(path.read_text(encoding="utf-8").splitlines()) == sorted("".join(lines).splitlines())
    path.write_text('{"evalua', encoding="utf-8")  # the first line is incomplete
    assert open_answers(path, IDENTITY, PROBLEMS).done == {}


def test_file_of_another_evaluation_is_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    open_answers(path, IDENTITY, PROBLEMS)
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"another evaluation \(seed: 0 in the file, 1 now\)"):
        open_answers(path, {**IDENTITY, "seed": 1}, PROBLEMS)
    assert path.read_bytes() == before
    for text in ("{}\n", "[]\n", "3\n", "thesis\n"):
        path.write_text(text)
        with pytest.raises(InputError, match="not an answer file of an evaluation"):
            open_answers(path, IDENTITY, PROBLEMS)
        assert path.read_text() == text


@pytest.mark.parametrize(
    "line", ["{}", "x", '{"index": 99, "completions": []}', '{"index": 1, "completions": 3}']
)
def test_invalid_line_is_reported(tmp_path: Path, line: str) -> None:
    path = tmp_path / "answers.jsonl"
    open_answers(path, IDENTITY, PROBLEMS)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(InputError, match="line 2: this line was not written by an evaluation"):
        open_answers(path, IDENTITY, PROBLEMS)


def test_directory_instead_of_a_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be read or written"):
        open_answers(tmp_path, IDENTITY, PROBLEMS)


def test_fingerprint_depends_on_the_weights(tiny_policy: LanguagePolicy) -> None:
    before = fingerprint(tiny_policy)
    assert fingerprint(tiny_policy) == before
    with torch.no_grad():
        next(tiny_policy.model.parameters()).mul_(1.001)
    assert fingerprint(tiny_policy) != before


def test_digest_depends_on_the_problems() -> None:
    assert problems_digest(PROBLEMS) == problems_digest(list(PROBLEMS))
    assert problems_digest(PROBLEMS) != problems_digest(PROBLEMS[::-1])
    assert problems_digest(PROBLEMS) != problems_digest(PROBLEMS[:-1])


def test_results_have_the_format_of_the_harness(tiny_policy: LanguagePolicy) -> None:
    evaluation = measure_accuracy(tiny_policy, PROBLEMS, max_new_tokens=3)
    settings = {"template": "{prompt}", "max_new_tokens": 3, "stop": ["Q"]}
    task = TaskResult("sums", evaluation, 20, 2, settings)
    whole = harness_results([task], "runs/x", batch_size=8, limit=9, seconds=1.25)
    assert json.loads(json.dumps(whole)) == whole
    row = whole["results"]["sums"]
    assert row["alias"] == "sums"
    for key in ("exact_match,strict-match", "exact_match,flexible-extract", "accuracy,none"):
        metric, reading = key.split(",")
        assert 0 <= row[key] <= 1
        assert row[f"{metric}_stderr,{reading}"] >= 0
        assert len(row[f"{metric}_interval,{reading}"]) == 2
    assert row["accuracy,none"] == evaluation.accuracy
    assert whole["n-shot"] == {"sums": 2}
    assert whole["n-samples"] == {"sums": {"original": 20, "effective": 9}}
    assert whole["configs"]["sums"]["generation_kwargs"] == {
        "until": ["Q"],
        "max_gen_toks": 3,
        "do_sample": False,
        "temperature": 0.0,
    }
    assert whole["higher_is_better"]["sums"] == {
        "accuracy": True,
        "exact_match": True,
        "truncated": False,
        "unparseable": False,
    }
    assert whole["config"]["limit"] == 9


def test_harness_prints_the_results(tiny_policy: LanguagePolicy) -> None:
    utils = pytest.importorskip("lm_eval.utils")
    sampled = measure_accuracy(
        tiny_policy, PROBLEMS, decoding="sampled", samples_per_problem=2, max_new_tokens=3, temperature=0.7
    )
    task = TaskResult("sums", sampled, 9, 0, {"temperature": 0.7})
    table = utils.make_table(harness_results([task], "runs/x", batch_size=8, limit=None, seconds=1.25))
    row = next(line for line in table.splitlines() if "strict-match" in line and "interval" not in line)
    assert [cell.strip() for cell in row.split("|")[3:8]] == [
        "strict-match",
        "0",
        "exact_match",
        "↑",
        "0.0000",
    ]
