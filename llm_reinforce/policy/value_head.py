"""A learned baseline V(s_t): a small network that predicts returns from hidden states of the policy.

    features = action_features(policy.model, prompts, completions, pad_token_id=policy.pad_token_id)
    head = ValueHead(features.shape[-1], hidden_size=128, seed=0)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
    fit_values(head, optimizer, features, returns, mask, num_steps=8)
    values = predict_values(head, other_features, other_mask)

No gradient flows into the policy. To keep the policy gradient unbiased, predict the values of a batch before
the value head is fitted to the returns of this batch.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from llm_reinforce.policy.drawing import widest_float

MAX_GRAD_NORM = 1.0  # norm to which gradients are clipped, so that a large return does not dominate the fit


class ValueHead(nn.Module):
    """Network with one hidden layer that predicts the value of a state from the policy's hidden state h.

        V(s) = w · tanh(W n(h) + c) + d

    Here n normalizes h to mean 0 and variance 1. The weights are float32. The output layer is initialized
    with zeros, so that V is 0 for all states at first, like the baseline `none`.

    Args:
        num_features: width of the policy's hidden states.
        hidden_size: width of the hidden layer.
        seed: seed of the weights of the hidden layer.
    """

    def __init__(self, num_features: int, *, hidden_size: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.hidden = nn.Linear(num_features, hidden_size)
            self.output = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, features: Float[Tensor, "*state feature"]) -> Float[Tensor, "*state"]:
        """Return V of each state. Gradients flow into the head, but not into the features."""
        features = features.detach().to(self.hidden.weight.dtype)
        normal = nn.functional.layer_norm(features, features.shape[-1:])
        values: Tensor = self.output(self.hidden(normal).tanh())
        return values.squeeze(-1)


@torch.no_grad()
def predict_values(
    head: ValueHead,
    features: Float[Tensor, "episode token feature"],
    mask: Bool[Tensor, "episode token"],
) -> Float[Tensor, "episode token"]:
    """Return V(s_t) for the state of each action, in float32. The value is zero where `mask` is False."""
    values: Tensor = head(features)
    return values.masked_fill(~mask.to(values.device), 0.0)


def fit_values(
    head: ValueHead,
    optimizer: torch.optim.Optimizer,
    features: Float[Tensor, "episode token feature"],
    returns: Float[Tensor, "episode token"],
    mask: Bool[Tensor, "episode token"],
    *,
    num_steps: int,
    total: Callable[[Tensor], Tensor] = lambda numbers: numbers,
) -> bool:
    """Fit V to returns by gradient descent on the mean squared error over all actions of scored episodes.

        L = (1/N) Σ_b Σ_t (V(s_t) - g_t)²

    Args:
        head: the value head.
        optimizer: optimizer of the head's parameters.
        features: hidden vector of the policy's model at the state of each action.
        returns: return g_t of each action.
        mask: True for the actions of scored episodes. N is the number of these actions in all processes.
        num_steps: number of optimizer steps.
        total: function that sums a tensor over all processes, so that all processes take the same steps.

    Returns:
        True if all steps were taken, or if no episode is scored. False if the loss or the gradient of a step
        is not finite. In this case, this step and the following steps are skipped, without changing the
        weights or the optimizer.
    """
    mask = mask.to(features.device)
    inputs, targets = features[mask], returns.to(features.device, torch.float32)[mask]
    for _ in range(num_steps):
        squares = (head(inputs) - targets).square().sum()
        gradients = torch.autograd.grad(squares, list(head.parameters()))
        count = squares.new_tensor(float(len(targets)))
        # one vector, so that processes communicate once per step
        sums = total(
            torch.cat([torch.stack([count, squares.detach()]), *(part.flatten() for part in gradients)])
        )
        if sums[0] == 0:
            return True
        loss, gradient = sums[1] / sums[0], sums[2:] / sums[0]
        norm = gradient.norm()
        if not (norm.isfinite() and loss.isfinite()):
            return False
        gradient = gradient / (norm / MAX_GRAD_NORM).clamp(min=1.0)
        parts = gradient.tensor_split(_ends(gradients))
        for parameter, part in zip(head.parameters(), parts, strict=True):
            parameter.grad = part.view_as(parameter)
        optimizer.step()
    return True


def _ends(parts: Sequence[Tensor]) -> list[int]:
    """Return the end of each part, except the last, in the concatenation of the flattened parts."""
    return list(accumulate(part.numel() for part in parts))[:-1]


def explained_variance(
    values: Float[Tensor, "episode token"],
    returns: Float[Tensor, "episode token"],
    mask: Bool[Tensor, "episode token"],
) -> float | None:
    """Return the fraction of the variance of the returns that V explains, over the actions in `mask`.

        1 - Var(g - V) / Var(g)

    The result is 1 if V is perfect, 0 if V predicts no better than a constant, and negative if V predicts
    worse than a constant. The result is None if the returns have no variance.
    """
    dtype = widest_float(returns.device)
    g = returns[mask].to(dtype)
    if len(g) == 0 or not (variance := g.var(correction=0)) > 0:
        return None
    return float(1.0 - (g - values[mask].to(dtype)).var(correction=0) / variance)
