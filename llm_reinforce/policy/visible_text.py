"""Decode token ids so that every token is visible in the text."""

from collections.abc import Sequence
from typing import Any

INVISIBLE = "\ufffd"
"""Text of a token that has no text of its own: the Unicode replacement character."""


class VisibleText:
    """Function from token ids to text that replaces tokens without text by U+FFFD.

    Tokenizers decode some ids to an empty text: unknown ids, such as the spare ids of a padded vocabulary,
    and a few ids of their vocabulary. Without a replacement, the tokens `1`, an unknown id and `5` would be
    read as 15.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        digit = vocabulary.get("1", vocabulary.get("0"))
        self._between = [] if digit is None else [digit]
        self._is_visible: dict[int, bool] = {}

    def __call__(self, token_ids: Sequence[int]) -> str:
        """Return the text of the tokens."""
        for token_id in token_ids:
            if token_id not in self._is_visible:
                self._is_visible[token_id] = self._changes_text(token_id)
        runs: list[list[int]] = [[]]
        for token_id in token_ids:
            if self._is_visible[token_id]:
                runs[-1].append(token_id)
            else:
                runs.append([])
        return INVISIBLE.join(self._decode(run) for run in runs)

    def _changes_text(self, token_id: int) -> bool:
        # A token is tested between two digits, because a tokenizer may remove a space at the start of a text.
        around = self._between
        try:
            return self._decode([*around, token_id, *around]) != self._decode([*around, *around])
        except Exception:  # some tokenizers raise an exception for an unknown id
            return False

    def _decode(self, token_ids: Sequence[int]) -> str:
        # Without `clean_up_tokenization_spaces=False`, transformers would turn `3 .5` into `3.5`.
        text: str = self.tokenizer.decode(
            list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text
