"""The wire format as data: every marker, tag and fixed text of a chat dialect stands in one frozen table.

Enters: nothing. Leaves: strings, and their split into control markers and plain text. Knows nothing of messages
or token ids. A successor's dialect is a new table.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple


class Segment(NamedTuple):
    """A piece of a prompt. Only a control segment may become a structural token; all else is ordinary text."""

    text: str
    is_control: bool = False


@dataclass(frozen=True, slots=True)
class Dialect:
    bos: str
    eos: str
    user: str
    assistant: str
    think_open: str
    think_close: str
    dsml: str
    """The marker inside every tag of a tool call; one token in some tokenizers, several in others."""

    calls_tag: str
    invoke_tag: str
    parameter_tag: str

    tools_head: str
    tools_tail: str
    response_format_head: str
    developer_question: str
    results_open: str
    result_open: str
    result_close: str
    results_close: str

    @property
    def role_markers(self) -> tuple[str, ...]:
        """Markers that must be single tokens; without them no conversation can be encoded."""
        return (self.bos, self.eos, self.user, self.assistant, self.think_open, self.think_close)

    @property
    def control_markers(self) -> tuple[str, ...]:
        return (*self.role_markers, self.dsml)

    @property
    def block_open(self) -> str:
        return f"\n\n<{self.dsml}{self.calls_tag}>\n"

    @property
    def block_close(self) -> str:
        return f"</{self.dsml}{self.calls_tag}>"

    def invoke_open(self, name: str) -> str:
        return f'<{self.dsml}{self.invoke_tag} name="{name}">\n'

    @property
    def invoke_close(self) -> str:
        return f"</{self.dsml}{self.invoke_tag}>"

    def parameter_open(self, name: str, *, is_string: bool) -> str:
        attribute = "true" if is_string else "false"
        return f'<{self.dsml}{self.parameter_tag} name="{name}" string="{attribute}">'

    @property
    def parameter_close(self) -> str:
        return f"</{self.dsml}{self.parameter_tag}>"

    def think(self, *, is_open: bool) -> str:
        return self.think_open if is_open else self.think_close

    def split(self, fixed_text: str) -> tuple[Segment, ...]:
        """Control markers of a text of our own apart from the rest; never for text that came from outside."""
        return _split(fixed_text, self.control_markers)


def join(segments: Iterable[Segment]) -> str:
    return "".join([segment.text for segment in segments])


@lru_cache(maxsize=256)
def _split(fixed_text: str, markers: tuple[str, ...]) -> tuple[Segment, ...]:
    pattern = "(" + "|".join(map(re.escape, markers)) + ")"
    return tuple(Segment(piece, piece in markers) for piece in re.split(pattern, fixed_text) if piece)


V32 = Dialect(
    bos="<｜begin▁of▁sentence｜>",
    eos="<｜end▁of▁sentence｜>",
    user="<｜User｜>",
    assistant="<｜Assistant｜>",
    think_open="<think>",
    think_close="</think>",
    dsml="｜DSML｜",
    calls_tag="function_calls",
    invoke_tag="invoke",
    parameter_tag="parameter",
    tools_head="""## Tools

You have access to a set of tools you can use to answer the user's question.
You can invoke functions by writing a "<｜DSML｜function_calls>" block like the following as part of \
your reply to the user:
<｜DSML｜function_calls>
<｜DSML｜invoke name="$FUNCTION_NAME">
<｜DSML｜parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</｜DSML｜parameter>
...
</｜DSML｜invoke>
<｜DSML｜invoke name="$FUNCTION_NAME2">
...
</｜DSML｜invoke>
</｜DSML｜function_calls>

String and scalar parameters should be specified as is without any escaping or quotes, while lists and objects should \
use JSON format. The "string" attribute should be set to "true" for string type parameters and "false" for other types \
(numbers, booleans, arrays, objects).

If the thinking_mode is enabled, then after function results you should strongly consider outputting a thinking block. \
Here is an example:

<｜DSML｜function_calls>
...
</｜DSML｜function_calls>

<function_results>
...
</function_results>

<think>...thinking about results</think>

Here are the functions available in JSONSchema format:
<functions>
""",
    tools_tail="\n</functions>\n",
    response_format_head="## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n",
    developer_question="\n\n# The user's message is: ",
    results_open="\n\n<function_results>",
    result_open="\n<result>",
    result_close="</result>",
    results_close="\n</function_results>\n\n",
)
