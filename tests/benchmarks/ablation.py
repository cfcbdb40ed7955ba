"""Time that each piece of the fast path saves: `python tests/benchmarks/ablation.py --rounds 10`.

One process makes updates of a workload of `speed.py`. For each piece, an update with the full code and an
update without the piece take turns. The CPU time per sampled token of an update without the piece is divided
by that of the update with the full code. The table shows the median of these ratios, with its 95% confidence
interval (with fewer than six rounds, the range of the ratios). A value of 1.10 means that an update takes 10%
more time without the piece. The process computes with one thread, because the CPU time of one thread depends
little on other programs on the machine. Only this script can turn pieces off.
"""

import argparse
import inspect
import io
import json
import statistics
import sys
import tokenize
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import speed
import torch
from scipy.stats import binom
from torch import Tensor

from llm_reinforce.policy import ActionLogProbs, log_probs, sampling
from llm_reinforce.policy.action_head import log_probs_of_logits
from llm_reinforce.policy.fast_path import (
    activations,
    attention,
    chunked_head,
    completion_tree,
    packed_forward,
    packed_log_probs,
    packing,
    products,
    slot_batch,
)
from llm_reinforce.training import loop


@dataclass(frozen=True)
class Piece:
    """A piece of the fast path.

    Attributes:
        title: description in the table.
        changes: attributes that turn the piece off: an object, the name of its attribute, and the new value.
        code: modules, classes and functions that exist for this piece.
    """

    title: str
    changes: Sequence[tuple[Any, str, Any]]
    code: Sequence[Any]


def all_logits(
    head: Any,
    hidden: Tensor,
    states: Tensor,
    actions: Tensor,
    *,
    temperature: float,
    with_entropies: bool,
    cached: ActionLogProbs | None = None,
) -> ActionLogProbs:
    """Compute all logits at once, with autograd."""
    logits = products.layer_product(head, hidden).index_select(0, states)
    return log_probs_of_logits(logits, actions, temperature=temperature, with_entropies=with_entropies)


