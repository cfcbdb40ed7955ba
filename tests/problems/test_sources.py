"""Reading problems from files and from the hub, rejecting invalid data, and writing problems."""

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_reinforce.errors import InputError
from llm_reinforce.problems import (
    Problem,
    generate_problems,
    load_hub_problems,
    read_problems,
    split_problems,
    write_problems,
)
from llm_reinforce.verifier import verify

DATASETS = Path(__file__).parents[2].parent / "shared" / "datasets"
GSM8K_ROW = {"question": "Two and two thousand?", "answer": "2+2000 = <<2+2000=2002>>2002\n#### 2,002"}


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def shared(name: str) -> Path:
    path = DATASETS / name
    if not path.exists():
        pytest.skip(f"real data set {path} is not on this machine")
    return path


# --- reading ------------------------------------------------------------------------------------------


def test_gsm8k_row_has_answer_and_solution(tmp_path: Path) -> None:
    assert read_problems(jsonl(tmp_path / "sums.jsonl", GSM8K_ROW)) == (
        Problem(
            prompt="Two and two thousand?",
            answer="2002",
            solution=GSM8K_ROW["answer"],
            id="sums-1",
            columns=GSM8K_ROW,
        ),
    )


def test_worked_solution_is_kept_in_a_written_copy(tmp_path: Path) -> None:
    row = {"question": "How much is left?", "answer": "100-25 = 75% is left\n#### 75"}
    (problem,) = read_problems(jsonl(tmp_path / "sums.jsonl", row))
    write_problems(tmp_path / "copy.jsonl", [problem])
    (again,) = read_problems(tmp_path / "copy.jsonl")
    for one in (problem, again):
        assert (one.answer, one.solution) == ("75", row["answer"])


def test_usual_column_names_ids_and_other_columns(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "sums.jsonl", {"id": 7, "prompt": "1+1=", "ground_truth": 2, "level": "easy"})
    assert read_problems(path) == (
        Problem(prompt="1+1=", answer="2", id="7", columns={"id": 7, "ground_truth": 2, "level": "easy"}),
    )


def test_given_column_names_take_precedence(tmp_path: Path) -> None:
    row = {"prompt": "no", "answer": "no", "sQuestion": "3+4?", "lSolutions": [7.0]}
    (problem,) = read_problems(
        jsonl(tmp_path / "a.jsonl", row), prompt_column="sQuestion", answer_column="lSolutions"
    )
    assert (problem.prompt, problem.answer) == ("3+4?", "7")
    assert problem.columns == row


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        (5.0, "5"),
        (5, "5"),
        (0.5, "0.5"),
        (-3, "-3"),
        (1e22, "1" + "0" * 22),
        (True, "true"),
        (" a ", "a"),
        ([2.0], "2"),
    ],
)
def test_answers_are_converted_to_text(tmp_path: Path, value: object, answer: str) -> None:
    (problem,) = read_problems(jsonl(tmp_path / "a.jsonl", {"prompt": "?", "answer": value}))
    assert problem.answer == answer


def test_json_list_blank_lines_and_byte_order_mark_are_read(tmp_path: Path) -> None:
    rows = [{"prompt": "1+1=", "answer": "2"}, {"prompt": "1+2=", "answer": "3"}]
    whole = tmp_path / "a.json"
    whole.write_text(json.dumps(rows, indent=2), encoding="utf-8-sig")
    lines = tmp_path / "b.jsonl"
    lines.write_bytes(b"\xef\xbb\xbf\n" + b"\r\n\r\n".join(json.dumps(row).encode() for row in rows))
    assert [problem.id for problem in read_problems(whole)] == ["a-1", "a-2"]
    assert [problem.id for problem in read_problems(lines)] == ["b-2", "b-4"]


def test_unicode_line_separators_do_not_end_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "one\u2028two\x85three", "answer": "3"}\n', encoding="utf-8")
    assert read_problems(path)[0].prompt == "one\u2028two\x85three"


