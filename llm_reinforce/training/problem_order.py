"""Order of the training problems, which are shuffled again at the start of every epoch."""

import random


class ProblemOrder:
    """Compute which training problem is at a position in the sequence of problems over all epochs.

    Each epoch is a permutation of all problems that depends only on the seed of the run and the number of the
    epoch. A resumed run therefore continues with the same problems as an uninterrupted one.
    """

    def __init__(self, num_problems: int, seed: int) -> None:
        self.num_problems, self.seed = num_problems, seed
        self._epoch = -1
        self._permutation: list[int] = []

    def index(self, position: int) -> int:
        """Return the index of the problem at a position, which is counted from 0 over all epochs."""
        epoch, place = divmod(position, self.num_problems)
        if epoch != self._epoch:
            self._permutation = list(range(self.num_problems))
            random.Random(f"epoch {self.seed} {epoch}").shuffle(self._permutation)
            self._epoch = epoch
        return self._permutation[place]
