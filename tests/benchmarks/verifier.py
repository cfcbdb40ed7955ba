"""Latency and accuracy of the verifier: `python tests/benchmarks/verifier.py [--quick]`.

The script prints the latency by text size, the result of a fuzz test with 100,000 texts, and the accuracy on
two sets: tests/verifier/adversarial.jsonl, and tests/verifier/model_completions.jsonl, which a real model
wrote. The accuracy is compared with that of math-verify, which may use one second of CPU time per case.
Latencies are CPU times of the thread, which do not include the time that other processes use.

`python tests/benchmarks/verifier.py --completions` prints only the accuracy on the model's completions.
`--show` also prints each wrong verdict on these completions.
"""

import argparse
import json
import logging
import multiprocessing
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from textwrap import indent
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "verifier")]

from model_completions import Pair, derived_pairs, gold_pairs, unfinished_pairs  # noqa: E402

from llm_reinforce.evaluation.extraction import exact_match, flexible_answer  # noqa: E402
from llm_reinforce.verifier import verify  # noqa: E402
from llm_reinforce.verifier.plain_answers import UNPARSEABLE, WRONG  # noqa: E402

CASES = ROOT / "tests" / "verifier" / "adversarial.jsonl"
SIZES = (1_000, 4_000, 16_000, 65_536, 262_144, 1_000_000)
LIMIT = 1.0  # CPU seconds per case of math-verify
SHOWN = 300  # number of characters at the end of a completion that --show prints
NOT_INSTALLED = "math-verify is not installed: pip install 'llm-reinforce[algebra]'"
Case = tuple[str, str]  # a completion and a reference answer
Judged = tuple[bool | None, float]  # a verdict and its CPU seconds
ORDINARY = (
    "Natalia sold 48/2 = 24 clips in May. So she sold 48+24 = 72 clips in April and May together. ",
    "First, let $x$ be the number of apples; then $2x + 3 = 17$ and so $x = \\frac{17-3}{2} = 7$. ",
    "The trip takes 3 hours and 20 minutes, which costs $1,250.50 (see p. 12 of the report of 2024-01-15). ",
    "| item | price |\n|---|---|\n| pens | 3 |\n| books | 15 |\n\n",
    "def total(prices):\n    return sum(price * 1.19 for price in prices)\n\n",
    "我们有 12 个苹果，每个 3 元，所以一共 36 元。",
)
HOSTILE = (
    *(
        "1",
        "a",
        " ",
        "\n",
        "#",
        "-",
        "{",
        "1 ",
        "1,",
        "1.1,",
        "0.",
        "1-",
        "1/1 ",
        "1:",
        "a-",
        "x1",
        "= ",
        "$-",
    ),
    *("9^", "9!", "\\boxed{", "\\boxed{1}", "\\boxed ", "\\frac{1", "\\text{", "\\frac{1}{1}", "answer is "),
    *(
        "answer to ",
        "<answer>",
        "<answer>1</answer>",
        "</think>",
        "<think>",
        "#### ",
        "1e1",
        "1 million",
        "(1,",
    ),
    *("\ud800", "1\u202f000", "\x00", "\u200f", "\x1b[1m", "٣", "²", "H2O ", "1 or ", "1=", "<<", "x = 5, "),
)
PIECES = (
    *HOSTILE,
    *ORDINARY,
    "15",
    "16",
    "%",
    "e",
    ".",
    "or",
    "\\",
    "}",
    "</answer>",
    "3/4",
    "1,042",
    "�",
    "½",
)


