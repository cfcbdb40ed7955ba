"""Sample completions token by token, until an end token is sampled or the maximum length is reached."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from llm_reinforce.errors import InputError
from llm_reinforce.policy.batches import Batch, SeparateBatches, WholeBatch
from llm_reinforce.policy.drawing import draw, widest_float
from llm_reinforce.policy.embedding import check_token_ids
from llm_reinforce.policy.fast_path.activations import Activations
from llm_reinforce.policy.fast_path.slot_batch import SlotBatch
from llm_reinforce.policy.language_policy import LanguagePolicy, TokenIds, integers
from llm_reinforce.policy.parity_check import fast_model
from llm_reinforce.policy.row_trial import sampling_batching

CHECK_EVERY = {"cpu": 1}
"""Number of sampling steps between two checks for ended completions, by device type. For a device type that
is not listed here, the number is 8. On a GPU, a check has to wait until the computation is finished."""

Uniforms = Callable[[int], Float[Tensor, "completion token"]]
"""Function that returns random numbers in [0, 1) for the completions of one prompt. The argument of the
function is the index of the prompt."""
OnStep = Callable[[int, int], None]  # called with the numbers of ended completions and of sampled tokens


@dataclass(frozen=True, slots=True)
class Completion:
    """The actions of one episode.

    Attributes:
        token_ids: sampled tokens, including the end token if there is one.
        log_probs: log π(a_t | s_t) of each action when it was sampled (behavior_log_probs), in nats.
        entropies: entropy of the distribution of each action, in nats. Empty if a server sampled the
            completion.
        text: the decoded tokens, without the end token. If the prompt ends in an open reasoning block, such
            as `<think>`, the text starts with this part of the prompt.
        terminated: True if the policy sampled an end token. False if the completion was truncated, because it
            reached the maximum number of tokens.
        squared_logit_gradient_norms: ‖∂ log π(a_t | s_t) / ∂z‖² of each action, where z are the logits
            divided by the temperature. Empty if the completion was not sampled by this module.
        opened_reasoning: start of `text` that belongs to the prompt. Empty if the prompt opens no reasoning
            block.
    """

    token_ids: TokenIds
    log_probs: tuple[float, ...]
    entropies: tuple[float, ...]
    text: str
    terminated: bool
    squared_logit_gradient_norms: tuple[float, ...] = ()
    opened_reasoning: str = ""


def sample_completions(
    policy: LanguagePolicy,
    prompts: Sequence[TokenIds],
    *,
    num_completions: int = 1,
    max_new_tokens: int,
    temperature: float = 1.0,
    greedy: bool = False,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    activations: Activations | None = None,
    on_step: OnStep | None = None,
    cuda_graphs: bool = False,
) -> list[Completion]:
    """Sample completions of each prompt from softmax(logits / temperature), without top-k or top-p.

    The samples depend on the generator, the prompts and the policy. They do not depend on the batch size,
    except for rounding.

    Args:
        policy: the policy.
        prompts: token ids of the initial states. None of them may be empty.
        num_completions: number of completions per prompt.
        max_new_tokens: maximum number of tokens of a completion.
        temperature: divisor of the logits.
        greedy: if True, the most likely token is taken instead of a random one. The attribute `log_probs` of
            a completion still contains log-probabilities of the policy at this temperature.
        generator: source of random numbers, on the CPU or on the device of the policy.
        batch_size: maximum number of completions sampled at once. The completions of one prompt are always
            sampled together, even if `num_completions` is larger than this number. None: no limit.
        activations: store for activations that `token_log_probs` reuses. Activations are stored only for
            Llama-like models on a CPU. None: do not store activations.
        on_step: function that is called after each step of the sampler, with the number of completions that
            have ended and the number of sampled tokens. If it raises an exception, the sampling ends.
        cuda_graphs: if True, the forward passes are replayed as CUDA graphs.

    Returns:
        completions in the order of the prompts; the completions of one prompt are adjacent.

    Raises:
        InputError: if CUDA graphs cannot be used; see `check_cuda_graphs`.
    """

    def uniforms(prompt: int) -> Tensor:
        return random_numbers(num_completions, max_new_tokens, generator or policy.device)

    of_prompts = dict(
        stream_completions(
            policy,
            prompts,
            num_completions=num_completions,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            uniforms=None if greedy else uniforms,
            batch_size=batch_size,
            activations=activations,
            on_step=on_step,
            cuda_graphs=cuda_graphs,
        )
    )
    return [completion for prompt in range(len(prompts)) for completion in of_prompts[prompt]]


def check_cuda_graphs(policy: LanguagePolicy) -> None:
    """Raise an InputError unless the sampler can replay the forward passes of the policy as CUDA graphs."""
    if policy.device.type != "cuda":
        raise InputError(
            f"sampling.cuda_graphs needs a GPU with CUDA, but the device is {policy.device.type}; "
            "remove this setting"
        )
    if fast_model(policy.model) is None:
        raise InputError(
            f"sampling.cuda_graphs is not supported for this {type(policy.model).__name__}, because it does "
            "not use the fast path; remove this setting"
        )


def steps_between_checks(device: torch.device) -> int:
    """Return the number of sampling steps between two checks for ended completions; see `CHECK_EVERY`."""
    return CHECK_EVERY.get(device.type, 8)


def random_numbers(
    num_completions: int, max_new_tokens: int, source: torch.Generator | torch.device
) -> Float[Tensor, "completion token"]:
    """Return the random numbers for the completions of one prompt, in [0, 1).

    The numbers are float64 if the device supports this type.

    Args:
        num_completions: number of completions of the prompt.
        max_new_tokens: maximum number of tokens of a completion.
        source: generator of the numbers, or a device, whose default generator is used.
    """
    generator = source if isinstance(source, torch.Generator) else None
    device = source.device if isinstance(source, torch.Generator) else source
    size = (num_completions, max_new_tokens)
    return torch.rand(size, generator=generator, dtype=widest_float(device), device=device)


def stream_completions(
    policy: LanguagePolicy,
    prompts: Sequence[TokenIds],
    *,
    num_completions: int = 1,
    max_new_tokens: int,
    temperature: float = 1.0,
    uniforms: Uniforms | None,
    batch_size: int | None = None,
    activations: Activations | None = None,
    on_step: OnStep | None = None,
    cuda_graphs: bool = False,
) -> Iterator[tuple[int, list[Completion]]]:
    """Sample completions, and yield the completions of a prompt as soon as all of them have ended.

    Prompts are started in the given order. A prompt is computed once for all its completions. On a CPU,
    completions share a row of the batch until their actions differ. When completions have ended, completions
    of the next prompts take their place if the cache of the model allows it. Otherwise, the batch shrinks.

    Args:
        policy: the policy.
        prompts: token ids of the initial states. None of them may be empty.
        num_completions: number of completions per prompt.
        max_new_tokens: maximum number of tokens of a completion.
        temperature: divisor of the logits.
        uniforms: function that returns the random numbers for the completions of a prompt. It is called once
            per prompt, in the order of the prompts. None: take the most likely tokens.
        batch_size: maximum number of completions sampled at once. The completions of one prompt are always
            sampled together, even if `num_completions` is larger than this number. None: no limit.
        activations: store for activations that `token_log_probs` reuses; see `sample_completions`.
        on_step: function that is called after each step of the sampler, with the number of completions that
            have ended and the number of sampled tokens. If it raises an exception, the sampling ends.
        cuda_graphs: if True, the forward passes are replayed as CUDA graphs.

    Yields:
        the index of the prompt, and its completions.

    Raises:
        InputError: if CUDA graphs cannot be used; see `check_cuda_graphs`.
    """
    if cuda_graphs:
        check_cuda_graphs(policy)
    # number of prompts whose completions are sampled at once
    size = max(1, (batch_size or len(prompts) * num_completions) // num_completions)
    model = fast_model(policy.model)
    if model is None or policy.device.type != "cpu":
        activations = None
    per_batch = max(1, len(prompts)) if model is not None else size
    check_token_ids(policy.model, prompts, policy.tokenizer)
    batching = sampling_batching(policy.model, prompts, max_new_tokens) if model is None else None
    num_ended = num_tokens = 0
    for start in range(0, len(prompts), per_batch):
        part = prompts[start : start + per_batch]
        num_slots = min(size, len(part)) * num_completions
        batch: Batch
        if model is not None:
            if activations is not None:
                activations.begin(model, temperature)  # called once, because `part` has all prompts
            batch = SlotBatch(
                model,
                num_slots,
                max_new_tokens,
                activations,
                has_fixed_shapes=steps_between_checks(policy.device) > 1,
                cuda_graphs=cuda_graphs,
            )
        elif batching == "padded rows":
            batch = WholeBatch(policy.model, policy.pad_token_id)
        else:
            is_single = batching == "single rows"
            batch = SeparateBatches(policy.model, policy.pad_token_id, single_rows=is_single)
        waiting = deque(range(start, start + len(part)))
        generation = Generation(policy, batch, num_slots, max_new_tokens, activations)
        ended: dict[int, dict[int, Completion]] = {}
        while waiting or generation.active:
            if waiting and generation.has_room_for(num_completions):
                generation.start(waiting, prompts, num_completions, uniforms)
            generation.step(temperature)
            num_tokens += len(generation.active)
            for (prompt, number), completion in generation.pop_ended():
                num_ended += 1
                ended.setdefault(prompt, {})[number] = completion
                if len(ended[prompt]) == num_completions:
                    yield prompt, [ended[prompt][number] for number in range(num_completions)]
                    del ended[prompt]
            if on_step is not None:
                on_step(num_ended, num_tokens)
            if generation.active:
                generation.advance(may_shrink=not waiting)


class Generation:
    """Completions in progress.

    Each completion in progress has its own slot, which is an index into the lists and tensors below. The row
    of a slot is the row of the batch that computes its logits. On a CPU, completions whose tokens are equal
    so far share a row.

    Attributes:
        requests: for each slot, the index of the prompt, and the number of the completion among the
            completions of this prompt. None: the slot is free.
        rows: for each slot, the row of the batch that computes its logits.
        num_rows: number of rows that the batch computes, including unused rows.
        num_steps: number of calls of `step` so far.
        start_steps: for each slot, the value of `num_steps` when its completion started.
        prompts: for each slot, the tokens of its prompt.
        kept_indices: for each slot, the index of each of its actions in the stored activations.
        lengths: for each slot, the number of tokens sampled so far.
        is_running: for each slot, True if the completion has not ended yet.
        dtype: data type of random numbers and recorded statistics.
        active: slots that are not free.
        active_slots: `active` as a tensor.
        active_rows: rows of the active slots.
        logits: for each row, the logits of the next action.
        actions: for each active slot, the latest action.
    """

    def __init__(
        self,
        policy: LanguagePolicy,
        batch: Batch,
        num_slots: int,
        max_new_tokens: int,
        activations: Activations | None = None,
    ) -> None:
        device = policy.device
        self.policy, self.batch, self.max_new_tokens = policy, batch, max_new_tokens
        self.requests: list[tuple[int, int] | None] = [None] * num_slots
        self.rows, self.num_rows = [0] * num_slots, 0
        self.num_steps, self.start_steps = 0, [0] * num_slots
        self.prompts: list[TokenIds] = [()] * num_slots
        self.activations = activations
        self.kept_indices: list[list[int]] = [[] for _ in range(num_slots)]
        self.lengths = torch.zeros(num_slots, dtype=torch.long, device=device)
        self.is_running = torch.zeros(num_slots, dtype=torch.bool, device=device)
        # for 10 or more elements, `torch.isin` may use an algorithm that waits for a GPU
        self.end_token_ids = torch.split(integers(policy.end_token_ids, device), 9)
        # the extra column is for tokens that are drawn after the end of a completion, and is never read
        self.token_ids = torch.zeros(num_slots, max_new_tokens + 1, dtype=torch.long, device=device)
        self.dtype = widest_float(device)
        self.log_probs = torch.zeros(num_slots, max_new_tokens + 1, dtype=self.dtype, device=device)
        self.entropies = torch.zeros_like(self.log_probs)
        self.squared_logit_gradient_norms = torch.zeros_like(self.log_probs)
        self.uniforms: Tensor | None = None
        self.active: list[int] = []
        self.active_slots = self.active_rows = self.actions = torch.zeros(0, dtype=torch.long, device=device)
        self.logits = torch.empty(0)
        self.check_every = steps_between_checks(device)
        # sharing rows requires comparing the actions after every step, so it is not done on a GPU
        self.shares_rows = self.check_every == 1

    def has_room_for(self, num_completions: int) -> bool:
        """Return True if the completions of another prompt can start.

        This is possible if no slot is in use. If the batch can refill rows, it is also possible if at least
        `num_completions` slots and at least a quarter of all slots are free.
        """
        num_free = len(self.requests) - len(self.active)
        if not self.active:
            return True
        return self.batch.can_refill and num_free >= max(num_completions, len(self.requests) / 4)

    @torch.no_grad()
    def start(
        self,
        waiting: deque[int],
        prompts: Sequence[TokenIds],
        num_completions: int,
        uniforms: Uniforms | None,
    ) -> None:
        """Start the completions of as many waiting prompts as the free slots allow."""
        free = [slot for slot, request in enumerate(self.requests) if request is None]
        started = [waiting.popleft() for _ in range(min(len(free) // num_completions, len(waiting)))]
        slots = free[: len(started) * num_completions]
        requests = [(prompt, number) for prompt in started for number in range(num_completions)]
        distinct = {prompts[prompt]: None for prompt in started}
        index_of = {prompt: index for index, prompt in enumerate(distinct)}
        of_prompt = [index_of[prompts[prompt]] for prompt, _ in requests]
        # if completions share rows, fill one row per distinct prompt, and otherwise one row per completion
        filled = [*range(len(distinct))] if self.shares_rows else of_prompt
        rows = [row for row, _ in zip(self._unused_rows(), filled, strict=False)]
        for place, (slot, request) in enumerate(zip(slots, requests, strict=True)):
            self.requests[slot], self.prompts[slot] = request, prompts[request[0]]
            self.start_steps[slot], self.kept_indices[slot] = self.num_steps, []
            self.rows[slot] = rows[of_prompt[place] if self.shares_rows else place]
        device = self.lengths.device
        logits, selected = self.batch.fill(rows, list(distinct), filled), integers(slots, device)
        if self.active:
            self.num_rows = max(self.num_rows, *(row + 1 for row in rows))
            self.logits = pad(self.logits, (0, 0, 0, self.num_rows - len(self.logits)))
            self.logits[integers(rows, device)] = logits
        else:
            self.num_rows, self.logits = len(rows), logits
        self.lengths[selected] = 0
        self.is_running[selected] = True
        if uniforms is not None:
            numbers = torch.cat([uniforms(prompt) for prompt in started]).to(self.dtype).to(device)
            if self.uniforms is None:
                self.uniforms = numbers.new_zeros(len(self.requests), self.max_new_tokens)
            self.uniforms[selected] = numbers
        self._refresh_active()

    def _unused_rows(self) -> Iterator[int]:
        in_use = {self.rows[slot] for slot in self.active}
        return (row for row in count() if row not in in_use)

    def _refresh_active(self) -> None:
        """Recompute `active`, `active_slots` and `active_rows`."""
        self.active = [slot for slot, request in enumerate(self.requests) if request is not None]
        self.active_slots = integers(self.active, self.active_slots.device)
        self.active_rows = integers([self.rows[slot] for slot in self.active], self.active_slots.device)

    @torch.no_grad()
    def step(self, temperature: float) -> None:
        """Draw and record the next action of every active completion."""
        self.draw_actions(temperature)
        self.num_steps += 1

    def draw_actions(self, temperature: float) -> None:
        """Draw and record the actions.

        The shapes of tensors depend only on the number of active slots, so this method can be compiled.
        """
        slots, column = self.active_slots, self.lengths[self.active_slots]
        uniforms = None
        if self.uniforms is not None:
            uniforms = self.uniforms[slots, column.clamp(max=self.max_new_tokens - 1)]
        drawn = draw(self.logits.index_select(0, self.active_rows), temperature, uniforms)
        self.actions = drawn.actions
        self.token_ids[slots, column] = drawn.actions
        self.log_probs[slots, column] = drawn.log_probs.to(self.dtype)
        self.entropies[slots, column] = drawn.entropies.to(self.dtype)
        self.squared_logit_gradient_norms[slots, column] = drawn.squared_logit_gradient_norms.to(self.dtype)
        is_running = self.is_running[slots]
        column += is_running
        for end_token_ids in self.end_token_ids:
            is_running &= ~torch.isin(drawn.actions, end_token_ids)
        is_running &= column < self.max_new_tokens
        self.lengths[slots], self.is_running[slots] = column, is_running

    def pop_ended(self) -> Iterator[tuple[tuple[int, int], Completion]]:
        """Yield the request and the completion of each slot whose completion has ended, and free the slot.

        Ended completions are only found in steps in which a check is due; see `CHECK_EVERY`.
        """
        oldest = self.num_steps - min(self.start_steps[slot] for slot in self.active)
        if oldest % self.check_every and oldest < self.max_new_tokens:
            return
        is_running = self.is_running[self.active_slots]
        slots = [slot for slot, runs in zip(self.active, is_running.tolist(), strict=True) if not runs]
        if not slots:
            return
        self.actions = self.actions[is_running]
        ended = integers(slots, self.active_slots.device)
        lengths = self.lengths[ended].tolist()
        token_ids, log_probs, entropies, squared_logit_gradient_norms = (
            values[ended, : max(lengths)].tolist()
            for values in (self.token_ids, self.log_probs, self.entropies, self.squared_logit_gradient_norms)
        )
        written = [tuple(tokens[:length]) for tokens, length in zip(token_ids, lengths, strict=True)]
        prompts = [self.prompts[slot] for slot in slots]
        texts = {pair: self.policy.completion_text(*pair) for pair in set(zip(prompts, written, strict=True))}
        for place, slot in enumerate(slots):
            request, self.requests[slot] = self.requests[slot], None
            assert request is not None
            length, tokens = lengths[place], written[place]
            completion = Completion(
                tokens,
                tuple(log_probs[place][:length]),
                tuple(entropies[place][:length]),
                texts[prompts[place], tokens],
                terminated=tokens[-1] in self.policy.end_token_ids,
                squared_logit_gradient_norms=tuple(squared_logit_gradient_norms[place][:length]),
                opened_reasoning=self.policy.opened_reasoning(prompts[place]),
            )
            if self.activations is not None:
                self.activations.record_completion(
                    self.prompts[slot],
                    tokens,
                    self.kept_indices[slot],
                    completion.log_probs,
                    completion.entropies,
                )
            yield request, completion
        self._refresh_active()

    @torch.no_grad()
    def advance(self, *, may_shrink: bool) -> None:
        """Append the latest actions to the batch and compute the next logits.

        Args:
            may_shrink: if True, unused rows are dropped when they are at least a quarter of all rows.
        """
        if self.shares_rows:
            self._fork()
        in_use = {self.rows[slot] for slot in self.active}
        # rows are dropped only if many are unused, because dropping rows copies the cache
        if may_shrink and len(in_use) <= 0.75 * self.num_rows:
            self.batch.keep(integers(sorted(in_use), self.active_slots.device))
            places = {row: place for place, row in enumerate(sorted(in_use))}
            self.rows, self.num_rows = [places.get(row, 0) for row in self.rows], len(in_use)
            self._refresh_active()
        lengths = [len(self.prompts[slot]) + self.num_steps - self.start_steps[slot] for slot in self.active]
        if self.activations is not None:
            for slot in self.active:
                self.kept_indices[slot].append(self.activations.num_tokens + self.rows[slot])
        actions = self.actions.new_zeros(self.num_rows).index_copy_(0, self.active_rows, self.actions)
        self.logits = self.batch.step(actions, min(lengths), max(lengths))

    def _fork(self) -> None:
        """Copy rows whose completions have drawn different actions, so that each action has its own row."""
        choices = list(zip((self.rows[slot] for slot in self.active), self.actions.tolist(), strict=True))
        unused = self._unused_rows()
        forks: dict[tuple[int, int], int] = {}  # from (current row, action) to the new row
        kept: set[int] = set()
        for choice in dict.fromkeys(choices):
            row, _ = choice
            forks[choice] = next(unused) if row in kept else row
            kept.add(row)
        copies = [(row, new) for (row, _), new in forks.items() if new != row]
        if not copies:
            return
        self.batch.copy(*zip(*copies, strict=True))
        self.num_rows = max(self.num_rows, *(row + 1 for _, row in copies))
        for slot, choice in zip(self.active, choices, strict=True):
            self.rows[slot] = forks[choice]
        self._refresh_active()
