"""Formats and layouts of data that load; docs/data.md lists them."""

import bz2
import gzip
import json
import lzma
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from llm_reinforce.config import DataConfig
from llm_reinforce.errors import InputError
from llm_reinforce.problems import (
    Problem,
    find_problems,
    problems_from,
    read_data,
    reads_split,
    write_problems,
)
from llm_reinforce.problems.lookup import is_file_name

ROWS = [{"question": f"{n}+1=", "answer": str(n + 1), "level": f"l{n}"} for n in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
CSV = "question,answer,level\n" + "".join(f'"{r["question"]}",{r["answer"]},{r["level"]}\n' for r in ROWS)


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def saved(path: str, **splits: list[dict[str, Any]]) -> None:
    made = {name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}
    (datasets.DatasetDict(made) if "rows" not in made else made["rows"]).save_to_disk(path)


def folder(path: str, **files: bytes) -> None:
    Path(path).mkdir(parents=True)
    for name, content in files.items():
        Path(path, name.replace("_", ".")).write_bytes(content)


def arrow_file(path: str) -> None:
    saved("made", rows=ROWS)
    Path("made/data-00000-of-00001.arrow").rename(path)


def cached_snapshot() -> None:
    folder("datasets--owner--sums/snapshots/abc", test_jsonl=LINES)
    Path("datasets--owner--sums/refs").mkdir()
    Path("datasets--owner--sums/refs/main").write_text("abc")


# each row of the table of formats in docs/data.md
FORMATS: dict[str, tuple[str, Callable[[], object]]] = {
    "JSONL": ("a.jsonl", lambda: Path("a.jsonl").write_bytes(LINES)),
    "NDJSON": ("a.ndjson", lambda: Path("a.ndjson").write_bytes(LINES)),
    "lines in a JSON file": ("a.json", lambda: Path("a.json").write_bytes(LINES)),
    "a file of another name": ("./rows", lambda: Path("rows").write_bytes(LINES)),
    "gzip": ("a.jsonl.gz", lambda: Path("a.jsonl.gz").write_bytes(gzip.compress(LINES))),
    "bzip2": ("a.jsonl.bz2", lambda: Path("a.jsonl.bz2").write_bytes(bz2.compress(LINES))),
    "xz": ("a.JSONL.XZ", lambda: Path("a.JSONL.XZ").write_bytes(lzma.compress(LINES))),
    "JSON list": ("a.json", lambda: Path("a.json").write_text(json.dumps(ROWS, indent=2))),
    "JSON object": ("a.json", lambda: Path("a.json").write_text(json.dumps({"v": 1, "data": ROWS}))),
    "JSON object on several lines": (
        "a.json",
        lambda: Path("a.json").write_text(json.dumps({"rows": ROWS}, indent=1)),
    ),
    "JSON object of splits": (
        "a.json",
        lambda: Path("a.json").write_text(json.dumps({"train": ROWS[:1], "test": ROWS})),
    ),
    "CSV": ("a.csv", lambda: Path("a.csv").write_text(CSV)),
    "CSV of a spreadsheet": (
        "a.csv",
        lambda: Path("a.csv").write_bytes(CSV.replace(",", ";").replace("\n", "\r\n").encode("utf-8-sig")),
    ),
    "compressed CSV": ("a.csv.gz", lambda: Path("a.csv.gz").write_bytes(gzip.compress(CSV.encode()))),
    "TSV": ("a.tsv", lambda: Path("a.tsv").write_text(CSV.replace(",", "\t"))),
    "Parquet": ("a.parquet", lambda: datasets.Dataset.from_list(ROWS).to_parquet("a.parquet")),
    "Arrow": ("a.arrow", lambda: arrow_file("a.arrow")),
    "saved Dataset": ("saved", lambda: saved("saved", rows=ROWS)),
    "saved DatasetDict": ("saved", lambda: saved("saved", train=ROWS[:1], test=ROWS)),
    "folder of JSONL files": ("mine", lambda: folder("mine", train_jsonl=LINES, test_jsonl=LINES)),
    "folder of CSV files": ("deep/mine", lambda: folder("deep/mine", test_csv=CSV.encode())),
    "folder with configurations": (
        "mine/",
        lambda: folder(
            "mine",
            x_jsonl=LINES,
            README_md=b"---\nconfigs:\n- config_name: main\n"
            b"  data_files: [{split: test, path: x.jsonl}]\n---\n",
        ),
    ),
    "repository in the hub's cache": ("datasets--owner--sums", cached_snapshot),
    "snapshot in the hub's cache": ("datasets--owner--sums/snapshots/abc", cached_snapshot),
}


def test_every_format_in_the_docs_is_tested() -> None:
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    lines = text.split("<!-- table: formats -->\n")[1].split("\n\n")[0].splitlines()[2:]
    documented = {name.strip(): data.strip(" `") for _, name, data, *_ in (line.split("|") for line in lines)}
    assert documented == {name: data for name, (data, _) in FORMATS.items()}


@pytest.mark.parametrize("name", FORMATS)
def test_format_loads(name: str) -> None:
    data, make = FORMATS[name]
    make()
    assert is_file_name(data)
    problems = find_problems(data, split="test")
    assert [(one.prompt, one.answer, one.columns["level"]) for one in problems] == [
        (row["question"], row["answer"], row["level"]) for row in ROWS
    ]
    assert len({one.id for one in problems}) == 3


def test_data_set_in_the_hubs_cache_loads_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    cached_snapshot()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(Path.cwd()))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(Path.cwd()))
    assert len(find_problems("owner/sums")) == 3


