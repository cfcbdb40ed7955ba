"""Verification of answers: extraction from completions, exact comparison, and audits of data sets."""

from llm_reinforce.verifier.algebra import check_algebra
from llm_reinforce.verifier.audit import Audit, Doubt, Loss, audit_answers, find_doubts, find_losses
from llm_reinforce.verifier.final_answer import split_at_mark
from llm_reinforce.verifier.plain_answers import Verdict, extract_answer, read_answer
from llm_reinforce.verifier.reasoning_blocks import is_reasoning_tag, open_reasoning
from llm_reinforce.verifier.verify import verify

__all__ = [
    "Audit",
    "Doubt",
    "Loss",
    "Verdict",
    "audit_answers",
    "check_algebra",
    "extract_answer",
    "find_doubts",
    "find_losses",
    "is_reasoning_tag",
    "open_reasoning",
    "read_answer",
    "split_at_mark",
    "verify",
]
