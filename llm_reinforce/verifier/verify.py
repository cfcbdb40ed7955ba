"""Verification of a completion's final answer."""

from llm_reinforce.verifier.algebra import check_algebra, verify_algebra
from llm_reinforce.verifier.plain_answers import Verdict, read_answer, verify_plain


def verify(
    completion: str, answer: str, *, algebra: bool = False, prompt: str = "", truncated: bool = False
) -> Verdict:
    """Compare the final answer of a completion with the reference answer.

    >>> verify("47+85=132", "132")
    Verdict(correct=True, extracted='132', reason='equal')
    >>> verify("The answer is 15 or 16.", "15").reason
    'several_values'

    A percentage equals its number and the number divided by 100: "50%" equals "50" and "0.5". If both answers
    have a unit, the units must agree. NaN and infinities are never accepted.

    If the reference answer is not a number, the answers are compared as text. White space and surrounding
    punctuation are ignored. Upper and lower case differ only if the reference answer is algebra. The compared
    text is the part of the completion that `\\boxed{…}`, `####`, `<answer>` or "answer is" marks as the
    answer, or the whole completion if it has no such mark.

    Args:
        completion: the text to verify. The verification is fast and raises no exception, whatever the text.
        answer: the reference answer without other text, such as "42" or "3/4".
        algebra: True if the reference answer can be LaTeX or algebra. A reference answer that is not a plain
            number is then compared by math-verify, in a process that is killed if the comparison takes more
            than two seconds.
        prompt: the question. An algebraic answer that only repeats a part of the question is rejected.
        truncated: True if the completion ended at the token budget. Then, a `\\boxed{` or `<answer>` that is
            not closed contains no answer. If `truncated` is False, the answer after such a mark extends to
            the end of the completion.

    Raises:
        InputError: if math-verify is needed to compare the answer and is not installed.
    """
    verdict = verify_plain(completion, answer, algebra=algebra, truncated=truncated)
    if not algebra or verdict.correct or read_answer(answer).value is not None:
        return verdict
    check_algebra()
    return verify_algebra(completion, answer, prompt, truncated=truncated)
