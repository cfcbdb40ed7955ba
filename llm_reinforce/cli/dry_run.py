"""`llm-reinforce train RECIPE --dry-run`: load everything, sample a few episodes, and write no files."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llm_reinforce.cli.common import is_main_process
from llm_reinforce.config import Config
from llm_reinforce.console.messages import terminal_console
from llm_reinforce.errors import InputError

if TYPE_CHECKING:
    from llm_reinforce.episodes import Episode
    from llm_reinforce.runs import RunDirectory
    from llm_reinforce.training import ReinforceTrainer

NUM_PROBLEMS, NUM_EPISODES = 2, 2  # number of sampled problems, and of episodes per problem


def show_dry_run(recipe: Config, directory: "RunDirectory", *, resume: bool, overwrite: bool) -> None:
    """Load everything that the run needs, sample a few episodes, and print a summary of the run.

    Raises:
        InputError: if the run would be refused, because a reward function fails or the output directory
            contains files that it must not replace.
    """
    import torch

    from llm_reinforce.episodes import collect_episodes
    from llm_reinforce.training import ReinforceTrainer

    trainer = ReinforceTrainer(config=recipe)
    batch = collect_episodes(
        trainer.policy,
        trainer.problems[:NUM_PROBLEMS],
        trainer.rewards,
        episodes_per_problem=NUM_EPISODES,
        max_new_tokens=recipe.sampling.max_new_tokens,
        temperature=recipe.sampling.temperature,
        generator=torch.Generator(trainer.policy.device).manual_seed(recipe.seed),
    )
    errors = _errors(trainer.loop.try_rewards)
    if not is_main_process():
        return
    console = terminal_console()
    console.print(_summary(recipe, trainer, str(directory.path), float(batch.lengths.float().mean())))
    _print_episodes(console, batch.episodes)
    console.print("\ndry run: nothing was trained, and no files were written")
    errors += _errors(lambda: directory.check(resume=resume, overwrite=overwrite))
    if errors:
        raise InputError("\n".join(errors))


def _errors(check: Callable[[], None]) -> list[str]:
    try:
        check()
    except InputError as error:
        return [str(error)]
    return []


def _summary(recipe: Config, trainer: "ReinforceTrainer", output_dir: str, mean_length: float) -> Table:
    """Return a summary of the run; `mean_length` is the mean number of actions of the sampled episodes."""
    from llm_reinforce.console.text import visible
    from llm_reinforce.policy import describe_policy
    from llm_reinforce.runs import TrainState
    from llm_reinforce.training.budget import expected_updates

    shape = recipe.reinforce
    num_episodes = shape.problems_per_update * shape.episodes_per_problem
    updates = f"{recipe.training.num_updates:,}"
    if recipe.training.num_tokens is not None:
        first = TrainState(1, num_tokens=max(1, round(mean_length * num_episodes)))
        expected = expected_updates(recipe.training, first)
        limits = f"{recipe.training.num_tokens:,} sampled tokens or {recipe.training.num_updates:,} updates"
        updates = f"about {expected:,} (stops after {limits})"
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in (
        ("policy", f"{recipe.policy.name_or_path or 'random weights'}: {describe_policy(trainer.policy)}"),
        ("device", str(trainer.policy.device)),
        ("problems", f"{len(trainer.problems):,} for training, {len(trainer.held_out):,} held out"),
        ("rewards", ", ".join(f"{reward.name} x {reward.weight:g}" for reward in trainer.rewards)),
        ("updates", updates),
        (
            "per update",
            f"{num_episodes:,} episodes: {shape.problems_per_update} problems x {shape.episodes_per_problem}",
        ),
        ("output_dir", output_dir),
    ):
        table.add_row(name, Text(visible(value)))
    return table


def _print_episodes(console: Console, episodes: "Sequence[Episode]") -> None:
    from llm_reinforce.console.text import visible

    for episode in episodes:
        verdict = "right" if episode.verdict.correct else f"wrong ({episode.verdict.reason})"
        parts = ", ".join(f"{name} {value}" for name, value in episode.rewards.items())
        reward = "unscored" if episode.reward is None else f"reward {episode.reward:g}"
        for text, style in (
            (f"\n{visible(episode.problem.prompt, 400)}", "bold"),
            (f"  {visible(episode.completion.text, 400)}", ""),
            (f"  {verdict} · {reward} ({visible(episode.failure or parts)})", "dim"),
        ):
            console.print(Text(text, style=style), soft_wrap=True)
