"""Time that each piece of the fast path saves: `python tests/benchmarks/ablation.py --rounds 10`.

For each piece, pairs of processes are started. The first process of a pair runs the full code, and the second
process runs the code without the piece. The two processes take turns and make updates of a workload of
`speed.py`. For each pair, the CPU time without the piece is divided by the CPU time of the full code. The
table shows the median of these ratios and, in brackets, their range (with six pairs or more, a 95% confidence
interval of the median). A value of 1.10 means that an update takes 10% more time without the piece. Each
process computes with one thread, because the CPU time of one thread depends little on other programs on the
machine. Only this script can turn pieces off.
"""

import argparse
import inspect
import io
import json
import statistics
import sys
import tokenize
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

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
from llm_reinforce.training import host_process, loop

layer_products = products.layer_products


@dataclass(frozen=True)
class Piece:
    """A piece of the fast path.

    Attributes:
        title: description in the table.
        turn_off: function that turns the piece off in this process.
        code: modules, classes and functions that exist for this piece.
    """

    title: str
    turn_off: Callable[[], None]
    code: Sequence[Any]


# Functions that turn off a piece.


def without_fast_path() -> None:
    """Use the plain path for sampling and log-probabilities."""
    for module in (sampling, log_probs):
        module.fast_model = lambda model: None  # type: ignore[attr-defined]


def without_onednn() -> None:
    """Multiply matrices with torch instead of oneDNN."""
    products.onednn = None


def replace_layer_products(function: Callable[..., Any]) -> None:
    """Replace the function `layer_products` in all modules that import it."""
    for module in (activations, packed_forward, slot_batch):
        module.layer_products = function  # type: ignore[attr-defined]


def without_groups() -> None:
    """Compute the products of layers with the same inputs one by one."""

    def one_by_one(layers: Any, inputs: Tensor, *, cached: Any = None) -> Any:
        known = cached or [None] * len(layers)
        return tuple(
            layer_products([layer], inputs, cached=[own])[0] for layer, own in zip(layers, known, strict=True)
        )

    replace_layer_products(one_by_one)


def without_reuse() -> None:
    """Compute the forward pass of the gradient step again, without activations of the sampler."""
    loop.Activations = lambda max_tokens: None  # type: ignore[assignment,misc]


def without_forks() -> None:
    """Give each completion its own row of the batch from the start."""
    plain = sampling.Generation.__init__

    def unshared(self: Any, *arguments: Any, **keywords: Any) -> None:
        plain(self, *arguments, **keywords)
        self.shares_rows = False

    sampling.Generation.__init__ = unshared  # type: ignore[method-assign]


def without_shared_prefixes() -> None:
    """Compute all tokens of each completion, including prefixes that completions share."""
    completion_tree._num_shared = lambda one, other: 0


def without_common_prefix() -> None:
    """Compute all tokens of each prompt, including the prefix that all prompts share."""
    packing._common_prefix_length = lambda prompts: 0


def without_padding() -> None:
    """Do not pad the number of tokens to a multiple of 16."""
    packed_forward.MULTIPLE = 1


def without_short_attention() -> None:
    """Use the attention function of torch for sequences of all lengths."""
    attention.MAX_SMALL = 0


def without_chunks() -> None:
    """Compute all logits at once, with autograd."""

    def whole(
        head: Any,
        hidden: Tensor,
        states: Tensor,
        actions: Tensor,
        *,
        temperature: float,
        with_entropies: bool,
        cached: ActionLogProbs | None = None,
    ) -> ActionLogProbs:
        (logits,) = layer_products([head], hidden)
        logits = logits.index_select(0, states)
        return log_probs_of_logits(logits, actions, temperature=temperature, with_entropies=with_entropies)

    packed_log_probs.action_log_probs = whole  # type: ignore[assignment]


def without_refill() -> None:
    """Start completions of new prompts only when all earlier completions have ended."""
    slot_batch.SlotBatch.can_refill = False


def without_gc_settings() -> None:
    """Do not change the settings of the garbage collector."""
    loop.fewer_collections = nullcontext  # type: ignore[assignment]


def nothing() -> None:
    """Turn nothing off, to run the full code."""


