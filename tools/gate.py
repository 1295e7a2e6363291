"""The one gate for text on its way to the model: bytes or text in, clean text of bounded length out.

Cleaning takes away what a terminal, a browser or an editor would act on but nobody would see: escape sequences,
control, direction, tag and zero-width characters. Cutting keeps head and tail and says exactly what is missing.
Special tokens are left as they are: the encoder writes them as plain text, whatever they look like.

for_model(for_model(text)) == for_model(text), for every text and limit.
"""

from __future__ import annotations

import re

MAX_CHARS = 16 << 10
_HEAD_SHARE = 0.5
_MIN_LIMIT = 200

# Introducer, body, terminator; an unfinished sequence loses its introducer only, so that no text is swallowed.
_ESCAPE_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x90\x98\x9c-\x9f]*(?:\x07|\x1b\\|\x9c)"  # OSC, DCS, …: strings
    r"|\x1b[ -/]*[0-~]"  # the rest: character sets, resets
)
_LINE_END = re.compile(r"\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f"  # C0 but tab and newline, DEL, C1
    "\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f"  # soft hyphen, directions, zero width
    "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\uffa0"  # joiners and fillers that show nothing
    "\ufeff\ufff9-\ufffb\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"  # marks, annotations, tags, selectors 17-256
)
# A selector and a joiner act on what stands before them, as in emoji, Persian and Hindi; a row of them hides a message.
_JOINER_ROW = re.compile("([\ufe00-\ufe0f][\u200c\u200d]|[\u200c\u200d\ufe00-\ufe0f])[\u200c\u200d\ufe00-\ufe0f]*")
_SURROGATE = re.compile("[\ud800-\udfff]")


def for_model(text: str | bytes, *, max_chars: int = MAX_CHARS, hint: str = "ask for a smaller part") -> str:
    """`hint` tells the model how to get at what was cut. Raises `ValueError` for a limit below 200 characters."""
    if max_chars < _MIN_LIMIT:
        raise ValueError(f"max_chars is {max_chars}; it must be {_MIN_LIMIT} or more")
    return cut(clean(text), max_chars, hint)


def clean(text: str | bytes) -> str:
    """Decoded, without anything invisible; line ends are newlines."""
    if isinstance(text, (bytes, bytearray, memoryview)):
        text = bytes(text).decode("utf-8", errors="replace")
    text = _ESCAPE_SEQUENCE.sub("", text)
    text = _LINE_END.sub("\n", text)
    text = _INVISIBLE.sub("", text)
    text = _JOINER_ROW.sub(r"\1", text)
    return _SURROGATE.sub("\ufffd", text)


def cut(text: str, max_chars: int, hint: str) -> str:
    """Head and tail of a text that is too long, at line ends where some are near; never over the limit."""
    if len(text) <= max_chars:
        return text
    room = max_chars - len(_marker(len(text), len(text), hint))
    if room < max_chars // 2:  # a long hint must not crowd out the text
        return cut(text, max_chars, "cut")
    head_end = _line_end_before(text, int(room * _HEAD_SHARE))
    tail_start = _line_start_after(text, len(text) - (room - head_end))
    return text[:head_end] + _marker(tail_start - head_end, len(text), hint) + text[tail_start:]


def _marker(left_out: int, total: int, hint: str) -> str:
    return f"\n[{left_out:,} of {total:,} characters left out; {hint}]\n"


def _line_end_before(text: str, position: int) -> int:
    found = text.rfind("\n", max(position - 200, 0), position)
    return found if found > 0 else position


def _line_start_after(text: str, position: int) -> int:
    found = text.find("\n", position, position + 200)
    return found + 1 if found >= 0 else position
