"""Process-wide random generators are seeded for an update, and restored afterwards."""

import random

import numpy as np
import torch

from llm_reinforce.training.random_generators import seeded


def test_random_generators_are_seeded_and_restored() -> None:
    def numbers() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with seeded(7):
        inside = numbers()
    after = numbers()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert numbers() == after
    with seeded(7):
        assert numbers() == inside
