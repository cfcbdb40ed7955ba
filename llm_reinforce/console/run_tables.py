"""Tables about runs: settings of a new run, accuracies of a completed run, and a list of recorded runs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llm_reinforce.console.text import accuracy_title, shown_accuracy, visible

if TYPE_CHECKING:
    from llm_reinforce.config import Config
    from llm_reinforce.episodes import Episode
    from llm_reinforce.runs import RunSummary, TrainState
    from llm_reinforce.training import Preview
    from llm_reinforce.training.memory import MemoryPrediction


NUM_REWARDS = 20  # maximum number of updates over which the reward before and after training is averaged


def named_values(rows: Mapping[str, str]) -> Table:
    """Return a table with a name and a value in each row. Long values are continued on the next line."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, Text(visible(value)))
    return table


def preview_table(config: "Config", preview: "Preview") -> Table:
    """Return a table that summarizes a run that has not been started.

    Problems and policy are omitted, because the trainer prints them when it is created.
    """
    shape, training = config.reinforce, config.training
    num_episodes = shape.problems_per_update * shape.episodes_per_problem
    updates = f"{shape.in_whole_batches(training.num_updates):,}"
    if training.num_tokens is not None:
        limits = f"{training.num_tokens:,} sampled tokens or {training.num_updates:,} updates"
        updates = f"about {preview.num_updates:,} (stops after {limits})"
    return named_values(
        {
            "rewards": ", ".join(f"{name} x {weight:g}" for name, weight in preview.rewards),
            "updates": updates,
            f"per {'update' if shape.updates_per_batch == 1 else f'{shape.updates_per_batch} updates'}": (
                f"{num_episodes:,} episodes: {shape.problems_per_update} problems x "
                f"{shape.episodes_per_problem}"
            ),
            **({"server": preview.server} if preview.server else {}),
            "memory": memory_line(preview.memory),
            "output_dir": config.output_dir,
        }
    )


def memory_line(memory: "MemoryPrediction") -> str:
    """Return one line with the predicted peak memory of a run."""
    sampling, update, available = (
        f"{each / 2**30:.1f} GiB" for each in (memory.sampling, memory.update, memory.available)
    )
    line = f"about {sampling} while sampling and {update} in the update, of {available} available"
    if max(memory.sampling, memory.update) > memory.available:
        line += (
            "; this is too much: lower training.micro_batch_tokens or sampling.batch_size, or set "
            "training.gradient_checkpointing: true"
        )
    return line


def episode_lines(episode: "Episode") -> Iterator[Text]:
    """Yield three lines about an episode: the prompt, the completion, and the verdict with the rewards."""
    verdict = "not verified"
    if episode.verdict is not None:
        verdict = "correct" if episode.verdict.correct else f"wrong ({episode.verdict.reason})"
    parts = ", ".join(f"{name} {value}" for name, value in episode.rewards.items())
    total = episode.total_reward
    reward = "unscored" if total is None else f"reward {total:g}"
    yield Text(f"\n{visible(episode.problem.prompt, 400)}", style="bold")
    yield Text(f"  {visible(episode.completion.text, 400)}")
    yield Text(f"  {verdict} · {reward} ({visible(episode.failure or parts)})", style="dim")


def before_and_after(
    rows: Sequence[Mapping[str, Any]], updates: Sequence[Mapping[str, Any]] = ()
) -> RenderableType:
    """Return a table with the first and last accuracy of a run, and with its mean reward at start and end.

    Args:
        rows: the rows of `evaluations.jsonl`; at least one.
        updates: the rows of `metrics.jsonl`.
    """
    last = {row["decoding"]: row for row in rows}
    first = {decoding: next(row for row in rows if row["decoding"] == decoding) for decoding in last}
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(accuracy_title(rows[-1]["data"]))
    begun, ended = next(iter(first.values()))["update"], rows[-1]["update"]
    for title in (f"update {begun:,}", "", f"update {ended:,}", "correct"):
        table.add_column(title, no_wrap=True)
    for decoding, before in first.items():
        after = last[decoding]
        table.add_row(
            decoding,
            Text(shown_accuracy(before["accuracy"], before["interval"])),
            "→",
            Text(shown_accuracy(after["accuracy"], after["interval"]), style="bold green"),
            f"{after['correct']:,} of {after['total']:,}",
        )
    notes = ["in brackets: 95% intervals"]
    rewards = [row["reward"] for row in updates if isinstance(row.get("reward"), float)]
    if len(rewards) > 1:
        num = min(NUM_REWARDS, len(rewards) // 2)
        begin, end = sum(rewards[:num]) / num, sum(rewards[-num:]) / num
        table.add_row("reward", f"{begin:.3f}", "→", Text(f"{end:.3f}", style="bold green"), "")
        which = (
            "the first and of the last update" if num == 1 else f"the first {num} and the last {num} updates"
        )
        notes.append(f"reward: mean over the episodes of {which}")
    return Group(table, *(Text(sentence, style="dim") for sentence in notes))


def better_before(rows: Sequence[Mapping[str, Any]], state: "TrainState") -> list[str]:
    """Return a line of text for each decoding mode whose best accuracy exceeds its last accuracy.

    Args:
        rows: the rows of `evaluations.jsonl`.
        state: state of the training after the last update. It contains the best evaluation of each decoding
            mode.
    """
    last = {row["decoding"]: row["accuracy"] for row in rows}
    return [
        f"best {decoding} accuracy: {best.accuracy:.1%}, at update {best.update:,}"
        for decoding, best in state.best_evaluation.items()
        if best.accuracy > last.get(decoding, 1.0)
    ]


STYLES = {"finished": "green", "running": "bold cyan", "stopped": "yellow", "unreadable": "red"}


def runs_table(runs: "Sequence[RunSummary]", now: float) -> Table:
    """Return a table with the state and the accuracies of each run.

    Args:
        runs: the runs; at least one.
        now: current time, in seconds since 1970.
    """
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("run", overflow="fold")
    for title in ("state", "updates", "accuracy", "last change"):
        table.add_column(title, no_wrap=title != "accuracy")
    for run in runs:
        accuracies = [
            f"{decoding} {before:.1%} → {after:.1%}" for decoding, (before, after) in run.accuracies.items()
        ]
        table.add_row(
            Text(visible(str(run.path))),
            Text(run.state, style=STYLES[run.state]),
            f"{run.num_updates:,} of {run.max_updates:,}",
            "\n".join(accuracies) or "not evaluated",
            _time_ago(now - run.last_change),
        )
    return table


def _time_ago(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return "just now" if seconds < 60 else "1 minute ago"
