"""Order of the training problems: each epoch is shuffled again, from the seed."""

import random


class ProblemOrder:
    """Map a position in the sequence of problems over all epochs to the index of a training problem.

    Each epoch is a permutation of all problems. It depends on the seed and the number of the epoch only, so
    a resumed run continues with the same problems as an uninterrupted one.
    """

    def __init__(self, num_problems: int, seed: int) -> None:
        self.num_problems, self.seed = num_problems, seed
        self._epoch = -1
        self._permutation: list[int] = []

    def index(self, position: int) -> int:
        """Return the index of the problem at a position; positions count from 0 over all epochs."""
        epoch, place = divmod(position, self.num_problems)
        if epoch != self._epoch:
            self._permutation = list(range(self.num_problems))
            random.Random(f"epoch {self.seed} {epoch}").shuffle(self._permutation)
            self._epoch = epoch
        return self._permutation[place]