@pytest.mark.parametrize(
    ("name", "splits", "message"),
    [
        ("JSON object of splits", True, r"lists 'train', 'test', but no list called 'dev'; set split"),
        ("saved DatasetDict", True, r"no split 'dev'; its splits are 'train', 'test'; set split"),
        ("folder of JSONL files", True, r"Unknown split \"dev\".*'train', 'test'.*; set split"),
        ("saved Dataset", False, "config and split are not used"),
        ("JSON list", False, "config and split are not used for a file"),
    ],
)
def test_splits_are_chosen_by_name(name: str, splits: bool, message: str) -> None:
    data, make = FORMATS[name]
    make()
    assert reads_split(data) is splits
    with pytest.raises(InputError, match=message):
        read_data(DataConfig(data=data, split="dev"))
    if splits:
        assert len(read_data(DataConfig(data=data, split="test"))) == 3


def test_split_of_a_file_without_splits_is_refused() -> None:
    for data in ("a.jsonl", "a.csv", "a.parquet", "a.jsonl.gz"):
        with pytest.raises(ValueError, match="not used for a file"):
            DataConfig(data=data, split="test")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            b"question,answer\n1+1=,2,3\n",
            r"a\.csv, line 2: has 3 cells, but the first line has 2 column names",
        ),
        ("a.csv", b"question,question\n1,2\n", "repeats a column name: question|a column name is repeated"),
        ("a.csv", b"1+1=,2\n1+2=,3\n", r"line 2: no prompt column .*; columns: '1\+1=', '2'; row: .*'3'"),
        ("a.csv", b'question,answer\n"1,2\n', r"a\.csv, line 2: invalid CSV: unexpected end of data"),
        ("a.csv", b"", r"a\.csv: is empty"),
        ("a.parquet", b"PAR1", r"a\.parquet: not a valid parquet file"),
        ("a.jsonl.gz", b"no gzip", r"a\.jsonl\.gz: cannot be read: Not a gzipped file"),
        ("a.xlsx", b"PK\x03\x04\xff", r"a\.xlsx: not UTF-8 text .* another format \(JSONL, JSON, CSV"),
        (
            "a.jsonl",
            b'{"text": "1+1=", "meta": {"gold": "2"}}\n',
            r"line 1: no prompt column 'prompt', .*; columns: 'text', 'meta'; row: \{'text': '1\+1='.*"
            r"set prompt_column to the column of the prompts, such as prompt_column: text",
        ),
        (
            "a.jsonl",
            b'{"prompt": "1", "answer": {"a": 1}}\n',
            "'answer' must be text or a number, not {'a': 1}",
        ),
    ],
)
def test_message_says_what_was_found(name: str, content: bytes, message: str) -> None:
    Path(name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        find_problems(f"./{name}")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


# --- paths --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        r"C:\data\sums",
        "C:/data/sums",
        "D:sums",
        "~/sums",
        "./sums",
        "../sums",
        "/sums",
        r"data\sums",
        "a/b/c",
    ],
)
def test_text_like_a_path_is_not_searched_on_the_hub(data: str) -> None:
    assert is_file_name(data)
    with pytest.raises(InputError, match="no such file or folder"):
        find_problems(data)


