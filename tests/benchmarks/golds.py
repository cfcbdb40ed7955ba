"""Golds of data sets in the wrappings of the audit: `python tests/benchmarks/golds.py FILE… [--algebra]`.

A FILE is JSONL or a list in JSON. Its rows are objects, or lists of a question and an answer. Prints the
number of answers that are accepted in every wrapping, and the rejected ones.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from llm_reinforce.verifier import algebra, verify
from llm_reinforce.verifier.audit import WRAPPINGS

KEYS = ("answer", "Answer", "target", "final_ans", "lSolutions")


def main() -> None:
    """Check the golds of each file."""
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
    """Return the answer of a row; GSM8K's answer is the text after `####`."""
    value = row[1] if isinstance(row, list) else next(row[key] for key in KEYS if key in row)
    value = value[0] if isinstance(value, list) else value
    return str(value).rpartition("####")[2].replace(",", "").strip() if "####" in str(value) else str(value)


if __name__ == "__main__":
    main()