@pytest.mark.parametrize(("name", "num_rows"), [("gsm8k_train.jsonl", 7_473), ("gsm8k_test.jsonl", 1_319)])
def test_gsm8k_has_numeric_answers_that_verify_themselves(name: str, num_rows: int) -> None:
    problems = read_problems(shared(name))
    assert len(problems) == num_rows
    for problem in problems:
        assert re.fullmatch(r"-?\d+(\.\d+)?", problem.answer), problem.id
        assert verify(problem.solution, problem.answer).correct, problem.id
        assert not verify(f"#### {problem.answer}1", problem.answer).correct, problem.id


def test_multiarith_is_read_with_its_column_names() -> None:
    problems = read_problems(shared("multiarith.json"), prompt_column="sQuestion", answer_column="lSolutions")
    assert len(problems) == 600
    assert problems[0].answer == "39"


# --- invalid data -------------------------------------------------------------------------------------

GOOD = '{"prompt": "1+1=", "answer": "2"}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"a\.jsonl: is empty"),
        (" \n\n", r"a\.jsonl: is empty"),
        ("[]", r"a\.jsonl: is empty"),
        (GOOD + '{"prompt": ', r"a\.jsonl, line 2: invalid JSON at column 12"),
        ('[{"prompt": "1",\n  "answer" "2"}]', r"a\.jsonl, line 2: invalid JSON at column 12"),
        (GOOD + '{"prompt": "1", "answer": NaN}', r"a\.jsonl, line 2: .*NaN is not a JSON number"),
        (
            GOOD + '{"prompt": "1", "answer": 1e999}',
            r"line 2: column 'answer' must be text or a number, not inf",
        ),
        ("[" * 100_000, r"a\.jsonl"),
        (GOOD + '"text"', r"a\.jsonl, line 2: should be a JSON object .* not a str"),
        (
            GOOD + '{"prompt": "1", "answr": "2"}',
            r"line 2: no answer column 'answer' \(did you mean 'answr'\?\); columns: 'prompt', 'answr'",
        ),
        (
            '{"Body": "1", "Question": "2"}',
            r"no prompt column 'prompt', 'question', .* or 'conversations' .*mean 'Question'",
        ),
        (
            GOOD + '{"prompt": "", "answer": "2"}',
            r"line 2: column 'prompt' must be non-empty text or a list of chat messages, not ''",
        ),
        (GOOD + '{"prompt": ["1"], "answer": "2"}', r"line 2: column 'prompt' must be non-empty text"),
        (GOOD + '{"prompt": "1", "answer": " "}', r"line 2: column 'answer' contains an empty answer"),
        (
            GOOD + '{"prompt": "1", "answer": "so\\n####"}',
            r"line 2: column 'answer' contains an empty answer",
        ),
        (
            GOOD + '{"prompt": "1", "answer": null}',
            r"line 2: column 'answer' must be text or a number, not None",
        ),
        (
            GOOD + '{"prompt": "1", "answer": "2", "id": "a-1"}',
            r"line 2: id 'a-1' is already used at .*line 1",
        ),
    ],
)
def test_error_for_invalid_file_names_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as raised:
        read_problems(path)
    assert len(str(raised.value)) < 500


def test_answers_may_be_text(tmp_path: Path) -> None:
    assert read_problems(jsonl(tmp_path / "a.jsonl", {"prompt": "?", "answer": "Paris"}))[0].answer == "Paris"


def test_error_for_missing_file_names_the_nearest_file(tmp_path: Path) -> None:
    jsonl(tmp_path / "sums.jsonl", GSM8K_ROW)
    with pytest.raises(InputError, match=r"sum\.jsonl: no such file; did you mean .*sums\.jsonl\?"):
        read_problems(tmp_path / "sum.jsonl")
    with pytest.raises(InputError, match=r"the folder .* does not exist"):
        read_problems(tmp_path / "nowhere" / "sum.jsonl")


def test_tilde_is_expanded_to_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jsonl(tmp_path / "sums.jsonl", GSM8K_ROW)
    jsonl(tmp_path / "~$sums.jsonl", GSM8K_ROW)  # not a home directory
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert [len(read_problems(name)) for name in ("~/sums.jsonl", "~$sums.jsonl")] == [1, 1]


def test_folders_and_binary_files_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_problems(tmp_path)
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "\xff"}')
    with pytest.raises(InputError, match=r"not UTF-8 text \(the first invalid byte is at position 12\)"):
        read_problems(tmp_path / "a.jsonl")


