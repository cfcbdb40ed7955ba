"""Find the input embedding of a model, and check that it has a vector for each token."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from llm_reinforce.errors import InputError
from llm_reinforce.policy.language_policy import TokenIds


def num_embeddings(model: nn.Module) -> int | None:
    """Return the number of token ids for which the model has an embedding; None if it is unknown."""
    size = getattr(input_embedding(model), "num_embeddings", None)
    return size if isinstance(size, int) else None


def input_embedding(model: nn.Module) -> Any:
    """Return the input embedding of the model, without a wrapping adapter; None if it is unknown."""
    get_embedding: Any = getattr(model, "get_input_embeddings", lambda: None)
    embedding = get_embedding()
    return embedding.get_base_layer() if hasattr(embedding, "get_base_layer") else embedding


def valid_pad_token(model: nn.Module, pad_token_id: int) -> int:
    """Return the id of the pad token, or 0 if the model has no embedding for the pad token.

    Padding is masked, so any token id with an embedding can be used as padding.
    """
    size = num_embeddings(model)
    return pad_token_id if size is None or 0 <= pad_token_id < size else 0


def check_token_ids(model: nn.Module, sequences: Sequence[TokenIds], tokenizer: Any = None) -> None:
    """Check that the model has an embedding for each token.

    Args:
        model: the model of a policy.
        sequences: token ids of prompts or completions.
        tokenizer: tokenizer that provides the text of a token for the error message. None: the message
            contains only the id of the token.

    Raises:
        InputError: if a token has no embedding.
    """
    size = num_embeddings(model)
    if size is None or max(map(max, filter(None, sequences)), default=0) < size:
        return
    outside = next(token for sequence in sequences for token in sequence if token >= size)
    name = f"{tokenizer.convert_ids_to_tokens(outside)!r} (id {outside})" if tokenizer else f"id {outside}"
    raise InputError(
        f"token {name} has no embedding: the ids of the model are 0 to {size - 1}; use the tokenizer of this "
        "model, or enlarge the model with model.resize_token_embeddings(len(tokenizer)) and save it"
    )
