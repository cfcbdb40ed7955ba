"""Check the verifier on reference answers: `python tests/benchmarks/golds.py FILE… [--algebra]`.

Each FILE is a data set, as JSONL or as a list in JSON. The rows are objects, or lists of a question and an
answer. Each reference answer is inserted into several texts, such as "The answer is %s.", and the verifier
compares the texts with the answer. The script prints the number of answers that are accepted in all texts,
and the answers that are rejected.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from llm_reinforce.verifier import algebra, verify
from llm_reinforce.verifier.audit import WRAPPINGS

KEYS = ("answer", "Answer", "target", "final_ans", "lSolutions")


def main() -> None:
    """Check the reference answers in each file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--algebra", action="store_true", help="compare the answers as algebra")
    options = parser.parse_args()
    algebra.TIME_LIMIT = 30.0  # the machine may be busy
    for path in options.files:
        golds = [gold_of(row) for row in rows_of(path)]
        rejected = [
            (gold, wrapping, verdict.reason)
            for gold in golds
            for wrapping in WRAPPINGS
            if not (verdict := verify(wrapping % gold, gold, algebra=options.algebra)).correct
        ]
        num_accepted = len(golds) - len({gold for gold, _, _ in rejected})
        print(f"{path.name}: {num_accepted:,} of {len(golds):,} accepted in {len(WRAPPINGS)} wrappings")
        for case in rejected[:20]:
            print("   ", case)


def rows_of(path: Path) -> list[Any]:
    """Return the rows of a file of JSON or JSONL."""
    text = path.read_text(encoding="utf-8")
    return (
        list(json.loads(text)) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]
    )


def gold_of(row: Any) -> str:
    """Return the reference answer of a row: the whole answer or, as in GSM8K, the text after `####`."""
    value = row[1] if isinstance(row, list) else next(row[key] for key in KEYS if key in row)
    value = value[0] if isinstance(value, list) else value
    return str(value).rpartition("####")[2].replace(",", "").strip() if "####" in str(value) else str(value)


if __name__ == "__main__":
    main()
