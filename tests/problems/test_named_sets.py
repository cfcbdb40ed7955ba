"""Named data sets in their published formats, and other names of data."""

import doctest
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from llm_reinforce.errors import InputError
from llm_reinforce.problems import (
    NAMED_SETS,
    Problem,
    few_shot,
    find_problems,
    generate_problems,
    lookup,
    overlap,
    reads_split,
    specified,
    training_part,
    usual_stop,
    usual_template,
)
from llm_reinforce.verifier import find_doubts, verify

DATASETS = Path(__file__).parents[2].parent / "shared" / "datasets"

GSM8K = {"question": "Tom has 1,000 and 2?", "answer": "1000+2 = <<1000+2=1002>>1002\n#### 1,002"}
SVAMP = {
    "ID": "chal-1",
    "Body": "Each pack costs 76 dollars. There is a discount of 25 dollars on each pack",
    "Question": "How much do you have to pay?",
    "Equation": "( 76.0 - 25.0 )",
    "Answer": 51.0,
    "Type": "Subtraction",
}
MAWPS = {
    "iIndex": 7,
    "sQuestion": " Joan found 70 seashells. She gave Sam some. She has 27. How many did she give? ",
    "lEquations": ["X=70-27"],
    "lSolutions": [43.0],
    "lAlignments": [1, 2],
}
MATH500 = {
    "problem": "Convert the point $(0,3)$ to polar coordinates.",
    "solution": "So it is $\\boxed{\\left( 3, \\frac{\\pi}{2} \\right)}.$",
    "answer": "\\left( 3, \\frac{\\pi}{2} \\right)",
    "subject": "Precalculus",
    "level": 2,
    "unique_id": "test/precalculus/807.json",
}
ASDIV = """<?xml version="1.0" encoding="UTF-8"?>
<Machine-Reading-Corpus-File>
  <ProblemSet>
    <Problem ID="nluds-0001" Grade="1" Source="http://www.k5learning.com">
      <Body>Seven red apples and two green apples are in the basket.</Body>
      <Question>How many apples are in the basket?</Question>
      <Solution-Type>Addition</Solution-Type>
      <Answer>9 (apples)</Answer>
      <Formula>7+2=9</Formula>
    </Problem>
    <Problem ID="nluds-0002" Grade="6" Source="">
      <Body>Tom &amp; Ann share 5 cm and 3 cm</Body>
      <Question>What are the two?</Question>
      <Solution-Type>System</Solution-Type>
      <Answer>5 (cm); 3 (cm)</Answer>
      <Formula>x</Formula>
    </Problem>
  </ProblemSet>
</Machine-Reading-Corpus-File>
"""


def written(path: Path, *rows: object) -> Path:
    """Write rows as JSONL, or as a JSON list if the name ends in .json, as SVAMP and AddSub are published."""
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(json.dumps(rows, indent=4) if path.suffix == ".json" else lines, encoding="utf-8")
    return path


# --- published formats -------------------------------------------------------------------------------


def test_gsm8k(tmp_path: Path) -> None:
    path = written(tmp_path / "test.jsonl", GSM8K)
    (problem,) = find_problems(f"gsm8k={path}")
    assert problem == Problem(
        "Tom has 1,000 and 2?",
        "1002",
        solution=GSM8K["answer"],
        id="test-1",
        columns=GSM8K,
    )


def test_svamp(tmp_path: Path) -> None:
    question = {**SVAMP, "ID": "chal-2", "Body": "Dan had $ 3. He had $ 4 at the start.", "Answer": 1.0}
    path = written(tmp_path / "SVAMP.json", SVAMP, question)
    first, second = find_problems(f"svamp={path}")
    assert (first.id, first.answer) == ("chal-1", "51")
    assert first.prompt == (
        "Each pack costs 76 dollars. There is a discount of 25 dollars on each pack. "
        "How much do you have to pay?"
    )
    assert second.prompt == "Dan had $ 3. He had $ 4 at the start. How much do you have to pay?"
    assert first.columns.items() >= {"Equation": "( 76.0 - 25.0 )", "Type": "Subtraction"}.items()
    assert {"Body", "Question", "Answer"} <= first.columns.keys()  # for reward functions


@pytest.mark.parametrize("name", ["multiarith", "addsub", "singleeq"])
def test_mawps_format(tmp_path: Path, name: str) -> None:
    (problem,) = find_problems(f"{name}={written(tmp_path / 'a.json', MAWPS)}")
    assert problem.prompt == "Joan found 70 seashells. She gave Sam some. She has 27. How many did she give?"
    assert (problem.id, problem.answer) == ("7", "43")
    assert {name: problem.columns[name] for name in MAWPS} == MAWPS


