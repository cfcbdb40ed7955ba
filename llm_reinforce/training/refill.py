"""Replacement of problems whose episodes are all correct or all wrong."""

from dataclasses import dataclass, replace

from llm_reinforce.config import ReinforceConfig
from llm_reinforce.episodes import Episode, EpisodeBatch


@dataclass(frozen=True, slots=True)
class Refills:
    """Counts of the problems that were sampled to replace other problems of a batch.

    Attributes:
        num_batches: number of times that replacements were sampled.
        num_problems: number of problems sampled as replacements.
        num_tokens: number of tokens sampled for the replacements.
    """

    num_batches: int = 0
    num_problems: int = 0
    num_tokens: int = 0

    def after(self, found: EpisodeBatch, num_problems: int) -> "Refills":
        """Return the counts after another batch of replacements was sampled.

        Args:
            found: episodes of the replacements.
            num_problems: number of problems sampled as replacements.
        """
        return Refills(
            self.num_batches + 1, self.num_problems + num_problems, self.num_tokens + found.num_tokens
        )

    def metrics(self, batch: EpisodeBatch, settings: ReinforceConfig) -> dict[str, float]:
        """Return the metrics of the refills, by name.

        Args:
            batch: the batch after all replacements.
            settings: settings of the loss and of the batch.
        """
        num_dull = len(groups_with_one_accuracy(batch, settings))
        return {
            "refill/num_batches": self.num_batches,
            "refill/num_problems": self.num_problems,
            "refill/num_tokens": self.num_tokens,
            "refill/frac_one_accuracy": num_dull / settings.problems_per_update,
        }


def groups_with_one_accuracy(batch: EpisodeBatch, settings: ReinforceConfig) -> list[int]:
    """Return the groups whose episodes are all correct or all wrong, in order.

    Only episodes in the loss count. Unscored episodes are not in the loss. With `truncated: mask`, truncated
    episodes are not in the loss either. A group without any episode in the loss is also returned.

    The verdicts are compared, not the rewards. With a shaped reward, such as one for short answers, the
    episodes of a problem nearly always have different rewards, even if all of them are correct. A policy that
    learned only from these differences would lose its ability to solve problems.
    """
    verdicts: dict[int, set[bool]] = {}
    for episode in batch.episodes:
        of_group = verdicts.setdefault(episode.group, set())
        is_masked = settings.truncated == "mask" and not episode.completion.terminated
        if episode.verdict is not None and episode.reward is not None and not is_masked:
            of_group.add(episode.verdict.correct)
    return sorted(group for group, found in verdicts.items() if len(found) < 2)


def with_replacements(batch: EpisodeBatch, found: EpisodeBatch, settings: ReinforceConfig) -> EpisodeBatch:
    """Replace groups of `batch` whose episodes are all correct or all wrong with groups of `found`.

    Only those groups of `found` are used that have both correct and wrong episodes. If there are too few of
    them, some groups of `batch` are not replaced.
    """
    old, dull = groups_with_one_accuracy(batch, settings), set(groups_with_one_accuracy(found, settings))
    new = [group for group in dict.fromkeys(found.groups.tolist()) if group not in dull]
    # maps each used group of `found` to the group of `batch` that it replaces
    place_of = dict(zip(new, old, strict=False))
    replaced = set(place_of.values())

    def merged(before: tuple[Episode, ...], after: tuple[Episode, ...]) -> tuple[Episode, ...]:
        kept = [episode for episode in before if episode.group not in replaced]
        moved = [
            replace(episode, group=place_of[episode.group]) for episode in after if episode.group in place_of
        ]
        return tuple(sorted([*kept, *moved], key=lambda episode: episode.group))

    return EpisodeBatch.of(
        merged(tuple(batch.episodes), tuple(found.episodes)),
        batch.logged,
        merged(tuple(batch.greedy), tuple(found.greedy)),
    )
