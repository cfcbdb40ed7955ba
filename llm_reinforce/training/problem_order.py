"""The order in which training problems are drawn: shuffled anew for each epoch, from the seed."""

import random


class ProblemOrder:
    """Maps a position in the endless sequence of drawn problems to the index of a training problem.

    Each epoch is a permutation of all problems that depends on the seed and the epoch alone, so that a
    resumed run goes on with the problems that come next.
    """

    def __init__(self, num_problems: int, seed: int) -> None:
        self.num_problems, self.seed = num_problems, seed
        self._epoch = -1
        self._permutation: list[int] = []

    def index(self, position: int) -> int:
        """Return the index of the problem at this position, counted from 0 over all epochs."""
        epoch, place = divmod(position, self.num_problems)
        if epoch != self._epoch:
            self._permutation = list(range(self.num_problems))
            random.Random(f"epoch {self.seed} {epoch}").shuffle(self._permutation)
            self._epoch = epoch
        return self._permutation[place]