def test_asdiv(tmp_path: Path) -> None:
    path = tmp_path / "ASDiv.xml"
    path.write_text(ASDIV, encoding="utf-8")
    first, second = find_problems(f"asdiv={path}")
    columns = {name: first.columns[name] for name in ("Grade", "Source", "Solution-Type", "Formula")}
    assert {"Body", "Question", "Answer", "ID"} <= first.columns.keys()
    assert replace(first, columns=columns) == Problem(
        prompt="Seven red apples and two green apples are in the basket. How many apples are in the basket?",
        answer="9",
        id="nluds-0001",
        columns={
            "Grade": "1",
            "Source": "http://www.k5learning.com",
            "Solution-Type": "Addition",
            "Formula": "7+2=9",
        },
    )
    assert second.prompt == "Tom & Ann share 5 cm and 3 cm. What are the two?"
    assert second.answer == "5 (cm); 3 (cm)"
    assert list(find_doubts((first, second))) == []
    hub = {"body": "One and one.", "question": "Both?", "answer": "2 (ones)", "solution_type": "Addition"}
    (problem,) = find_problems(f"asdiv={written(tmp_path / 'hub.jsonl', hub)}")
    assert (problem.prompt, problem.answer) == ("One and one. Both?", "2")


def test_math500(tmp_path: Path) -> None:
    (problem,) = find_problems(f"math500={written(tmp_path / 'test.jsonl', MATH500)}")
    assert problem.prompt == "Convert the point $(0,3)$ to polar coordinates."
    assert problem.answer == "\\left( 3, \\frac{\\pi}{2} \\right)"
    assert problem.solution == MATH500["solution"]
    assert problem.id == "test/precalculus/807.json"
    assert {name: problem.columns.get(name, problem.solution) for name in MATH500} == {
        **MATH500,
        "answer": problem.solution,
    }


@pytest.mark.parametrize(
    ("name", "file", "num_rows"),
    [
        ("gsm8k", "gsm8k_train.jsonl", 7_473),
        ("gsm8k", "gsm8k_test.jsonl", 1_319),
        ("svamp", "svamp.json", 1_000),
        ("multiarith", "multiarith.json", 600),
    ],
)
def test_answers_of_the_published_files_are_accepted(name: str, file: str, num_rows: int) -> None:
    if not (DATASETS / file).exists():
        pytest.skip(f"{file} is not on this machine")
    problems = find_problems(f"{name}={DATASETS / file}")
    assert len(problems) == num_rows
    assert all(re.fullmatch(r"-?\d+(\.\d+)?", problem.answer) for problem in problems)
    assert list(find_doubts(problems)) == []


# --- from the hub ------------------------------------------------------------------------------------


HUB_ROWS: Mapping[str, Mapping[str, object]] = {
    "openai/gsm8k": GSM8K,
    "ChilleD/SVAMP": {**SVAMP, "Answer": "51.0", "question_concat": "Each pack …"},
    "ChilleD/MultiArith": {"question": "How many did she give? ", "final_ans": "43"},
    "HuggingFaceTB/math_tasks": {"question": "How many did she give?", "answer": 43.0},
    "EleutherAI/asdiv": {
        "body": "Seven red apples and two green ones.",
        "question": "How many apples?",
        "solution_type": "Addition",
        "answer": "9 (apples)",
        "formula": "7+2=9",
    },
    "HuggingFaceH4/MATH-500": MATH500,
}


