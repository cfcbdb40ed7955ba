"""Long vectors made short, so that inner products stay what they were on average."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sketch:
    """A random linear map from many numbers to `size`: signs are thrown, and the vector is folded up.

        (S v)_j = Σ_{i lands on j} σ_i v_i,   E⟨S v, S w⟩ = ⟨v, w⟩

    Every block of `size` numbers is turned by a random shift before it is added to the others, so that two
    numbers meet with a probability of at most 1/size. For a fixed v the squared length ‖S v‖² then has a
    relative standard deviation of at most √(2/size), and so has the total variance of vectors that are all
    sketched by one S. This is a count sketch (Charikar, Chen & Farach-Colton 2002) that needs no index a
    number.

    Attributes:
        signs: 1 or -1 for each number of the vector, int8.
        shifts: how far each block is turned.
    """

    size: int
    signs: Int[Tensor, " number"]
    shifts: tuple[int, ...]

    @classmethod
    def random(cls, num_numbers: int, size: int, seed: int) -> "Sketch":
        """A sketch of vectors of `num_numbers`."""
        generator = torch.Generator().manual_seed(seed)
        signs = torch.randint(2, (num_numbers,), generator=generator, dtype=torch.int8) * 2 - 1
        num_blocks = -(-num_numbers // size)
        shifts = torch.randint(size, (num_blocks,), generator=generator).tolist()
        return cls(size, signs, tuple(shifts))

    @property
    def relative_error(self) -> float:
        """√(2/size): the most that the relative standard deviation of a squared length can be."""
        return math.sqrt(2 / self.size)

    def __call__(self, vector: Float[Tensor, " number"]) -> Float[Tensor, " size"]:
        """S v; in float32 at least, since thousands of blocks are summed up."""
        dtype = torch.promote_types(vector.dtype, torch.float32)
        signed = vector.to(dtype) * self.signs.to(vector.device)
        folded = signed.new_zeros(self.size)
        for start, shift in zip(range(0, len(vector), self.size), self.shifts, strict=True):
            block = signed[start : start + self.size]
            before = min(len(block), self.size - shift)  # what isn't carried past the end
            folded[shift : shift + before] += block[:before]
            folded[: len(block) - before] += block[before:]
        return folded