class Unshared(sampling.Generation):
    """Sampling in which each completion has its own row of the batch from the start."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.shares_rows = False


PIECES = {
    "nothing": Piece("nothing: all updates with the full code", [], []),
    "fast path": Piece(
        "the whole fast path",
        [(module, "fast_model", lambda model: None) for module in (sampling, log_probs)],
        [
            *(activations, attention, chunked_head, completion_tree, packed_forward),
            *(packed_log_probs, packing, products, slot_batch),
        ],
    ),
    "onednn": Piece(
        "products by oneDNN",
        [(products, "onednn", None)],
        [
            products._find_onednn,
            products._missing,
            products.product,
            products._call,
            products._can_use,
            products._do_not_use,
            products.outer_product,
        ],
    ),
    "reuse": Piece(
        "reuse of sampled activations", [(loop, "Activations", lambda max_tokens: None)], [activations]
    ),
    "forks": Piece(
        "one row for equal completions in sampling",
        [(sampling, "Generation", Unshared)],
        [sampling.Generation._fork, slot_batch.SlotBatch.copy],
    ),
    "prefixes": Piece(
        "tree of completions in the update",
        [(completion_tree, "_num_shared", lambda one, other: 0)],
        [completion_tree],
    ),
    "common prefix": Piece(
        "common prefix of the prompts computed once",
        [(packing, "_common_prefix_length", lambda prompts: 0)],
        [packing._common_prefix_length],
    ),
    "padding": Piece(
        "padding to a multiple of 16 tokens",
        [(packed_forward, "MULTIPLE", 1)],
        [packed_forward.pad_to_multiple],
    ),
    "short attention": Piece(
        "short attention by plain products",
        [(attention, "MAX_SMALL", 0)],
        [attention._SmallRows, attention._SmallAttention],
    ),
    "chunked head": Piece(
        "logits of the head in chunks", [(packed_log_probs, "action_log_probs", all_logits)], [chunked_head]
    ),
    "refill": Piece(
        "reuse of the slots of ended completions",
        [(slot_batch.SlotBatch, "can_refill", False)],
        [sampling.Generation.has_room_for],
    ),
}


# The measurement.


def num_lines(code: Sequence[Any]) -> int:
    """Return the number of lines of the code, without blank lines, comments and docstrings."""
    lines = set()
    for number, part in enumerate(code):
        source = inspect.getsource(part)
        indented = "if True:\n" + source if source[0] == " " else source
        previous = tokenize.NEWLINE
        skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
        for token in tokenize.generate_tokens(io.StringIO(indented).readline):
            starts_line = previous in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
            is_docstring = token.type == tokenize.STRING and starts_line
            if token.type not in (tokenize.COMMENT, tokenize.NL):
                previous = token.type
            if token.type not in (*skipped, tokenize.ENDMARKER) and not is_docstring:
                lines |= {(number, line) for line in range(token.start[0], token.end[0] + 1)}
        if indented is not source:
            lines.discard((number, 1))
    return len(lines)


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """Return a 95% confidence interval of the median. With fewer than six values, return their range."""
    ordered = sorted(ratios)
    place = max(int(binom.ppf(0.025, len(ratios), 0.5)) - 1, 0)
    return ordered[place], ordered[-1 - place]


class AllUpdatesMade(Exception):  # noqa: N818, not an error
    """The process has made all updates."""


class Turns:
    """Updates with the full code and without a piece, in turn. The first update is not measured.

    In each round, each piece is turned off for one update, right after or right before an update with the
    full code. `seconds[piece]` lists the CPU seconds per sampled token of these two updates for each round.
    """

    def __init__(self, pieces: Sequence[str], rounds: int) -> None:
        self.rounds = rounds
        self.seconds: dict[str, list[dict[bool, float]]] = {piece: [] for piece in pieces}
        self.order = (
            (piece, (number + half) % 2 == 1)
            for number in range(rounds)
            for piece in pieces
            for half in (0, 1)
        )
        self.current: tuple[str, bool] | None = None
        self.patches = ExitStack()

    def report(self, *, cpu_seconds: float, tokens: int, **what: object) -> None:
        """Store the CPU time of the last update, per sampled token, and prepare the next update."""
        self.patches.close()
        if self.current is not None:
            piece, is_off = self.current
            pairs = self.seconds[piece]
            if not pairs or len(pairs[-1]) == 2:
                pairs.append({})
            pairs[-1][is_off] = cpu_seconds / tokens
            print(f"{len(pairs)} of {self.rounds} rounds: {piece}", end="\r", file=sys.stderr)
        self.current = next(self.order, None)
        if self.current is None:
            raise AllUpdatesMade
        piece, is_off = self.current
        for change in PIECES[piece].changes if is_off else ():
            self.patches.enter_context(mock.patch.object(*change))


def measure(pieces: Sequence[str], workload: str, num_problems: int, rounds: int) -> list[dict[str, Any]]:
    """Make updates of a workload with and without each piece, and return the ratios of their CPU times."""
    turns = Turns(pieces, rounds)
    chosen = replace(speed.WORKLOADS[workload], num_problems=num_problems)
    with speed.weights_of(workload) as directory, suppress(AllUpdatesMade):
        speed.ours(chosen, directory, turns.report, has_verdicts=False)
    results = []
    for piece, pairs in turns.seconds.items():
        ratios = [pair[True] / pair[False] for pair in pairs]
        low, high = interval(ratios)
        median = statistics.median(ratios)
        results.append({"piece": piece, "workload": workload, "ratio": median, "low": low, "high": high})
        results[-1]["cpu_seconds_per_token"] = [[pair[False], pair[True]] for pair in pairs]
    return results


def table(results: Sequence[dict[str, Any]], workloads: Sequence[str]) -> str:
    """Return a Markdown table with one row per piece."""
    found = {(result["piece"], result["workload"]): result for result in results}
    lines = [f"| piece | lines | {' | '.join(workloads)} |", "|---" * (2 + len(workloads)) + "|"]
    for piece in dict.fromkeys(result["piece"] for result in results):
        own = [found.get((piece, workload)) for workload in workloads]
        times = [f"{one['ratio']:.2f} ({one['low']:.2f}–{one['high']:.2f})" if one else "" for one in own]
        lines.append(f"| {PIECES[piece].title} | {num_lines(PIECES[piece].code)} | {' | '.join(times)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure the pieces, print the table, and save all times."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PIECES, default=list(PIECES), metavar="PIECE")
    parser.add_argument("--workloads", nargs="+", choices=speed.WORKLOADS, default=list(speed.WORKLOADS))
    parser.add_argument("--problems", type=int, default=8, help="problems per update")
    parser.add_argument("--rounds", type=int, default=10, help="pairs of updates per piece")
    parser.add_argument("--json", type=Path, default=Path("ablation.json"), help="file for all times")
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine: dict[str, Any] = {name: version(name) for name in ("torch", "transformers")}
    machine |= {"capability": torch.backends.cpu.get_cpu_capability(), "problems": options.problems}
    results: list[dict[str, Any]] = []
    for workload in options.workloads:
        results += measure(options.only, workload, options.problems, options.rounds)
        options.json.write_text(json.dumps({"machine": machine, "results": results}, indent=2))
    print(table(results, options.workloads))


if __name__ == "__main__":
    main()