def main() -> None:
    """Run all parts and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="use a tenth of the repetitions and fuzz cases")
    parser.add_argument(
        "--completions", action="store_true", help="judge only the completions of a real model"
    )
    parser.add_argument("--show", action="store_true", help="print the wrong verdicts on these completions")
    options = parser.parse_args()
    console = Console()
    if not options.completions:
        console.print(latency(5 if options.quick else 50))
        console.print(fuzz(10_000 if options.quick else 100_000))
        console.print(scores())
    real_completions(console, show=options.show)


def texts(size: int) -> Iterator[str]:
    """Yield ordinary and hostile texts of a size, without an answer and with several kinds of answers."""
    for piece in (*ORDINARY, *HOSTILE):
        text = (piece * (size // len(piece) + 1))[:size]
        yield text
        yield text[: -len("\n#### 15")] + "\n#### 15"
        yield "The answer is " + text[:-14]
        yield "\\boxed{" + text[:-8] + "}"


def latency(repetitions: int) -> Table:
    """Return a table of the CPU time of a verdict. The verifier does not cache texts of these sizes.

    The time of a text is the shortest time of all repetitions, because other processes make times longer.
    """
    table = Table("characters", "texts", "median", "p99", "max", title="latency, ms of CPU time")
    for text in texts(SIZES[0]):
        verify(text, "15")  # fill the caches of regular expressions and characters
    for size in SIZES:
        tried = list(texts(size))
        times = [float("inf")] * len(tried)
        for _ in range(repetitions if size <= 65_536 else max(1, repetitions // 10)):
            for index, text in enumerate(tried):
                begun = time.thread_time()
                verify(text, "15")
                times[index] = min(times[index], 1e3 * (time.thread_time() - begun))
        row = (_quantile(times, 0.5), _quantile(times, 0.99), max(times))
        table.add_row(f"{size:,}", f"{len(times):,}", *(f"{value:.3f}" for value in row))
    return table


def fuzz(num_cases: int) -> Table:
    """Check verdicts on random texts made of hostile pieces, and return a table of the verdicts' reasons.

    Every text must get a verdict. A text that ends in two alternative answers must never be accepted.
    """
    generator = random.Random(0)
    reasons: Counter[str] = Counter()
    longest = 0.0
    for _ in range(num_cases):
        text = "".join(generator.choices(PIECES, k=generator.randrange(40)))
        answer = generator.choice(("15", "0.75", "-3", "Paris", "1,042", "", text[:20]))
        begun = time.thread_time()
        verdict = verify(text, answer)
        longest = max(longest, time.thread_time() - begun)
        reasons[verdict.reason] += 1
        assert verdict.reason in {"equal"} | WRONG | UNPARSEABLE
        assert verdict.correct == (verdict.reason == "equal")
        assert not verify(f"{text}</think>\n#### 15 or 16", "15").correct
        assert not verify(f"{text}</think>\n\\boxed{{15, 16}}", "16").correct
        assert verify(f"{text}</think>\n\\boxed{{15}}", "15.0").correct
    table = Table(
        "verdict", "cases", title=f"fuzz: {num_cases:,} texts, no exception, {1e3 * longest:.2f} ms at most"
    )
    for reason, count in reasons.most_common():
        table.add_row(reason, f"{count:,}")
    return table


def scores() -> Table:
    """Return a table of correct verdicts on the adversarial set.

    The rows are our verifier, our verifier in eight threads, and math-verify.
    """
    cases: list[dict[str, Any]] = [
        json.loads(line) for line in CASES.read_text(encoding="utf-8").splitlines()
    ]
    table = Table(
        "verifier",
        "correct",
        "false positives",
        "false negatives",
        "over 1 s or failed",
        title=f"{len(cases)} cases",
    )
    texts = [(case["completion"], case["answer"]) for case in cases]
    table.add_row("llm_reinforce", *_counts(cases, [verdict for verdict, _ in _ours(texts)]))
    with ThreadPoolExecutor(8) as pool:
        threaded = list(pool.map(lambda text: verify(*text).correct, texts))
    table.add_row("llm_reinforce, 8 threads", *_counts(cases, list(threaded)))
    if find_spec("math_verify") is None:
        table.caption = NOT_INSTALLED
        return table
    table.add_row("math-verify", *_counts(cases, [verdict for verdict, _ in _math_verify(texts)]))
    return table


def real_completions(console: Console, *, show: bool) -> None:
    """Print tables of the verdicts of up to three verifiers on completions of a real model.

    Args:
        console: console to print on.
        show: True to print each wrong verdict as well.
    """
    judges = {"llm_reinforce": _ours, "last number": _last_number}
    if find_spec("math_verify") is not None:
        judges["math-verify"] = _math_verify
    sets = {
        "completions with gold answers": gold_pairs(),
        "completions with their own numbers": derived_pairs(),
        "unfinished completions with their own numbers": unfinished_pairs(),
    }
    cases = [(pair.completion, pair.answer) for pairs in sets.values() for pair in pairs]
    judged = {name: iter(judge(cases)) for name, judge in judges.items()}
    labels = [f"{label} {verdict}" for label in ("correct", "wrong") for verdict in ("accepted", "refused")]
    for title, pairs in sets.items():
        table = Table("verifier", *labels, "over 1 s or failed", "CPU seconds")
        table.title = f"{len(pairs)} pairs of {title}"
        table.caption = None if "math-verify" in judges else NOT_INSTALLED
        for name, results in judged.items():
            verdicts, seconds = zip(*islice(results, len(pairs)), strict=True)
            table.add_row(name, *_cells(pairs, verdicts), f"{sum(seconds):.2f}")
            for pair, verdict in zip(pairs, verdicts, strict=True):
                if show and verdict is not pair.correct:
                    console.print(_described(name, pair, verdict), markup=False, highlight=False)
        console.print(table)


def _cells(pairs: list[Pair], verdicts: Sequence[bool | None]) -> list[str]:
    counts = Counter((pair.correct, verdict) for pair, verdict in zip(pairs, verdicts, strict=True))
    judged = [counts[label, verdict] for label in (True, False) for verdict in (True, False)]
    return [*map(str, judged), str(verdicts.count(None))]


def _described(verifier: str, pair: Pair, verdict: bool | None) -> str:
    happened = {True: "accepted", False: "refused", None: "not judged"}[verdict]
    label = "correct" if pair.correct else "wrong"
    read = f", read as {verify(pair.completion, pair.answer)}" if verifier == "llm_reinforce" else ""
    head = f"{verifier}: row {pair.row} ({pair.kind}), {label} answer {pair.answer} {happened}{read}"
    return f"{head}\n{indent(pair.completion[-SHOWN:], '    ')}"


def _counts(cases: list[dict[str, Any]], verdicts: list[bool | None]) -> tuple[str, ...]:
    pairs = [(case["correct"], verdict) for case, verdict in zip(cases, verdicts, strict=True)]
    correct = sum(expected is verdict for expected, verdict in pairs)
    false_positives = sum(not expected and verdict is True for expected, verdict in pairs)
    false_negatives = sum(expected and verdict is False for expected, verdict in pairs)
    shown = f"{correct} ({correct / len(pairs):.1%})"
    return shown, str(false_positives), str(false_negatives), str(verdicts.count(None))


def _ours(cases: Iterable[Case]) -> list[Judged]:
    return [_timed(lambda *case: verify(*case).correct, case) for case in cases]


def _last_number(cases: Iterable[Case]) -> list[Judged]:
    """Return the verdicts of the flexible answer extraction of lm-evaluation-harness."""
    return [_timed(lambda text, answer: exact_match(flexible_answer(text), answer), case) for case in cases]


def _math_verify(cases: Iterable[Case]) -> list[Judged]:
    """Return the verdicts of math-verify, which runs in a worker process.

    If a case fails or exceeds the limit of CPU time, its verdict is None.
    """
    context = multiprocessing.get_context("spawn")
    judged: list[Judged] = []
    ask, process = _started(context, _answer_questions)
    for case in cases:
        ask.send(case)
        try:
            judged.append(ask.recv() if ask.poll(60 * LIMIT) else (None, LIMIT))
        except (EOFError, OSError):
            judged.append((None, LIMIT))
        if judged[-1][0] is None:
            process.kill()
            process.join()
            ask, process = _started(context, _answer_questions)
    process.kill()
    return judged


def _timed(judge: Callable[[str, str], bool | None], case: Case) -> Judged:
    begun = time.process_time()
    verdict = judge(*case)
    return verdict, time.process_time() - begun


def _started(context: Any, target: Callable[[Connection], None]) -> tuple[Any, Any]:
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs,), daemon=True)
    process.start()
    ours.recv()  # sent after the imports, whose time does not count
    return ours, process


def _answer_questions(pipe: Connection) -> None:
    logging.disable(logging.CRITICAL)
    from math_verify import parse
    from math_verify import verify as compare

    compare(parse("$\\frac{1}{2}$"), parse("The answer is 0.5"))
    pipe.send("ready")
    while True:
        case = pipe.recv()
        signal.setitimer(signal.ITIMER_PROF, LIMIT)  # after this CPU time, the kernel ends the process
        try:
            # as in the README of math-verify: the correct answer is LaTeX, the completion is unchanged
            pipe.send(_timed(lambda text, answer: bool(compare(parse(f"${answer}$"), parse(text))), case))
        except Exception:
            pipe.send((None, LIMIT))


def _quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


if __name__ == "__main__":
    main()