@pytest.mark.parametrize("name", NAMED_SETS)
def test_every_split_of_every_data_set_is_loaded_from_the_hub(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    asked: list[tuple[object, ...]] = []

    def load(repository: str, config: str | None, *, split: str, **more: str) -> list[Mapping[str, object]]:
        asked.append((repository, config, split, more.get("data_files")))
        return [HUB_ROWS[repository]]

    monkeypatch.setattr(datasets, "load_dataset", load)
    named = NAMED_SETS[name]
    answers = {"gsm8k": "1002", "svamp": "51", "asdiv": "9", "math500": MATH500["answer"]}
    for split, theirs in named.splits.items():
        (problem,) = find_problems(name, split=split)
        assert problem.answer == answers.get(name, "43")
        assert problem.algebra is named.algebra
        assert asked.pop() == (named.repository, named.config, theirs, named.data_files)
    assert set(named.splits) in ({"train", "test"}, {"test"})
    with pytest.raises(InputError, match=f"data set {name}: no split 'dev'; known splits: t"):
        find_problems(name, split="dev")
    assert asked == []


def test_missing_training_split_is_reported() -> None:
    assert training_part("gsm8k") == "train"
    assert training_part("math500") is None
    with pytest.raises(InputError, match="no split 'train'; known splits: test"):
        find_problems("math500", split="train")


# --- other names of data -----------------------------------------------------------------------------


def test_generated_problems_from_a_text() -> None:
    problems = find_problems("generate:operations=addition+subtraction,digits=1+2,num=40,seed=3")
    assert len(problems) == 40
    assert {problem.id.split("-")[0] for problem in problems} == {"addition", "subtraction"}
    assert problems == find_problems("generate:operations=addition+subtraction,digits=1+2,num=40,seed=3")
    assert problems != find_problems("generate:operations=addition+subtraction,digits=1+2,num=40,seed=4")
    (chain,) = find_problems("generate:operations=chain,num_operands=4,num=1,form={spaced} is")
    assert re.fullmatch(r"\d+( [-+] \d+){3} is", chain.prompt)
    assert len(find_problems("generate:")) == 500
    small = find_problems("generate:operands=0-19,held_out_operands=0-9,num=20,seed=3")
    recipe = generate_problems(
        ["addition"], operands=(0, 19), held_out_operands=(0, 9), num_held_out=20, seed=3
    )
    assert small == recipe.held_out
    assert list(find_doubts(problems)) == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            "generate:digit=2",
            r"unknown setting 'digit' \(did you mean 'digits'\?\); known settings: op",
        ),
        ("generate:digits=two", "digits should be a whole number, not 'two'"),
        ("generate:digits", "digits should be given once, as digits=VALUE"),
        ("generate:operands=9", "operands should be a range of whole numbers such as 0-19, not '9'"),
        ("generate:digits=1,operands=0-9", "digits and operands are both given"),
        ("generate:digits=1,digits=2", "digits should be given once"),
        ("generate:operations=addtion", r"did you mean 'addition'\?"),
        ("generate:num=0", "num must be at least 1"),
        (
            "generate:digits=1,num=99",
            r"generate:digits=1,num=99: num is 99, but at most 50 held-out problems can",
        ),
        ("generate:digits=1,num=-3", r"num=-3: num must be at least 1"),
        ("generate:digits=0", r"generate:digits=0: digits must be between 1 and"),
        ("generate:operands=5-1", r"operands=5-1: operands must be \(smallest, largest\)"),
        ("generate:operands=-5-5", r"not '-5-5'"),
        ("gsm9k", r"no data set 'gsm9k' \(did you mean 'gsm8k'\?\); known names: gsm8k, svamp"),
        ("math-500", r"did you mean 'math500'"),
        ("SVAMP", "no data set 'SVAMP'"),
        ("gsmk=a.txt", r"did you mean 'gsm8k'"),
        ("generator:digits=2", r"did you mean 'generate'"),
        ("gsm8k=nowhere.jsonl", "nowhere.jsonl: no such file"),
        ("asdiv=nowhere.xml", "nowhere.xml: no such file"),
    ],
)
def test_error_for_unknown_name_suggests_the_nearest_one(data: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_problems(data)


def test_columns_of_a_named_data_set_cannot_be_set(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="columns of this data set are fixed"):
        find_problems(f"gsm8k={tmp_path}", prompt_column="x")


@pytest.mark.parametrize("module", [few_shot, lookup, overlap, specified])
def test_doctests(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0


def test_splits_and_templates() -> None:
    assert reads_split("gsm8k")
    assert reads_split("openai/gsm8k")
    for data in ("gsm8k=a.jsonl", "a.jsonl", "generate:digits=2"):
        assert not reads_split(data)
    assert usual_template("gsm8k") == usual_template("gsm8k=a.jsonl") == "Question: {prompt}\nAnswer:"
    for data in ("a.jsonl", "generate:", "openai/gsm8k"):
        assert usual_template(data) == "{prompt}"
        assert usual_stop(data) == ()
    assert usual_stop("math500") == ("Problem:",)
    assert all("{prompt}" in named.template for named in NAMED_SETS.values())


def test_missing_reasoning_gym_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(InputError, match=r"pip install 'llm-reinforce\[reasoning-gym\]'"):
        find_problems("reasoning_gym:leg_counting")


def test_reasoning_gym_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    def create(task: str, size: int, seed: int) -> list[Mapping[str, object]]:
        return [{"question": f"{task} {seed} {n}?", "answer": str(n), "metadata": {}} for n in range(size)]

    package, factory = ModuleType("reasoning_gym"), ModuleType("reasoning_gym.factory")
    package.create_dataset = create  # type: ignore[attr-defined]
    factory.DATASETS = {"leg_counting": None}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "reasoning_gym", package)
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", factory)
    problems = find_problems("reasoning_gym:leg_counting,num=2,seed=5")
    assert [(problem.id, problem.prompt) for problem in problems] == [
        ("leg_counting-1", "leg_counting 5 0?"),
        ("leg_counting-2", "leg_counting 5 1?"),
    ]
    with pytest.raises(InputError, match=r"no task 'leg_count' \(did you mean 'leg_counting'\?\)"):
        find_problems("reasoning_gym:leg_count")


# --- invalid data ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("gsm8k", {**GSM8K, "answer": "no idea\n#### none"}, "line 1: .* must contain a number"),
        ("gsm8k", {"question": "1+1?"}, "no answer column"),
        ("svamp", {**SVAMP, "Answer": "many"}, "line 1: .* must contain a number, not 'many'"),
        ("multiarith", {**MAWPS, "lSolutions": [1.0, 2.0]}, "must be text or a number, not"),
        ("multiarith", {**MAWPS, "lSolutions": []}, "must be text or a number, not"),
        ("math500", {"answer": "3"}, "no prompt column"),
    ],
)
def test_invalid_rows_are_rejected(tmp_path: Path, name: str, row: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_problems(f"{name}={written(tmp_path / 'a.jsonl', row)}")


def test_split_of_a_json_file_with_several_lists_is_read(tmp_path: Path) -> None:
    file = tmp_path / "gsm8k.json"
    rows = {
        "train": {"question": "1 + 1?", "answer": "#### 2"},
        "test": {"question": "2 + 2?", "answer": "#### 4"},
    }
    file.write_text(json.dumps({split: [row] for split, row in rows.items()}))
    assert [problem.answer for problem in find_problems(f"gsm8k={file}")] == ["4"]
    assert [problem.answer for problem in find_problems(f"gsm8k={file}", split="train")] == ["2"]
    with pytest.raises(InputError, match="contains the lists 'train', 'test', but no list called 'dev'"):
        find_problems(f"gsm8k={file}", split="dev")


def test_duplicate_ids_and_empty_files_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="row 2: id '7' is already used"):
        find_problems(f"addsub={written(tmp_path / 'a.json', MAWPS, MAWPS)}")
    with pytest.raises(InputError, match="empty"):
        find_problems(f"svamp={written(tmp_path / 'b.json')}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda text: text.replace("<Machine", "<!DOCTYPE x [<!ENTITY a 'b'>]><Machine", 1),
            "DTD is not allowed",
        ),
        (lambda text: text.replace("</Body>", "", 1), "invalid XML"),
        (lambda text: text.replace("&amp;", "&lol;"), "invalid XML"),
        (
            lambda text: text.replace("Problem ", "Task ").replace("/Problem>", "/Task>"),
            "no <Problem>",
        ),
        (lambda text: text.replace("Question>", "Ask>"), "no prompt column"),
        (lambda text: text.replace("nluds-0002", "nluds-0001"), "problem 2: id 'nluds-0001' is already used"),
    ],
)
def test_invalid_asdiv_files_are_rejected(tmp_path: Path, change: Callable[[str], str], message: str) -> None:
    path = tmp_path / "ASDiv.xml"
    path.write_text(change(ASDIV), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        find_problems(f"asdiv={path}")


def test_doubtful_answers_are_listed() -> None:
    good = [
        Problem("?", answer) for answer in ("7", "1/2", "Paris", "5 (cm); 3 (cm)", "\\frac{3}{4}", "-0.5")
    ]
    assert list(find_doubts(good)) == []
    assert all(verify(f"#### {problem.answer}", problem.answer).correct for problem in good)
    bad, empty = Problem("?", "a</think>b"), Problem("?", " ")
    doubts = [(doubt.problem, doubt.reason) for doubt in find_doubts([*good, bad, empty])]
    assert doubts == [(bad, "different"), (empty, "empty")]
