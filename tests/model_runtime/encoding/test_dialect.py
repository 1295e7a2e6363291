from __future__ import annotations

import hashlib

from v32.model_runtime.encoding import V32, Segment
from v32.model_runtime.encoding.dialect import join


def test_tools_preamble_has_its_seven_blank_lines() -> None:
    digest = hashlib.sha256(V32.tools_head.encode()).hexdigest()
    assert digest == "963a72ee9be43f07d21bec2348ed2d7e45185e4b502f2a4da35a540299dc2b03"
    assert len(V32.tools_head) == 1089


def test_splitting_a_fixed_text_loses_nothing_and_isolates_the_markers() -> None:
    segments = V32.split(V32.tools_head)
    assert join(segments) == V32.tools_head
    assert {segment.text for segment in segments if segment.is_control} == {V32.dsml, V32.think_open, V32.think_close}
    assert not any(marker in s.text for s in segments if not s.is_control for marker in V32.control_markers)


def test_a_tag_is_a_marker_between_plain_pieces() -> None:
    assert V32.split(V32.invoke_close) == (Segment("</"), Segment("｜DSML｜", True), Segment("invoke>"))
