"""Sample completions: the policy acts, one token after the other, until it ends or runs out of budget."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from llm_reinforce.policy.activations import Activations
from llm_reinforce.policy.batches import Batch, SlotBatch, WholeBatch
from llm_reinforce.policy.decoder import llama_like
from llm_reinforce.policy.drawing import draw
from llm_reinforce.policy.language_policy import LanguagePolicy, TokenIds, integers

LOOK_EVERY = {"cpu": 1}
"""After how many tokens one looks what has been drawn; 8 for others, a GPU must be waited for."""

Uniforms = Callable[[int], Float[Tensor, "completion token"]]
"""The random numbers of a prompt's completions, in [0, 1), float64."""


@dataclass(frozen=True, slots=True)
class Completion:
    """The actions of one episode.

    Attributes:
        token_ids: the sampled tokens; the end token, where it was sampled, is the last.
        log_probs: behavior_log_probs, log π(a_t | s_t) in nats as the token was drawn.
        entropies: of the distribution that each token was drawn from, in nats.
        text: the tokens decoded, a final end token left out.
        terminated: the policy ended the episode itself; False is truncated, out of token budget.
        squared_score_norms: ‖∂ log π(a_t | s_t) / ∂z‖² of each action, z the logits that it was drawn from,
            divided by the temperature; empty where the completion wasn't sampled here.
    """

    token_ids: TokenIds
    log_probs: tuple[float, ...]
    entropies: tuple[float, ...]
    text: str
    terminated: bool
    squared_score_norms: tuple[float, ...] = ()


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
) -> list[Completion]:
    """Sample completions of each prompt from softmax(logits / temperature), nothing cut off.

    What is drawn depends on the generator, the prompts and the policy; not on the batch size, but for
    rounding.

    Args:
        prompts: token ids of the initial states, none empty.
        num_completions: completions a prompt.
        greedy: take the likeliest token instead of drawing; `log_probs` are still those of the policy.
        generator: where the random numbers come from, on the CPU or on the policy's device.
        batch_size: how many completions at once; None: all of them. At least one prompt's go together.
        activations: where what is computed is kept for `token_log_probs`, of a Llama-like model on a CPU.

    Returns:
        completions in the order of the prompts, those of one prompt next to each other.
    """
    device = policy.device if generator is None else generator.device

    def uniforms(prompt: int) -> Tensor:
        size = (num_completions, max_new_tokens)
        return torch.rand(size, generator=generator, dtype=torch.float64, device=device)

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
        )
    )
    return [completion for prompt in range(len(prompts)) for completion in of_prompts[prompt]]


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
) -> Iterator[tuple[int, list[Completion]]]:
    """The same, each prompt's number and completions as soon as all of them have ended.

    Prompts are taken in their order. A prompt is computed once and shared out to its completions; on a CPU
    completions stay together until their actions differ. What has ended makes room for the next prompts where
    the model's cache allows it, and else leaves the batch.

    Args:
        uniforms: the random numbers of a prompt, asked for in the prompts' order; None: greedy.
    """
    size = max(1, (batch_size or len(prompts) * num_completions) // num_completions)  # prompts at once
    model = llama_like(policy.model)
    if model is None or policy.device.type != "cpu":
        activations = None
    per_batch = max(1, len(prompts)) if model is not None else size
    for start in range(0, len(prompts), per_batch):
        part = prompts[start : start + per_batch]
        num_seats = min(size, len(part)) * num_completions
        batch: Batch
        if model is not None:
            if activations is not None:
                activations.begin(model, temperature)  # there is but one batch
            batch = SlotBatch(model, num_seats, max_new_tokens, activations)
        else:
            batch = WholeBatch(policy.model, policy.pad_token_id)
        waiting = deque(range(start, start + len(part)))
        writing = _Writing(policy, batch, num_seats, max_new_tokens, activations)
        ended: dict[int, dict[int, Completion]] = {}
        while waiting or writing.taken:
            if waiting and writing.has_room_for(num_completions):
                writing.begin(waiting, prompts, num_completions, uniforms)
            writing.act(temperature)
            for (prompt, number), completion in writing.take_ended():
                ended.setdefault(prompt, {})[number] = completion
                if len(ended[prompt]) == num_completions:
                    yield prompt, [ended[prompt][number] for number in range(num_completions)]
                    del ended[prompt]
            if writing.taken:
                writing.advance(may_shrink=not waiting)


class _Writing:
    """Completions on their way, each in a seat; those that are alike so far in one row of the batch.

    Attributes:
        owners: each seat's prompt and which of its completions; None: the seat is free.
        rows: where in the batch the completion of each seat stands.
        num_rows: how many rows the batch computes, some for nobody.
        num_acts: how often all have acted.
        births: how often they had when each seat's completion began.
        prompts: the tokens of each seat's prompt.
        numbers: of each seat's actions, among the activations that are kept.
        num_written: the tokens of each seat's completion.
        is_running: False where the completion has ended.
        taken: the seats that have an owner; `seats` are the same and `of_seats` their rows, on the device.
        logits: of each row's next action.
        actions: the last ones of `seats`.
    """

    def __init__(
        self,
        policy: LanguagePolicy,
        batch: Batch,
        num_seats: int,
        max_new_tokens: int,
        activations: Activations | None = None,
    ) -> None:
        device = policy.device
        self.policy, self.batch, self.max_new_tokens = policy, batch, max_new_tokens
        self.owners: list[tuple[int, int] | None] = [None] * num_seats
        self.rows, self.num_rows = [0] * num_seats, 0
        self.num_acts, self.births = 0, [0] * num_seats
        self.prompts: list[TokenIds] = [()] * num_seats
        self.activations = activations
        self.numbers: list[list[int]] = [[] for _ in range(num_seats)]
        self.num_written = torch.zeros(num_seats, dtype=torch.long, device=device)
        self.is_running = torch.zeros(num_seats, dtype=torch.bool, device=device)
        self.end_token_ids = integers(policy.end_token_ids, device)
        # one column more than is ever read: there goes what is drawn after a completion's end
        self.token_ids = torch.zeros(num_seats, max_new_tokens + 1, dtype=torch.long, device=device)
        self.log_probs = torch.zeros(num_seats, max_new_tokens + 1, dtype=torch.float64, device=device)
        self.entropies = torch.zeros_like(self.log_probs)
        self.squared_score_norms = torch.zeros_like(self.log_probs)
        self.uniforms: Tensor | None = None
        self.taken: list[int] = []
        self.seats = self.of_seats = self.actions = torch.zeros(0, dtype=torch.long, device=device)
        self.logits = torch.empty(0)
        self.look_every = LOOK_EVERY.get(device.type, 8)
        self.shares = self.look_every == 1  # who acts alike must be seen after every action

    def has_room_for(self, num_completions: int) -> bool:
        """Whether new prompts should begin now: a quarter of the seats is free, and enough for one."""
        num_free = len(self.owners) - len(self.taken)
        if not self.taken:
            return True
        return self.batch.takes_more and num_free >= max(num_completions, len(self.owners) / 4)

    @torch.no_grad()
    def begin(
        self,
        waiting: deque[int],
        prompts: Sequence[TokenIds],
        num_completions: int,
        uniforms: Uniforms | None,
    ) -> None:
        """Let the next prompts' completions begin in the free seats."""
        free = [seat for seat, owner in enumerate(self.owners) if owner is None]
        begun = [waiting.popleft() for _ in range(min(len(free) // num_completions, len(waiting)))]
        seats = free[: len(begun) * num_completions]
        owners = [(prompt, number) for prompt in begun for number in range(num_completions)]
        distinct = {prompts[prompt]: None for prompt in begun}
        numbers = {prompt: number for number, prompt in enumerate(distinct)}
        of_prompt = [numbers[prompts[prompt]] for prompt, _ in owners]
        # a row for each prompt or for each completion
        filled = [*range(len(distinct))] if self.shares else of_prompt
        rows = [row for row, _ in zip(self._unused_rows(), filled, strict=False)]
        for place, (seat, owner) in enumerate(zip(seats, owners, strict=True)):
            self.owners[seat], self.prompts[seat] = owner, prompts[owner[0]]
            self.births[seat], self.numbers[seat] = self.num_acts, []
            self.rows[seat] = rows[of_prompt[place] if self.shares else place]
        device = self.num_written.device
        logits, selected = self.batch.fill(rows, list(distinct), filled), integers(seats, device)
        if self.taken:
            self.num_rows = max(self.num_rows, *(row + 1 for row in rows))
            self.logits = pad(self.logits, (0, 0, 0, self.num_rows - len(self.logits)))
            self.logits[integers(rows, device)] = logits
        else:
            self.num_rows, self.logits = len(rows), logits
        self.num_written[selected] = 0
        self.is_running[selected] = True
        if uniforms is not None:
            numbers_drawn = torch.cat([uniforms(prompt) for prompt in begun]).to(device)
            if self.uniforms is None:
                self.uniforms = numbers_drawn.new_zeros(len(self.owners), self.max_new_tokens)
            self.uniforms[selected] = numbers_drawn
        self._note()

    def _unused_rows(self) -> Iterator[int]:
        in_use = {self.rows[seat] for seat in self.taken}
        return (row for row in count() if row not in in_use)

    def _note(self) -> None:
        """Note who is there, and where."""
        self.taken = [seat for seat, owner in enumerate(self.owners) if owner is not None]
        self.seats = integers(self.taken, self.seats.device)
        self.of_seats = integers([self.rows[seat] for seat in self.taken], self.seats.device)

    @torch.no_grad()
    def act(self, temperature: float) -> None:
        """Draw the next action of every completion and write it down."""
        seats, column = self.seats, self.num_written[self.seats]
        uniforms = None
        if self.uniforms is not None:
            uniforms = self.uniforms[seats, column.clamp(max=self.max_new_tokens - 1)]
        drawn = draw(self.logits.index_select(0, self.of_seats), temperature, uniforms)
        self.actions = drawn.actions
        self.token_ids[seats, column] = drawn.actions
        self.log_probs[seats, column] = drawn.log_probs.double()
        self.entropies[seats, column] = drawn.entropies.double()
        self.squared_score_norms[seats, column] = drawn.squared_score_norms.double()
        is_running = self.is_running[seats]
        column += is_running
        is_running &= ~torch.isin(drawn.actions, self.end_token_ids)
        is_running &= column < self.max_new_tokens
        self.num_written[seats], self.is_running[seats] = column, is_running
        self.num_acts += 1

    def take_ended(self) -> Iterator[tuple[tuple[int, int], Completion]]:
        """The completions that have ended, with their owners; their seats are free."""
        oldest = self.num_acts - min(self.births[seat] for seat in self.taken)
        if oldest % self.look_every and oldest < self.max_new_tokens:
            return
        is_running = self.is_running[self.seats]
        seats = [seat for seat, runs in zip(self.taken, is_running.tolist(), strict=True) if not runs]
        if not seats:
            return
        self.actions = self.actions[is_running]
        ended = integers(seats, self.seats.device)
        lengths = self.num_written[ended].tolist()
        token_ids, log_probs, entropies, squared_score_norms = (
            values[ended, : max(lengths)].tolist()
            for values in (self.token_ids, self.log_probs, self.entropies, self.squared_score_norms)
        )
        written = [tuple(tokens[:length]) for tokens, length in zip(token_ids, lengths, strict=True)]
        texts = {tokens: self.policy.decode(tokens) for tokens in set(written)}
        for place, seat in enumerate(seats):
            owner, self.owners[seat] = self.owners[seat], None
            assert owner is not None
            length, tokens = lengths[place], written[place]
            completion = Completion(
                tokens,
                tuple(log_probs[place][:length]),
                tuple(entropies[place][:length]),
                texts[tokens],
                terminated=tokens[-1] in self.policy.end_token_ids,
                squared_score_norms=tuple(squared_score_norms[place][:length]),
            )
            if self.activations is not None:
                self.activations.note_completion(
                    self.prompts[seat],
                    tokens,
                    self.numbers[seat],
                    completion.log_probs,
                    completion.entropies,
                )
            yield owner, completion
        self._note()

    @torch.no_grad()
    def advance(self, *, may_shrink: bool) -> None:
        """Compute the logits of the next actions, rows that nobody needs any more left out."""
        if self.shares:
            self._part()
        in_use = {self.rows[seat] for seat in self.taken}
        # free rows go on unread until they are a quarter: to cut them out costs a copy of the cache
        if may_shrink and len(in_use) <= 0.75 * self.num_rows:
            self.batch.keep(integers(sorted(in_use), self.seats.device))
            places = {row: place for place, row in enumerate(sorted(in_use))}
            self.rows, self.num_rows = [places.get(row, 0) for row in self.rows], len(in_use)
            self._note()
        lengths = [len(self.prompts[seat]) + self.num_acts - self.births[seat] for seat in self.taken]
        if self.activations is not None:
            for seat in self.taken:
                self.numbers[seat].append(self.activations.num_tokens + self.rows[seat])
        actions = self.actions.new_zeros(self.num_rows).index_copy_(0, self.of_seats, self.actions)
        self.logits = self.batch.step(actions, min(lengths), max(lengths))

    def _part(self) -> None:
        """Completions of a row that act alike stay together; the first action goes on in the row itself."""
        acts = list(zip((self.rows[seat] for seat in self.taken), self.actions.tolist(), strict=True))
        unused = self._unused_rows()
        heirs: dict[tuple[int, int], int] = {}  # by the row until now and the action
        stayed: set[int] = set()
        for act in dict.fromkeys(acts):
            heirs[act] = next(unused) if act[0] in stayed else act[0]
            stayed.add(act[0])
        copies = [(row, new) for (row, _), new in heirs.items() if new != row]
        if not copies:
            return
        self.batch.copy(*zip(*copies, strict=True))
        self.num_rows = max(self.num_rows, *(row + 1 for _, row in copies))
        for seat, act in zip(self.taken, acts, strict=True):
            self.rows[seat] = heirs[act]
        self._note()
