"""CUDA graph of a sampling step.

In a sampling step of a small model, a GPU computes faster than the CPU can start operations. A CUDA graph
starts all operations of a step at once. A replay of the graph reads and writes the same memory as the
recorded operations.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class StepGraph:
    """A function that is recorded as a CUDA graph and replayed.

    It is recorded again after a tensor has changed its shape or its address in memory.
    """

    def __init__(self) -> None:
        self.places: Sequence[object] = []
        self.replay: Callable[[], None] | None = None
        self.inputs = self.outputs = torch.empty(0)

    def __call__(
        self, function: Callable[[Tensor], Tensor], inputs: Tensor, state: Sequence[Tensor]
    ) -> Tensor:
        """Return the output of `function`, in memory that the next call may overwrite.

        The first call runs the function without a graph, so that libraries can allocate their buffers. The
        second call records the graph. Both steps are repeated after a shape or an address has changed.

        Args:
            function: the function, which is the same in all calls. It must not wait for the GPU. It must not
                use Python numbers that change between calls, because the graph repeats the recorded values.
            inputs: argument of the function.
            state: further tensors that the function reads or changes and that may be replaced between calls.
        """
        places = [inputs.shape, *((tensor.data_ptr(), tensor.shape) for tensor in state)]
        if places != self.places:
            self.places, self.replay = places, None
            self.inputs = inputs.clone()
            return function(inputs)
        self.inputs.copy_(inputs)
        if self.replay is None:
            self.replay, self.outputs = record(function, self.inputs)
        self.replay()
        return self.outputs


def record(function: Callable[[Tensor], Tensor], inputs: Tensor) -> tuple[Callable[[], None], Tensor]:
    """Record the operations of `function` without executing them.

    Returns:
        a function that executes the operations, and the tensor to which they write the output.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = function(inputs)
    return graph.replay, outputs
