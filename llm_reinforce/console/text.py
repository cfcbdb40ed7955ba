"""Numbers as people read them, and text made safe to print on a terminal."""

import unicodedata
from collections.abc import Sequence


def accuracy_title(data: str) -> str:
    """Return what an accuracy was measured on."""
    return "held-out accuracy" if data == "held_out" else "accuracy on the training problems"


def shown_accuracy(accuracy: float, interval: Sequence[float]) -> str:
    """Return an accuracy with its 95% interval: `71.5% [64.9, 77.3]`."""
    low, high = interval
    return f"{accuracy:.1%} [{100 * low:.1f}, {100 * high:.1f}]"


def duration(seconds: float) -> str:
    """Return hours, minutes and seconds: `0:01:05`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def visible(text: str, max_characters: int | None = None) -> str:
    r"""Escape control characters, a newline as `\n`, and shorten long text in its middle."""
    if max_characters is not None and len(text) > max_characters:
        tail = max_characters // 2  # the final answer is at the end
        text = f"{text[: max_characters - tail - 1]}…{text[-tail:]}"
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    if unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character
    return character.encode("unicode_escape").decode()
