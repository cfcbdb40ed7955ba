"""Answers to questions that ask for a number of percent.

In GSM8K the reference answer to "What percentage …?" is a number such as 20. The completion `20%` is then
also correct. For all other questions, `20%` is read as 0.2.
"""

import re
from dataclasses import replace

from llm_reinforce.verifier.final_answer import split_at_mark
from llm_reinforce.verifier.plain_answers import Verdict, verify_plain

_ASKS = re.compile(
    r"\bwhat(?:['\u2019]s| is| was| will be| would be)?(?: the)? percent(?:age)?\b"
    r"|\b(?:as a|in) percent(?:age)?\b",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"-?(?:[1-9][0-9,]*(?:\.[0-9]+)?|0)")  # not 0.2, which could mean 20% as well as 0.2%
_SIGN = re.compile(r"\s*(?:%|\bper ?cent|\bpct)\s*$", re.IGNORECASE)


def is_in_per_cent(prompt: str, answer: str, solution: str | None = None) -> bool:
    """Return True if the reference answer of a problem is a number of percent, as 20 in "20%".

    This is the case if the question asks for a percentage, or if the last line of the worked solution states
    the answer with a percent sign. The line `#### answer` is not part of the worked solution.

    >>> is_in_per_cent("What percentage of the cars is red?", "20"), is_in_per_cent("How many cars?", "20")
    (True, False)
    """
    if not _NUMBER.fullmatch(answer):
        return False
    steps, marked = split_at_mark(solution or "")
    text = steps if marked == answer.replace(",", "") else solution or ""
    last_line = text.rpartition("\n")[2]
    stated = re.search(rf"(?<![0-9.,]){re.escape(answer)} ?(?:%|percent\b)", last_line)
    return bool(stated or _ASKS.search(prompt))


def without_sign(verdict: Verdict, answer: str) -> Verdict:
    """Verify an answer without its percent sign, for a reference answer that is a number of percent.

    >>> without_sign(verify_plain("It is 20%.", "20"), "20")
    Verdict(correct=True, extracted='20%', reason='equal')
    """
    number = _SIGN.sub("", verdict.extracted or "")
    if verdict.reason not in ("equal", "different") or number == verdict.extracted:
        return verdict
    return replace(verify_plain(f"#### {number}", answer), extracted=verdict.extracted)
