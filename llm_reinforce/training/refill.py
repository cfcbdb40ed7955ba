"""Replacement of problems whose episodes all have the same accuracy, from which a policy learns nothing."""

from dataclasses import dataclass, replace

from llm_reinforce.episodes import Episode, EpisodeBatch


@dataclass(frozen=True, slots=True)
class Refills:
    """Counts of the problems that were sampled to replace others.

    Attributes:
        num_batches: number of times that problems were replaced.
        num_problems: number of problems sampled as replacements.
        num_tokens: number of tokens sampled for them.
    """

    num_batches: int = 0
    num_problems: int = 0
    num_tokens: int = 0

    def after(self, found: EpisodeBatch, num_problems: int) -> "Refills":
        """Return the counts after one more batch of replacements."""
        return Refills(
            self.num_batches + 1, self.num_problems + num_problems, self.num_tokens + found.num_tokens
        )

    def metrics(self, batch: EpisodeBatch, num_problems: int) -> dict[str, float]:
        """Return the metrics of the refills, by name.

        Args:
            batch: the batch after all replacements.
            num_problems: number of its problems.
        """
        return {
            "refill/num_batches": self.num_batches,
            "refill/num_problems": self.num_problems,
            "refill/num_tokens": self.num_tokens,
            "refill/frac_one_accuracy": len(groups_with_one_accuracy(batch)) / num_problems,
        }


def groups_with_one_accuracy(batch: EpisodeBatch) -> list[int]:
    """Return the groups whose episodes are all correct or all wrong, in order.

    The verdicts count, not the rewards. With a shaped reward, episodes of a problem that is always solved
    nearly always differ, and a policy that learned only from their differences would be destroyed.
    """
    verdicts: dict[int, set[bool]] = {}
    for episode in batch.episodes:
        if episode.verdict is not None:
            verdicts.setdefault(episode.group, set()).add(episode.verdict.correct)
    return sorted(group for group, found in verdicts.items() if len(found) == 1)


def with_replacements(batch: EpisodeBatch, found: EpisodeBatch) -> EpisodeBatch:
    """Replace the groups of a batch that have one accuracy by groups of another batch that have several."""
    old, dull = groups_with_one_accuracy(batch), set(groups_with_one_accuracy(found))
    new = [group for group in dict.fromkeys(found.groups.tolist()) if group not in dull]
    place_of = dict(zip(new, old, strict=False))  # from groups of `found` to groups of `batch`
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
