"""Accuracy with its uncertainty."""

from llm_reinforce.evaluation.accuracy import Decoding, Evaluation, Journal, evaluate
from llm_reinforce.evaluation.answers import Answer, Measure, majority_at_k, measures_of
from llm_reinforce.evaluation.comparison import (
    KINDS,
    Comparison,
    Criterion,
    Part,
    compare,
    comparisons,
    kind_of_failure,
)
from llm_reinforce.evaluation.harness import TaskResult, harness_results
from llm_reinforce.evaluation.intervals import (
    difference_interval,
    mcnemar,
    mean_interval,
    pass_at_k,
    share_interval,
    sign_flip,
)
from llm_reinforce.evaluation.journal import (
    AnswerFile,
    answer_row,
    answers_in,
    fingerprint,
    open_answers,
    problems_digest,
)

__all__ = [
    "KINDS",
    "Answer",
    "AnswerFile",
    "Comparison",
    "Criterion",
    "Decoding",
    "Evaluation",
    "Journal",
    "Measure",
    "Part",
    "TaskResult",
    "answer_row",
    "answers_in",
    "compare",
    "comparisons",
    "difference_interval",
    "evaluate",
    "fingerprint",
    "harness_results",
    "kind_of_failure",
    "majority_at_k",
    "mcnemar",
    "mean_interval",
    "measures_of",
    "open_answers",
    "pass_at_k",
    "problems_digest",
    "share_interval",
    "sign_flip",
]