PIECES = {
    "nothing": Piece("nothing (two processes with the full code)", nothing, []),
    "fast path": Piece(
        "the whole fast path",
        without_fast_path,
        [
            *(activations, attention, chunked_head, completion_tree, packed_forward),
            *(packed_log_probs, packing, products, slot_batch),
        ],
    ),
    "onednn": Piece(
        "products by oneDNN",
        without_onednn,
        [
            products._find_onednn,
            products._missing,
            products.product,
            products._call,
            products._can_use,
            products._do_not_use,
            products.outer_products,
        ],
    ),
    "groups": Piece(
        "layers with the same inputs computed together", without_groups, [products._layer_product]
    ),
    "reuse": Piece("reuse of sampled activations", without_reuse, [activations]),
    "forks": Piece(
        "one row for equal completions in sampling",
        without_forks,
        [sampling.Generation._fork, slot_batch.SlotBatch.copy],
    ),
    "prefixes": Piece("tree of completions in the update", without_shared_prefixes, [completion_tree]),
    "common prefix": Piece(
        "common prefix of the prompts computed once", without_common_prefix, [packing._common_prefix_length]
    ),
    "padding": Piece("padding to a multiple of 16 tokens", without_padding, [packed_forward.pad_to_multiple]),
    "short attention": Piece(
        "short attention by plain products",
        without_short_attention,
        [attention._SmallRows, attention._SmallAttention],
    ),
    "chunked head": Piece("logits of the head in chunks", without_chunks, [chunked_head]),
    "refill": Piece(
        "reuse of the slots of ended completions", without_refill, [sampling.Generation.has_room_for]
    ),
    "gc": Piece("fewer garbage collections", without_gc_settings, [host_process.fewer_collections]),
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


def measure(
    piece: str, workload: str, num_problems: int, rounds: int, num_pairs: int, directory: str
) -> dict[str, Any]:
    """Let pairs of processes, with and without the piece, make updates in turn.

    The interval is computed from one ratio per pair, because the speeds of two processes with the same code
    differ by several percent.
    """

    def started(name: str) -> Any:
        arguments = [__file__, "--worker", name, "--workloads", workload, "--directory", directory]
        arguments += ["--problems", str(num_problems)]
        return speed.worker(arguments, {"OMP_NUM_THREADS": "1"})

    seconds: list[list[tuple[float, float]]] = []
    for _ in range(num_pairs):
        seconds.append([])
        with started("nothing") as full, started(piece) as without:
            for number in range(rounds):
                first, second = (full, without) if number % 2 == 0 else (without, full)
                one, other = first(), second()
                one, other = (one, other) if number % 2 == 0 else (other, one)
                seconds[-1].append((one["cpu_seconds"], other["cpu_seconds"]))
    ratios = [statistics.median(other / one for one, other in pair) for pair in seconds]
    low, high = interval(ratios)
    return {
        "piece": piece,
        "workload": workload,
        "ratio": statistics.median(ratios),
        "low": low,
        "high": high,
        "cpu_seconds": seconds,
        "peak_mib": [one["peak_mib"], other["peak_mib"]],
    }


def table(results: Sequence[dict[str, Any]], workloads: Sequence[str]) -> str:
    """Return a Markdown table with one row per piece."""
    found = {(result["piece"], result["workload"]): result for result in results}
    head = [f"{name}: time without it" for name in workloads] + [f"{name}: memory" for name in workloads]
    lines = [f"| piece | lines | {' | '.join(head)} |", "|---" * (2 + len(head)) + "|"]
    for piece in dict.fromkeys(result["piece"] for result in results):
        own = [found.get((piece, workload)) for workload in workloads]
        times = [f"{one['ratio']:.2f} ({one['low']:.2f}–{one['high']:.2f})" if one else "" for one in own]
        memory = [f"{one['peak_mib'][1] / one['peak_mib'][0]:.2f}" if one else "" for one in own]
        code = PIECES[piece].code
        lines.append(f"| {PIECES[piece].title} | {num_lines(code)} | {' | '.join(times + memory)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure the pieces, print the table, and save all times."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PIECES, default=list(PIECES), metavar="PIECE")
    parser.add_argument("--workloads", nargs="+", choices=speed.WORKLOADS, default=list(speed.WORKLOADS))
    parser.add_argument("--problems", type=int, default=8, help="problems per update")
    parser.add_argument("--rounds", type=int, default=10, help="updates of each process")
    parser.add_argument("--pairs", type=int, default=3, help="pairs of processes per piece")
    parser.add_argument("--json", type=Path, default=Path("ablation.json"), help="file for all times")
    parser.add_argument("--worker", choices=PIECES, help=argparse.SUPPRESS)
    parser.add_argument("--directory", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        PIECES[options.worker].turn_off()
        workload = replace(speed.WORKLOADS[options.workloads[0]], num_problems=options.problems)
        return speed.ours(workload, options.directory, speed.Turns(), has_verdicts=False)
    machine: dict[str, Any] = {name: version(name) for name in ("torch", "transformers")}
    machine |= {"capability": torch.backends.cpu.get_cpu_capability(), "problems": options.problems}
    results: list[dict[str, Any]] = []
    for workload in options.workloads:
        with speed.weights_of(workload) as directory:
            for piece in options.only:
                numbers = options.problems, options.rounds, options.pairs
                results.append(measure(piece, workload, *numbers, directory))
                options.json.write_text(json.dumps({"machine": machine, "results": results}, indent=2))
                last = results[-1]
                print(
                    f"{workload}: without {piece} {last['ratio']:.3f} ({last['low']:.3f}–{last['high']:.3f})",
                    file=sys.stderr,
                    flush=True,
                )
    print(table(results, options.workloads))
    return None


if __name__ == "__main__":
    main()