# --- the hub ------------------------------------------------------------------------------------------


def test_hub_data_set_is_read_like_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def load_dataset(name: str, config: str | None, *, split: str) -> list[Mapping[str, str]]:
        asked.extend([name, config, split])
        return [GSM8K_ROW]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    (problem,) = load_hub_problems("openai/gsm8k", config="main", split="test")
    assert asked == ["openai/gsm8k", "main", "test"]
    assert (problem.id, problem.answer) == ("gsm8k-test-1", "2002")


def test_datasets_reads_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "sums").mkdir()
    jsonl(tmp_path / "sums" / "train.jsonl", GSM8K_ROW, GSM8K_ROW)
    problems = load_hub_problems(str(tmp_path / "sums"), config=None, split="train")
    assert [(problem.id, problem.answer) for problem in problems] == [
        ("sums-train-1", "2002"),
        ("sums-train-2", "2002"),
    ]


def test_missing_network_and_missing_data_set_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, config: str | None, *, split: str) -> None:
        raise ConnectionError("Couldn't reach the Hub\nand much more")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(
        InputError, match=r"'no/such'.*not found, or no network \(Couldn't reach the Hub\).*local"
    ) as raised:
        load_hub_problems("no/such", config=None, split="train")
    assert isinstance(raised.value.__cause__, ConnectionError)


# --- splitting and writing ----------------------------------------------------------------------------


def problems_of(*prompts: str) -> list[Problem]:
    return [Problem(prompt=prompt, answer="1", id=str(index)) for index, prompt in enumerate(prompts)]


@given(
    prompts=st.lists(
        st.sampled_from(["a b", "A  b", "a\tB ", "c", "C", "d", "e", "f"]), min_size=1, max_size=30
    ),
    num_held_out=st.integers(0, 10),
    seed=st.integers(),
)
def test_copies_of_a_prompt_are_on_the_same_side(prompts: list[str], num_held_out: int, seed: int) -> None:
    problems = problems_of(*prompts)
    try:
        split = split_problems(problems, num_held_out, seed)
    except InputError as error:
        assert "leaves none" in str(error)
        return
    folded_train = {" ".join(problem.prompt.casefold().split()) for problem in split.train}
    assert len(split.held_out) == num_held_out
    assert folded_train.isdisjoint(" ".join(problem.prompt.casefold().split()) for problem in split.held_out)
    assert split == split_problems(problems, num_held_out, seed)


def test_all_different_prompts_are_used_in_order() -> None:
    problems = problems_of(*"abcdefgh")
    split = split_problems(problems, 3, seed=0)
    assert sorted(split.train + split.held_out, key=lambda problem: problem.id) == problems
    assert list(split.train) == [problem for problem in problems if problem in split.train]
    assert split.held_out != split_problems(problems, 3, seed=1).held_out


@pytest.mark.parametrize("num_held_out", [-1, 3, 4])
def test_split_without_training_problems_is_rejected(num_held_out: int) -> None:
    with pytest.raises(InputError, match="num_held_out"):
        split_problems(problems_of("a", "b", "c"), num_held_out, seed=0)


def test_written_problems_are_read_back_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.jsonl"
    problems = (
        *generate_problems(["subtraction"], [2], num_held_out=5).held_out,
        Problem(
            prompt="é\n\u2028\ud800\x00", answer="7", solution="3+4", id="x", columns={"level": [1, None]}
        ),
    )
    write_problems(path, problems)
    assert read_problems(path) == problems
    assert path.read_bytes().count(b"\n") == 6


def test_column_that_is_not_json_is_rejected_before_writing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="problem 'x': a column cannot be written as JSON"):
        write_problems(tmp_path / "a.jsonl", [Problem(prompt="?", answer="1", id="x", columns={"c": {1, 2}})])
    assert not (tmp_path / "a.jsonl").exists()


def test_problem_can_be_pickled_and_hashed() -> None:
    problem = Problem(prompt="1+1=", answer="2", columns={"level": [1]})
    assert pickle.loads(pickle.dumps(problem)) == problem
    assert len({problem, Problem(prompt="1+1=", answer="2", columns={"level": [1]})}) == 1
