"""Is a completion's final answer right?"""

from llm_reinforce.verifier.algebra import check_algebra, verify_algebra
from llm_reinforce.verifier.percentages import without_sign
from llm_reinforce.verifier.plain_answers import Verdict, read_answer, verify_plain


def verify(
    completion: str, answer: str, *, algebra: bool = False, in_per_cent: bool = False, prompt: str = ""
) -> Verdict:
    """Compare a completion's final answer with the right one.

    >>> verify("47+85=132", "132")
    Verdict(correct=True, extracted='132', reason='equal')
    >>> verify("The answer is 15 or 16.", "15").reason
    'several_values'

    A percentage is divided by 100 on both sides: "50%" is "0.5", and "5%" is not "5". If the right answer is
    not a number, the slot (or the whole completion, if it has none) is compared as text, without regard to
    case, white space and surrounding punctuation. NaN and infinities equal nothing.

    Args:
        completion: any text; it never raises an exception and never takes long.
        answer: the right answer alone, such as "42" or "3/4".
        algebra: the right answer may be LaTeX or algebra; math-verify compares what is not a plain number, in
            a process that is stopped after two seconds.
        in_per_cent: the right answer counts percents, so that "20%" is right where it is "20", as is "20".
        prompt: the question, so that an algebraic answer that repeats it is not taken for an evaluation.

    Raises:
        InputError: math-verify is needed to compare the answer and is not installed.
    """
    verdict = verify_plain(completion, answer)
    if in_per_cent:
        return without_sign(verdict, answer)
    if not algebra or verdict.correct or read_answer(answer).value is not None:
        return verdict
    check_algebra()
    return verify_algebra(completion, answer, prompt)
