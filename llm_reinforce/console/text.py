"""Functions that format numbers, and that escape text for a terminal."""

import bisect
import unicodedata
from collections.abc import Sequence

from rich.cells import cell_len

MAX_PROMPT = 600  # maximum characters of a prompt that is shown; the middle of a longer prompt is omitted


def accuracy_title(data: str) -> str:
    """Return the title of an accuracy that was measured on `data`, which is "held_out" or "training"."""
    return "held-out accuracy" if data == "held_out" else "accuracy on the training problems"


def shown_accuracy(accuracy: float, interval: Sequence[float]) -> str:
    """Return an accuracy with its 95% interval, such as `71.5% [64.9, 77.3]`."""
    low, high = interval
    return f"{accuracy:.1%} [{100 * low:.1f}, {100 * high:.1f}]"


def duration(seconds: float) -> str:
    """Return a duration in hours, minutes and seconds, such as `0:01:05`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def visible(text: str, max_characters: int | None = None) -> str:
    r"""Return the text with control characters escaped: a newline becomes `\n`, for example.

    Args:
        text: the text.
        max_characters: maximum number of characters, counted before escaping. In a longer text, the middle is
            replaced by an ellipsis. None: no limit.
    """
    if max_characters is not None and len(text) > max_characters:
        tail = max_characters // 2  # keeps the final answer, which is at the end
        text = f"{text[: max_characters - tail - 1]}…{text[-tail:]}"
    return "".join(_visible(character) for character in text)


def fitted(text: str, width: int) -> str:
    """Return the text with control characters escaped, cut to `width` columns of a terminal.

    In a longer text, the middle is replaced by an ellipsis, because an answer is often at the end.
    """
    is_cut = len(text) > 2 * width + 2
    parts = text[: width + 1] + text[-width - 1 :] if is_cut else text
    shown = [_visible(character) for character in parts]
    if not is_cut and cell_len("".join(shown)) <= width:
        return "".join(shown)
    tail = max(0, width - 1) // 2
    start = "".join(shown[: _num_fitting(shown, width - 1 - tail)])
    end = "".join(shown[len(shown) - _num_fitting(shown, tail, is_end=True) :])
    return f"{start}…{end}"


def _num_fitting(parts: Sequence[str], width: int, *, is_end: bool = False) -> int:
    """Return how many of the first parts (with `is_end`, of the last parts) fit into `width` columns.

    The joined parts are measured, because characters may be wider together than separately. For example, a
    variation selector makes the emoji before it wider.
    """

    def width_of(num: int) -> int:
        return cell_len("".join(parts[len(parts) - num :] if is_end else parts[:num]))

    return max(0, bisect.bisect_right(range(len(parts) + 1), width, key=width_of) - 1)


def _visible(character: str) -> str:
    if unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character
    return character.encode("unicode_escape").decode()
