"""Random projections that shorten vectors. They preserve inner products in expectation."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sketch:
    """Random linear map S from vectors to shorter vectors with `size` components.

        (S v)_j = Σ_{i mapped to j} σ_i v_i,   E⟨S v, S w⟩ = ⟨v, w⟩

    Every component of the vector is multiplied by a random sign σ_i. The vector is then divided into blocks
    of `size` components, every block is rotated by a random shift, and the blocks are added. Therefore, the
    probability that two given components of the vector are added to each other is at most 1/size.

    For a fixed v, the relative standard deviation of the squared norm ‖S v‖² is at most √(2/size). The same
    bound holds for the total variance of vectors that are all mapped by the same S. The map is a count sketch
    (Charikar, Chen & Farach-Colton 2002), but it does not store an index for each component.

    Attributes:
        size: number of components of the result.
        signs: sign σ_i of each component of the vector, 1 or -1, as int8.
        shifts: number of positions by which each block is rotated.
    """

    size: int
    signs: Int[Tensor, " number"]
    shifts: tuple[int, ...]

    @classmethod
    def random(cls, num_numbers: int, size: int, seed: int) -> "Sketch":
        """Return a random sketch of vectors with `num_numbers` components."""
        generator = torch.Generator().manual_seed(seed)
        signs = torch.randint(2, (num_numbers,), generator=generator, dtype=torch.int8) * 2 - 1
        num_blocks = -(-num_numbers // size)
        shifts = torch.randint(size, (num_blocks,), generator=generator).tolist()
        return cls(size, signs, tuple(shifts))

    @property
    def relative_error(self) -> float:
        """Upper bound √(2/size) on the relative standard deviation of a squared norm."""
        return math.sqrt(2 / self.size)

    def __call__(self, vector: Float[Tensor, " number"]) -> Float[Tensor, " size"]:
        """Return S v, computed in float32 or a wider type, because thousands of blocks are added."""
        dtype = torch.promote_types(vector.dtype, torch.float32)
        signed = vector.to(dtype) * self.signs.to(vector.device)
        folded = signed.new_zeros(self.size)
        for start, shift in zip(range(0, len(vector), self.size), self.shifts, strict=True):
            block = signed[start : start + self.size]
            before = min(len(block), self.size - shift)  # length of the part that does not wrap around
            folded[shift : shift + before] += block[:before]
            folded[: len(block) - before] += block[before:]
        return folded