def test_folder_without_a_slash_is_a_path_unless_a_named_data_set_has_its_name() -> None:
    for name in ("sums", "generate", "gsm8k"):
        folder(name, test_jsonl=LINES)
    assert is_file_name("sums")
    assert is_file_name("generate")
    assert not is_file_name("gsm8k")
    assert is_file_name("./gsm8k")
    assert not is_file_name("owner/name")
    assert not is_file_name("")


def test_named_data_set_is_read_from_a_folder() -> None:
    rows = [{"question": "1+1?", "answer": "so 2\n#### 2"}]
    saved("copy", train=rows, test=rows * 2)
    assert [len(find_problems("gsm8k=copy", split=split)) for split in ("train", "test")] == [1, 2]


# --- layouts ------------------------------------------------------------------------------------------

USER = {"role": "user", "content": "1+1?"}
SYSTEM = {"role": "system", "content": "Be short."}
REPLY = {"role": "assistant", "content": r"One and one is $\boxed{2}$."}


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"prompt": "1+1?", "answer": "2"}, ()),
        ({"problem": "1+1?", "answer": 2}, ()),
        ({"question": "1+1?", "final_answer": 2.0}, ()),
        ({"problem": "1+1?", "solution": r"so $\boxed{2}$", "level": "1", "type": "Algebra"}, ()),
        ({"prompt": [USER], "ground_truth": "2"}, (USER,)),
        ({"prompt": [SYSTEM, USER], "answer": "2"}, (SYSTEM, USER)),
        ({"prompt": json.dumps([SYSTEM, USER]), "answer": "2"}, (SYSTEM, USER)),
        ({"messages": [SYSTEM, USER], "answer": "2"}, (SYSTEM, USER)),
        ({"messages": [SYSTEM, USER, REPLY]}, (SYSTEM, USER)),
        (
            {"conversations": [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "#### 2"}]},
            (USER,),
        ),
        (  # verl
            {
                "data_source": "gsm8k",
                "prompt": [USER],
                "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": "2"},
                "extra_info": {"split": "train", "index": 0, "answer": "#### 2", "question": "1+1?"},
            },
            (USER,),
        ),
        (  # DAPO-Math-17k, and its copy with plain prompts
            {"prompt": [USER], "reward_model": {"ground_truth": "2", "style": "rule-lighteval/MATH_v2"}},
            (USER,),
        ),
        (
            {
                "prompt": "1+1?",
                "solution": "2",
                "source_prompt": [USER],
                "reward_model": {"ground_truth": "2"},
            },
            (),
        ),
        (  # OpenR1-Math-220k
            {
                "problem": "1+1?",
                "solution": "One and one is 2.",
                "answer": "2",
                "messages": [USER, REPLY],
                "generations": ["2"],
                "uuid": "u",
            },
            (),
        ),
        ({"prompt": [USER], "reward_model": {"ground_truth": '["2"]'}}, (USER,)),  # Skywork-OR1
    ],
)
def test_published_layouts_are_recognized(row: dict[str, Any], messages: tuple[Any, ...]) -> None:
    (problem,) = problems_from([row])
    assert (problem.prompt, problem.answer, problem.messages) == ("1+1?", "2", messages)
    write_problems("copy.jsonl", [problem])
    (again,) = find_problems("copy.jsonl")
    assert (again.prompt, again.answer, again.messages, again.solution) == (
        *("1+1?", "2", messages),
        problem.solution,
    )


def test_parquet_of_verl_keeps_its_columns() -> None:
    row = {"prompt": [SYSTEM, USER], "reward_model": {"ground_truth": "2"}, "extra_info": {"index": 3}}
    datasets.Dataset.from_list([row]).to_parquet("a.parquet")
    (problem,) = find_problems("a.parquet")
    assert (problem.messages, problem.answer) == ((SYSTEM, USER), "2")
    assert problem.columns == {"reward_model": {"ground_truth": "2"}, "extra_info": {"index": 3}}


