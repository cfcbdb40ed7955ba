"""Sketches are linear and unbiased, and their error is within the stated bound for difficult vectors."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm_reinforce.analysis.sketch import Sketch

SIZE, NUM_SEEDS = 16, 250


def vectors(num_numbers: int) -> dict[str, Tensor]:
    """Return vectors that may be difficult for a sketch of SIZE, by name."""
    apart = torch.zeros(num_numbers, dtype=torch.float64)
    apart[::SIZE] = 1.0
    spike = torch.zeros(num_numbers, dtype=torch.float64)
    spike[num_numbers // 2] = 3.0
    two_blocks = torch.zeros(num_numbers, dtype=torch.float64)
    two_blocks[0], two_blocks[-1] = 1.0, 1.0
    generator = torch.Generator().manual_seed(0)
    return {
        "numbers a whole size apart": apart,
        "a spike": spike,
        "first and last": two_blocks,
        "equal": torch.ones(num_numbers, dtype=torch.float64),
        "alternating": torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(num_numbers)[:num_numbers],
        "normal": torch.randn(num_numbers, generator=generator, dtype=torch.float64),
    }


def test_sketch_by_hand() -> None:
    # blocks 1 -2 3 | 4 5 -6 | 7, rotated by 0, 1 and 2:  1 -2 3  +  -6 4 5  +  0 0 7
    signs = torch.tensor([1, -1, 1, 1, 1, -1, 1], dtype=torch.int8)
    sketch = Sketch(3, signs, (0, 1, 2))
    assert sketch(torch.arange(1.0, 8.0)).tolist() == [-5.0, 2.0, 15.0]


def test_incomplete_last_block_wraps_around() -> None:
    # the incomplete last block, 4 5, rotated by 2: 4 is added to the last component, 5 to the first
    sketch = Sketch(3, torch.ones(5, dtype=torch.int8), (0, 2))
    assert sketch(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])).tolist() == [6.0, 2.0, 7.0]


@given(st.integers(1, 50), st.integers(1, 20), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_sketch_is_linear_and_maps_components_to_one_place(num_numbers: int, size: int, seed: int) -> None:
    sketch = Sketch.random(num_numbers, size, seed)
    matrix = torch.stack([sketch(unit) for unit in torch.eye(num_numbers)], dim=1)
    assert (matrix.abs().sum(dim=0) == 1).all()  # one sign per column
    for start in range(0, num_numbers, size):  # no collisions within a block
        assert (matrix[:, start : start + size].abs().sum(dim=1) <= 1).all()
    vector = torch.randn(num_numbers, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(sketch(vector), matrix @ vector, atol=1e-5)


def test_equal_seeds_give_equal_sketches() -> None:
    one, two, three = (Sketch.random(100, 7, seed) for seed in (1, 1, 2))
    assert torch.equal(one.signs, two.signs)
    assert one.shifts == two.shifts
    assert not torch.equal(one.signs, three.signs)


@pytest.mark.parametrize("num_numbers", [10 * SIZE + 5, SIZE + 1])
def test_squared_norms_are_unbiased_with_the_stated_error(num_numbers: int) -> None:
    sketches = [Sketch.random(num_numbers, SIZE, seed) for seed in range(NUM_SEEDS)]
    bound = math.sqrt(2 / SIZE)
    assert sketches[0].relative_error == bound
    for name, vector in vectors(num_numbers).items():
        exact = float(vector @ vector)
        found = np.array([float(short @ short) for short in (sketch(vector) for sketch in sketches)]) / exact
        assert abs(found.mean() - 1) <= 4 * found.std() / math.sqrt(NUM_SEEDS) + 1e-12, name
        # four standard errors of a standard deviation, with a margin for its heavy tail
        assert found.std() <= bound * (1 + 4 * 2 / math.sqrt(NUM_SEEDS)), name


def test_error_equals_the_theoretical_one() -> None:
    # Var ‖Sv‖² = (2/size) (‖v‖⁴ - Σ over blocks of ‖block‖⁴), for ten blocks with one nonzero number each
    vector = vectors(10 * SIZE)["numbers a whole size apart"]
    found = [float((Sketch.random(10 * SIZE, SIZE, seed)(vector) ** 2).sum()) for seed in range(NUM_SEEDS)]
    assert np.std(found) == pytest.approx(math.sqrt(2 / SIZE * (10**2 - 10)), rel=0.2)


def test_inner_products_are_unbiased() -> None:
    every = list(vectors(5 * SIZE + 3).values())
    exact = torch.stack(every) @ torch.stack(every).T
    found = []
    for seed in range(NUM_SEEDS):
        sketch = Sketch.random(5 * SIZE + 3, SIZE, seed)
        short = torch.stack([sketch(vector) for vector in every])
        found.append(short @ short.T)
    means, errors = torch.stack(found).mean(dim=0), torch.stack(found).std(dim=0) / math.sqrt(NUM_SEEDS)
    assert ((means - exact).abs() <= 4.5 * errors + 1e-9).all()


@pytest.mark.parametrize("is_one_sided", [True, False])
def test_total_variance_of_sketched_vectors(is_one_sided: bool) -> None:
    num_numbers = 6 * SIZE + 5
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(10, num_numbers, generator=generator, dtype=torch.float64)
    if is_one_sided:  # the worst case: all vectors vary along one direction, so no errors average out
        sample = sample[:, :1] * vectors(num_numbers)["numbers a whole size apart"]
    exact = float(sample.var(dim=0).sum())
    found = np.array(
        [
            float(torch.stack([sketch(vector) for vector in sample]).var(dim=0).sum()) / exact
            for sketch in (Sketch.random(num_numbers, SIZE, seed) for seed in range(NUM_SEEDS))
        ]
    )
    assert abs(found.mean() - 1) <= 4 * found.std() / math.sqrt(NUM_SEEDS)
    assert found.std() <= math.sqrt(2 / SIZE) * 1.2


def test_vector_within_one_block_keeps_its_norm() -> None:
    vector = torch.randn(SIZE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    short = Sketch.random(SIZE, SIZE, 0)(vector)
    assert float(short @ short) == pytest.approx(float(vector @ vector))


def test_thousands_of_blocks_of_bfloat16_are_summed_in_float32() -> None:
    # each component is a sum of 2,048 ones; in bfloat16, which has 8 bits of precision, 256 + 1 = 256
    sketch = Sketch(4, torch.ones(8192, dtype=torch.int8), (0,) * 2048)
    assert sketch(torch.ones(8192, dtype=torch.bfloat16)).tolist() == [2048.0] * 4
