"""Read and generate problems, and divide them into training and held-out problems."""

from llm_reinforce.problems.assembly import (
    GivenProblems,
    demonstrations_from_config,
    in_template,
    problems_from_config,
    read_data,
    untemplated_problems,
    without_template,
)
from llm_reinforce.problems.demonstrations import read_demonstrations
from llm_reinforce.problems.few_shot import examples_before
from llm_reinforce.problems.from_python import problems_from
from llm_reinforce.problems.generators import OPERATIONS, generate_problems
from llm_reinforce.problems.lookup import (
    find_problems,
    has_columns,
    is_file_name,
    reads_split,
    training_part,
    usual_stop,
    usual_template,
)
from llm_reinforce.problems.named_sets import NAMED_SETS
from llm_reinforce.problems.overlap import Overlap, find_overlap
from llm_reinforce.problems.problem import Problem, have_answers, judge, judge_all
from llm_reinforce.problems.sources import (
    load_hub_problems,
    read_problems,
    split_problems,
    write_problems,
)
from llm_reinforce.problems.splits import ProblemSplit, folded_prompt

__all__ = [
    "NAMED_SETS",
    "OPERATIONS",
    "GivenProblems",
    "Overlap",
    "Problem",
    "ProblemSplit",
    "demonstrations_from_config",
    "examples_before",
    "find_overlap",
    "find_problems",
    "folded_prompt",
    "generate_problems",
    "has_columns",
    "have_answers",
    "in_template",
    "is_file_name",
    "judge",
    "judge_all",
    "load_hub_problems",
    "problems_from",
    "problems_from_config",
    "read_data",
    "read_demonstrations",
    "read_problems",
    "reads_split",
    "split_problems",
    "training_part",
    "untemplated_problems",
    "usual_stop",
    "usual_template",
    "without_template",
    "write_problems",
]
