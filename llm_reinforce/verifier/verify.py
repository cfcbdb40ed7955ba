"""Verification of a completion's final answer."""

from llm_reinforce.verifier.algebra import check_algebra, verify_algebra
from llm_reinforce.verifier.percentages import without_sign
from llm_reinforce.verifier.plain_answers import Verdict, read_answer, verify_plain


def verify(
    completion: str, answer: str, *, algebra: bool = False, in_per_cent: bool = False, prompt: str = ""
) -> Verdict:
    """Compare the final answer of a completion with the reference answer.

    >>> verify("47+85=132", "132")
    Verdict(correct=True, extracted='132', reason='equal')
    >>> verify("The answer is 15 or 16.", "15").reason
    'several_values'

    Percentages are divided by 100 in both answers: "50%" equals "0.5", and "5%" does not equal "5". If the
    reference answer is not a number, the answers are compared as text, ignoring case, white space and
    surrounding punctuation. The text compared is what `\\boxed{…}`, `####`, `<answer>` or "answer is" marks
    as the answer; without such a mark, it is the whole completion. NaN and infinities equal nothing.

    Args:
        completion: the text to verify. The function never raises an exception and is fast for every text.
        answer: the reference answer without other text, such as "42" or "3/4".
        algebra: True if the reference answer can be LaTeX or algebra. If it is not a plain number, it is
            compared with math-verify, in a process that is killed if the comparison takes more than two
            seconds.
        in_per_cent: True if the reference answer is a number of percent: if it is "20", both "20" and "20%"
            are correct.
        prompt: the question. An algebraic answer that only repeats a part of the question is rejected.

    Raises:
        InputError: if math-verify is needed to compare the answer and is not installed.
    """
    verdict = verify_plain(completion, answer)
    if in_per_cent:
        return without_sign(verdict, answer)
    if not algebra or verdict.correct or read_answer(answer).value is not None:
        return verdict
    check_algebra()
    return verify_algebra(completion, answer, prompt)