@pytest.mark.parametrize("data", ["a.jsonl", "a.csv"])
def test_dotted_names_reach_columns_within_columns(data: str) -> None:
    row = {"data": {"turns": [{"text": "1+1?"}]}, "meta": {"gold": {"value": 2}}, "a.b": "dot"}
    if data == "a.jsonl":
        Path(data).write_text(json.dumps(row))
    else:
        cells = ['"' + json.dumps(row[name]).replace('"', '""') + '"' for name in ("data", "meta")]
        Path(data).write_text("data,meta\n" + ",".join(cells) + "\n")
    (problem,) = find_problems(data, prompt_column="data.turns.0.text", answer_column="meta.gold.value")
    assert (problem.prompt, problem.answer) == ("1+1?", "2")
    with pytest.raises(InputError, match=r"no answer column 'meta\.gold\.valu'"):
        find_problems(data, prompt_column="data.turns.0.text", answer_column="meta.gold.valu")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": [USER, REPLY], "answer": "2"}, "ends in a message of the assistant"),
        ({"prompt": [SYSTEM], "answer": "2"}, r"no message of a user \(roles: system\)"),
        (
            {"prompt": [{"role": "user", "content": None}], "answer": "2"},
            "message 1: the role and the content",
        ),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image"}]}], "answer": "2"},
            "message 1: the role and the content should be text",
        ),
        ({"messages": [USER, {"role": "assistant", "content": "two"}]}, "no final answer in a box"),
        ({"prompt": "1+1?", "answer": r"so \boxed{}"}, "empty answer"),
        ({"prompt": "1+1?"}, "no answer column"),
    ],
)
def test_invalid_layouts_are_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        problems_from([row])


@pytest.mark.parametrize(
    ("answer", "expected", "said"),
    [
        (
            r"We get $\boxed{\frac{1}{2}}$.",
            r"\frac{1}{2}",
            "whole solutions; the reference answer is the text in",
        ),
        (r"$\boxed{1}$, then \fbox{2}", "2", "in the last box"),
        ("1+1 = 2\n#### 2", "2", "after ####"),
        ("#### Step 1\nAdd.\n#### Answer\n\\boxed{2}", "2", "in the last box"),
        (r"\boxed 7$", "7", "in the last box"),
        ("word " * 100, ("word " * 100).strip(), "have more than 200 characters"),
        ("2", "2", ""),
    ],
)
def test_whole_solutions_are_read_and_reported_once(answer: str, expected: str, said: str) -> None:
    rows = [{"prompt": f"{n}?", "answer": answer} for n in range(3)]
    said_by: list[str] = []
    problems = problems_from(rows, say=said_by.append)
    assert {problem.answer for problem in problems} == {expected}
    assert len(said_by) == (1 if said else 0)
    assert said in "".join(said_by)
    if said and "more than" not in said:
        assert {problem.solution for problem in problems} == {answer.strip()}


def test_tables_of_pandas_are_problems() -> None:
    table = datasets.Dataset.from_list(ROWS).to_pandas()
    assert problems_from(table) == problems_from(ROWS)


# --- start --------------------------------------------------------------------------------------------


def test_checking_text_files_imports_no_large_library() -> None:
    files = ("a.jsonl", "a.json", "a.csv", "a.tsv", "a.jsonl.gz")
    for file in files:
        next(make for data, make in FORMATS.values() if data == file)()
    code = (
        "import sys\nfrom llm_reinforce.cli import main\n"
        f"sys.argv = ['llm-reinforce', 'verify', *{files}]\n"
        "try:\n    main()\nexcept SystemExit as error:\n    assert not error.code, error.code\n"
        "found = {'torch', 'transformers', 'datasets', 'pandas', 'pyarrow', 'numpy'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("3 of 3 answers accepted") == len(files)


def test_problem_in_a_template_keeps_its_other_messages() -> None:
    chat = Problem("1+1?", "2", messages=(SYSTEM, USER))
    problem = chat.in_template("Q: {prompt}", "Examples. ")
    assert problem.messages == (SYSTEM, {"role": "user", "content": "Examples. Q: 1+1?"})
    assert problem.prompt == "Examples. Q: 1+1?"
    assert problem.without_template("Examples. Q: {prompt}") == chat
    assert chat.without_template("Q: {prompt}") == chat


@pytest.mark.parametrize(
    "template", ["{prompt}", "Q: {prompt}\nA:", "{prompt} Repeat: {prompt}", "(?) {prompt} [1]"]
)
def test_template_is_removed_from_a_prompt(template: str) -> None:
    problem = Problem("One\nand two?", "2")
    assert problem.in_template(template).without_template(template) == problem
