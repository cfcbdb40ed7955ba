"""The scripts that write word problems, and that compare methods on them, with made-up rows."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from llm_reinforce.evaluation import Answer, Evaluation
from llm_reinforce.problems import Problem, read_demonstrations, read_problems
from llm_reinforce.verifier import verify

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "recipes" / "word_problems.py"
FUNCTIONS = runpy.run_path(str(SCRIPT))
BENCHMARK = runpy.run_path(str(ROOT / "tests" / "benchmarks" / "word_problems.py"))
THINGS = ("apples", "books", "coins", "dolls", "eggs", "forks", "gloves", "hats")


@pytest.fixture
def published(tmp_path: Path) -> list[str]:
    """Return options with files of made-up problems: 420 of SVAMP, 270 of MultiArith and 424 of GSM8K.

    The last 420 problems of GSM8K are equal to those of SVAMP, apart from the numbers.
    """
    names = [
        f"{first} {second}" for first in "ABCDEFGHIJ" for second in ("Ax", "Box", "Cox", "Dux", "Elk", "Fox")
    ]
    stories = [f"{name} found {thing} in the" for name in names for thing in THINGS]
    svamp = [
        {
            "ID": f"chal-{n}",
            "Body": f"{story} garden, namely {n + 2}, and 2 more",
            "Question": "How many are it?",
        }
        | {"Equation": f"( {n + 2}.0 + 2.0 )", "Answer": n + 4.0, "Type": "Addition"}
        for n, story in enumerate(stories[:420])
    ]
    multiarith = [
        {"iIndex": n, "sQuestion": f"{story} house, {n}, and 2 more, and lost 1. How many are left?"}
        | {"lEquations": [f"X=(({n}.0+2.0)-1.0)"], "lSolutions": [n + 1.0]}
        for n, story in enumerate(stories[:270])
    ]
    gsm8k = [
        {"question": "Ann has 4 boxes of 3 pens. How many pens?", "answer": "4*3=<<4*3=12>>12\n#### 12"},
        {"question": "Ben has 40 cents. How many dimes?", "answer": "40/10=<<40/10=4>>4\n#### 4"},
        {"question": "Too many steps.", "answer": "<<1+1=2>>2 <<2+1=3>>3 <<3+1=4>>4\n#### 4"},
        {"question": "Numbers that are too long.", "answer": "<<100000+1=100001>>\n#### 100001"},
        *(
            {
                "question": svamp_text(row).replace("and 2 more", "and 7 more"),
                "answer": f"<<{n}+7={n + 7}>>\n#### {n + 7}",
            }
            for n, row in enumerate(svamp, 2)
        ),
    ]
    files = {"svamp.json": svamp, "multiarith.json": multiarith, "gsm8k.jsonl": gsm8k}
    for name, rows in files.items():
        (tmp_path / name).write_text(json.dumps(rows), encoding="utf-8")
    return [f"--{name.split('.')[0]}={tmp_path / name}" for name in files]


def svamp_text(row: dict[str, Any]) -> str:
    return f"{row['Body']}. {row['Question']}"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    FUNCTIONS["main"]()


def test_files_are_disjoint_solved_and_not_overwritten(
    published: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "word_problems"
    run(monkeypatch, str(folder), *published)
    parts = {path.stem: read_problems(path) for path in folder.glob("*.jsonl") if "demo" not in path.stem}
    assert {name: len(part) for name, part in parts.items() if name != "train"} == {
        "svamp_test": 300,
        "multiarith_test": 180,
        "dev": 160,
    }
    prompts = [problem.prompt for part in parts.values() for problem in part]
    assert len(prompts) == len(set(prompts))
    train = {problem.id: problem for problem in parts["train"]}
    assert not {"gsm8k-gsm8k-3", "gsm8k-gsm8k-4"} & set(train)
    # a problem that differs from one of SVAMP only in its numbers is kept if that one is a training problem
    learned = [f"svamp-chal-{n}" in train for n in range(420)]
    assert learned == [f"gsm8k-gsm8k-{n + 5}" in train for n in range(420)]
    assert set(learned) == {False, True}
    demonstrations = read_demonstrations(folder / "demonstrations.jsonl")
    assert len(demonstrations) == len(train)
    for shown, problem in zip(demonstrations, train.values(), strict=True):
        assert shown.prompt == problem.prompt
        assert shown.solution == problem.solution is not None
        assert verify(shown.solution, problem.answer).correct
    output = capsys.readouterr().out
    assert "svamp_test: 0 training problems are equal to one of these problems, and" in output
    assert f"{len(train)} training problems, {len(train)} of them with a worked solution" in output
    with pytest.raises(SystemExit, match="has files, which are not overwritten; give another folder"):
        run(monkeypatch, str(folder), *published)


@pytest.mark.parametrize(
    ("expressions", "answer", "solution"),
    [
        (["((32.0+42.0)-35.0)"], "39", "32 + 42 = 74\n74 - 35 = 39\n#### 39"),
        (["48/2", "48+24"], "72", "48 / 2 = 24\n48 + 24 = 72\n#### 72"),
        (["1 / 2"], "0.5", "1 / 2 = 0.5\n#### 0.5"),
        (["1 / 3"], "0.33", None),  # no finite decimal form
        (["1 / 0"], "0", None),
        (["3 + 4"], "8", None),  # not the answer
        (["3 + 4"], "seven", None),
        (["2 ** 9"], "512", None),
        (["print(7)"], "7", None),
        (["(" * 1000 + "1" + ")" * 1000], "1", None),
        (["7"], "7", None),
        ([], "7", None),
    ],
)
def test_worked_solution(expressions: list[str], answer: str, solution: str | None) -> None:
    assert FUNCTIONS["worked_solution"](expressions, answer) == solution


def test_missing_file_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="no such file"):
        run(monkeypatch, str(tmp_path / "out"), "--svamp", str(tmp_path / "no.json"))
    assert not (tmp_path / "out").exists()


def test_similar_problems_share_their_words_or_their_story(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prompts = {
        "train": ["Ann has 3 red pens. She buys 2. How many has she now?"],
        "dev": [
            "Ann has 30 red pens. She buys 12. How many has she now?",
            "Ann has 3 red pens. She buys 2. How much more is that than before?",  # another question
            "Ben has 3 red pens. He buys 2. How many has he now?",
            "How many has she now?",  # one sentence, which is the story
        ],
    }
    Path("word_problems").mkdir()
    for name, texts in prompts.items():
        lines = [json.dumps({"prompt": text, "answer": "1"}) + "\n" for text in texts]
        Path("word_problems", f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    similar = BENCHMARK["is_similar"]("dev")
    assert similar == [True, True, False, False]
    assert BENCHMARK["by_similarity"](similar) == {
        "similar": [True, True, False, False],
        "other": [False, False, True, True],
    }
    assert BENCHMARK["by_similarity"]([True]) == {"similar": [True]}


def test_mean_difference_of_two_methods_over_seeds_and_parts() -> None:
    def evaluation(*rights: bool) -> Evaluation:
        problems = [Problem(f"{n}", "1", id=f"{n}") for n in range(len(rights))]
        texts = ["1" if right else "2" for right in rights]
        answers = [[Answer(text, 1, True, verify(text, "1"), False, False)] for text in texts]
        return Evaluation("greedy", problems, answers, {})

    both = [  # (first method, second method) of two seeds
        (evaluation(False, False, True, False), evaluation(True, False, True, False)),
        (evaluation(False, True, True, False), evaluation(True, True, False, False)),
    ]
    mean_change = BENCHMARK["mean_change"]
    # the means of the four differences over the seeds are 1, 0, -1/2 and 0
    assert mean_change(both, [True] * 4)["difference"] == pytest.approx(1 / 8)
    found = mean_change(both, [True, True, False, False])
    assert found["difference"] == pytest.approx(1 / 2)
    assert found["interval"][0] <= 1 / 2 <= found["interval"][1]


def test_prompt_is_chosen_by_the_accuracy_on_dev_at_one_length() -> None:
    rows = [
        {"data": "dev", "max_new_tokens": 48, "template": "a", "accuracy": 0.1},
        {"data": "dev", "max_new_tokens": 48, "template": "b", "accuracy": 0.3},
        {"data": "dev", "max_new_tokens": 48, "template": "c", "accuracy": 0.4, "few_shot": 4},
        {"data": "dev", "max_new_tokens": 256, "template": "d", "accuracy": 0.5},
        {"data": "svamp_test", "max_new_tokens": 48, "template": "e", "accuracy": 0.9},
    ]
    most_accurate = BENCHMARK["most_accurate"]
    assert most_accurate(rows, 48) == {"template": "b", "max_new_tokens": 48}
    with_examples = most_accurate(rows, 48, with_examples=True)
    assert with_examples == {"template": "c", "max_new_tokens": 48, "few_shot": 4}
