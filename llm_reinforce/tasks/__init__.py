"""What is asked, and what is right: problems, where they come from, and the verifier."""

from llm_reinforce.tasks.algebra import check_algebra, judge
from llm_reinforce.tasks.audit import find_doubts
from llm_reinforce.tasks.few_shot import examples_before
from llm_reinforce.tasks.generators import OPERATIONS, generate_problems
from llm_reinforce.tasks.lookup import (
    find_problems,
    is_file_name,
    reads_split,
    training_part,
    usual_stop,
    usual_template,
)
from llm_reinforce.tasks.named_sets import NAMED_SETS
from llm_reinforce.tasks.overlap import Overlap, find_overlap
from llm_reinforce.tasks.problem import Problem
from llm_reinforce.tasks.sources import (
    load_hub_problems,
    read_problems,
    split_problems,
    write_problems,
)
from llm_reinforce.tasks.splits import ProblemSplit, folded_prompt
from llm_reinforce.tasks.verifier import Verdict, extract_answer, read_answer, verify

__all__ = [
    "NAMED_SETS",
    "OPERATIONS",
    "Overlap",
    "Problem",
    "ProblemSplit",
    "Verdict",
    "check_algebra",
    "examples_before",
    "extract_answer",
    "find_doubts",
    "find_overlap",
    "find_problems",
    "folded_prompt",
    "generate_problems",
    "is_file_name",
    "judge",
    "load_hub_problems",
    "read_answer",
    "read_problems",
    "reads_split",
    "split_problems",
    "training_part",
    "usual_stop",
    "usual_template",
    "verify",
    "write_problems",
]
