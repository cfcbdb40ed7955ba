"""The files in data/ are reproduced byte for byte by the code in their README."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from llm_reinforce.problems import read_problems
from llm_reinforce.verifier import verify

ROOT = Path(__file__).parents[2]
README = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
NUM_ROWS = {"one_digit_addition.jsonl": 100, "two_digit_addition.jsonl": 500, "mixed_arithmetic.jsonl": 500}


def test_code_of_the_readme_reproduces_every_file(tmp_path: Path) -> None:
    code = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(code) == 1
    # a separate process with another hash seed
    environment = {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "1"}
    subprocess.run([sys.executable, "-c", code[0]], cwd=tmp_path, env=environment, check=True)
    made = {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()}
    assert made == {path.name: path.read_bytes() for path in (ROOT / "data").glob("*.jsonl")}


@pytest.mark.parametrize("name", NUM_ROWS)
def test_files_have_their_rows_and_verifiable_answers(name: str) -> None:
    problems = read_problems(ROOT / "data" / name)
    assert len(problems) == NUM_ROWS[name]
    assert len({problem.prompt for problem in problems}) == len(problems)
    assert all(verify(f"#### {problem.answer}", problem.answer).correct for problem in problems)
