"""Accuracy of a policy with confidence intervals, and comparisons of two policies."""

from llm_reinforce.evaluation.accuracy import (
    Decoding,
    Evaluation,
    Journal,
    answer_problems,
    evaluation_of,
    measure_accuracy,
)
from llm_reinforce.evaluation.answers import Answer, Measure, majority_at_k, measures_of
from llm_reinforce.evaluation.comparison import (
    KINDS,
    Comparison,
    Criterion,
    Part,
    compare_by,
    compare_evaluations,
    have_same_problems,
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
from llm_reinforce.evaluation.one_call import evaluate, sample
from llm_reinforce.evaluation.pipeline import EvaluationReport, EvaluationRequest, run_evaluations
from llm_reinforce.evaluation.prompting import Prompting, choose_prompting

__all__ = [
    "KINDS",
    "Answer",
    "AnswerFile",
    "Comparison",
    "Criterion",
    "Decoding",
    "Evaluation",
    "EvaluationReport",
    "EvaluationRequest",
    "Journal",
    "Measure",
    "Part",
    "Prompting",
    "TaskResult",
    "answer_problems",
    "answer_row",
    "answers_in",
    "choose_prompting",
    "compare_by",
    "compare_evaluations",
    "difference_interval",
    "evaluate",
    "evaluation_of",
    "fingerprint",
    "harness_results",
    "have_same_problems",
    "kind_of_failure",
    "majority_at_k",
    "mcnemar",
    "mean_interval",
    "measure_accuracy",
    "measures_of",
    "open_answers",
    "pass_at_k",
    "problems_digest",
    "run_evaluations",
    "sample",
    "share_interval",
    "sign_flip",
]
