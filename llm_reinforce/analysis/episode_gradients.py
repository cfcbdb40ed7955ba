"""Contribution of each episode to the policy gradient, for each estimator and with a fixed policy.

Every estimator is the sum of A_t ∇log π(a_t|s_t) over all episodes and their actions t. Estimators differ
only in the weights A_t. One backward pass per estimator and episode would be slow, so backward passes are
shared. For one episode, each estimator has a vector of weights, with one weight per action. The vectors of an
orthonormal basis of the space that these vectors span are called *directions*. One backward pass is made for
each direction, and the gradient of each estimator is a linear combination of the results. If the weights of
all estimators are constant over the episode, there is only one direction. With step rewards or a learned
baseline, there are a few.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from llm_reinforce.analysis.gradient_statistics import Gram
from llm_reinforce.analysis.sketch import Sketch
from llm_reinforce.episodes import Episode
from llm_reinforce.errors import InputError
from llm_reinforce.policy import LanguagePolicy, token_log_probs, widest_float

NEGLIGIBLE = 1e-5  # relative size below which a number is treated as a float32 rounding error
COLUMNS = 1 << 12  # number of gradient components that are converted to float64 at the same time


@dataclass(frozen=True, slots=True)
class EpisodeGradients:
    """The gradient of every episode for every estimator, stored as a linear combination of rows.

    Attributes:
        rows: for each episode, one gradient per direction; see the docstring of the module. Each row is a
            complete gradient, or a sketch (random projection) of it.
        coefficients: coefficient of each row in the gradient of each estimator.
        episode_of: for each row, the index of its episode.
    """

    rows: Sequence[Float[Tensor, " number"]]
    coefficients: Float[Tensor, "estimator row"]
    episode_of: Int[Tensor, " row"]

    def gram(self, estimator: int, other: int, groups: Sequence[int]) -> Gram:
        """Return the inner products ⟨h_k, h'_l⟩ of the groups' gradients computed by two estimators.

        A group consists of the episodes of one problem. The gradient of a group is the sum of the gradients
        of its episodes. For group k, h_k is the gradient by the first estimator, and h'_k is the gradient by
        the second estimator. The products are computed in float64, because differences of nearly equal
        gradients would be lost in float32.

        Args:
            estimator, other: indices of the two estimators.
            groups: for each episode, the number of its group. Groups are numbered from 0 without gaps.
        """
        num_groups = max(groups) + 1
        total = torch.zeros(num_groups, num_groups, dtype=torch.float64)
        group_of = torch.tensor(groups)[self.episode_of]
        for start in range(0, len(self.rows[0]) if self.rows else 0, COLUMNS):
            part = torch.stack([row[start : start + COLUMNS] for row in self.rows]).cpu().double()
            one, two = (
                part.new_zeros(num_groups, part.shape[1]).index_add_(
                    0, group_of, self.coefficients[index, :, None] * part
                )
                for index in (estimator, other)
            )
            total += one @ two.T
        return total.numpy()

    def of_episodes(self, estimator: int, other: int, num_episodes: int) -> Float[Tensor, " episode"]:
        """Return, for each episode, the inner product of its gradients computed by the two estimators."""
        products = torch.zeros(num_episodes, dtype=torch.float64)
        for episode in set(self.episode_of.tolist()):
            own = (self.episode_of == episode).nonzero().flatten()
            rows = torch.stack([self.rows[row] for row in own.tolist()]).cpu().double()
            one, two = (self.coefficients[index, own] @ rows for index in (estimator, other))
            products[episode] = one @ two
        return products


def episode_gradients(
    policy: LanguagePolicy,
    episodes: Sequence[Episode],
    weights: Float[Tensor, "estimator episode token"],
    *,
    temperature: float = 1.0,
    sketch: Sketch | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> EpisodeGradients:
    """Compute the gradient Σ_t A_t ∇log π(a_t|s_t) of every episode by every estimator.

    The parameters of the policy are not changed.

    Args:
        policy: the policy.
        episodes: the episodes.
        weights: for each estimator, the weight A_t of each action. Weights at padding are ignored.
        temperature: temperature with which the episodes were sampled.
        sketch: random projection that shortens each gradient; None: keep complete gradients, with one number
            per parameter.
        progress: function that is called with the number of completed episodes.

    Raises:
        InputError: if a gradient is not finite.
    """
    parameters = [parameter for parameter in policy.model.parameters() if parameter.requires_grad]
    rows: list[Tensor] = []
    coefficients = [torch.zeros(len(weights), 0, dtype=torch.float64)]
    episode_of: list[int] = []
    for number, episode in enumerate(episodes):
        of_episode = weights[:, number, : len(episode.completion.token_ids)].double()
        directions = spanned(of_episode)
        if len(directions):
            log_probs = token_log_probs(
                policy.model,
                [episode.prompt_ids],
                [episode.completion.token_ids],
                pad_token_id=policy.pad_token_id,
                temperature=temperature,
            ).log_probs[0]
            for last, direction in enumerate(directions, start=1 - len(directions)):
                row = _gradient((direction.to(log_probs) * log_probs).sum(), parameters, keep=last < 0)
                if not row.isfinite().all():
                    raise InputError(
                        f"the gradient of the completion {episode.completion.text!r} is not finite; measure "
                        "another policy, or set policy.dtype to float32"
                    )
                rows.append(row if sketch is None else sketch(row))
            coefficients.append(of_episode @ directions.T)
            episode_of += [number] * len(directions)
        progress(number + 1)
    return EpisodeGradients(rows, torch.cat(coefficients, dim=1), torch.tensor(episode_of, dtype=torch.long))


def squared_log_prob_gradients(
    policy: LanguagePolicy, episodes: Sequence[Episode], progress: Callable[[int], None] = lambda done: None
) -> Float[Tensor, "episode token"]:
    """Return ‖∇log π(a_t|s_t)‖² for every action, and 0 at padding. One backward pass is made per action."""
    parameters = [parameter for parameter in policy.model.parameters() if parameter.requires_grad]
    width = max(len(episode.completion.token_ids) for episode in episodes)
    squares = torch.zeros(len(episodes), width, dtype=torch.float64)
    for number, episode in enumerate(episodes):
        token_ids = episode.completion.token_ids
        log_probs = token_log_probs(
            policy.model, [episode.prompt_ids], [token_ids], pad_token_id=policy.pad_token_id
        ).log_probs[0]
        for t in range(len(token_ids)):
            gradient = _gradient(log_probs[t], parameters, keep=t < len(token_ids) - 1)
            squares[number, t] = gradient.to(widest_float(gradient.device)).square().sum()
        progress(number + 1)
    return squares


def spanned(weights: Float[Tensor, "estimator token"]) -> Float[Tensor, "direction token"]:
    """Return an orthonormal basis of the space that the rows of `weights` span; empty if all are zero.

    Each row contains the weights of one estimator. The rows are normalized first, because the weights of two
    estimators can differ by a factor of a million.
    """
    directions: Tensor
    _, lengths, directions = torch.linalg.svd(torch.nn.functional.normalize(weights), full_matrices=False)
    return directions[lengths > NEGLIGIBLE * lengths.max().clamp(min=1e-300)]


def _gradient(value: Tensor, parameters: Sequence[nn.Parameter], keep: bool) -> Float[Tensor, " parameter"]:
    parts = torch.autograd.grad(value, parameters, retain_graph=keep, materialize_grads=True)
    return torch.cat([part.flatten() for part in parts])
