"""Random projections that shorten vectors and preserve inner products in expectation."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sketch:
    """A random linear map to `size` numbers: random signs, then the vector is folded.

        (S v)_j = Σ_{i lands on j} σ_i v_i,   E⟨S v, S w⟩ = ⟨v, w⟩

    Every block of `size` numbers is rotated by a random shift before the blocks are added, so that two
    numbers collide with a probability of at most 1/size. For a fixed v the squared length ‖S v‖² then has a
    relative standard deviation of at most √(2/size), and so has the total variance of vectors that are all
    sketched by one S. This is a count sketch (Charikar, Chen & Farach-Colton 2002) without an index per
    number.

    Attributes:
        signs: 1 or -1 for each number of the vector, int8.
        shifts: the rotation of each block.
    """

    size: int
    signs: Int[Tensor, " number"]
    shifts: tuple[int, ...]

    @classmethod
    def random(cls, num_numbers: int, size: int, seed: int) -> "Sketch":
        """Return a random sketch of vectors of `num_numbers`."""
        generator = torch.Generator().manual_seed(seed)
        signs = torch.randint(2, (num_numbers,), generator=generator, dtype=torch.int8) * 2 - 1
        num_blocks = -(-num_numbers // size)
        shifts = torch.randint(size, (num_blocks,), generator=generator).tolist()
        return cls(size, signs, tuple(shifts))

    @property
    def relative_error(self) -> float:
        """The upper bound √(2/size) of a squared length's relative standard deviation."""
        return math.sqrt(2 / self.size)

    def __call__(self, vector: Float[Tensor, " number"]) -> Float[Tensor, " size"]:
        """Return S v, in float32 or wider, since thousands of blocks are added."""
        dtype = torch.promote_types(vector.dtype, torch.float32)
        signed = vector.to(dtype) * self.signs.to(vector.device)
        folded = signed.new_zeros(self.size)
        for start, shift in zip(range(0, len(vector), self.size), self.shifts, strict=True):
            block = signed[start : start + self.size]
            before = min(len(block), self.size - shift)  # the part that does not wrap around
            folded[shift : shift + before] += block[:before]
            folded[: len(block) - before] += block[before:]
        return folded
