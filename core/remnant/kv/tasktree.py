"""Follow a task tree while it is written: which token opened and closed which list, and what may be dropped.

The output of the model is one JSON object, `{"reasoning": [task*], "answer": ...}` with
`task := {"thought", "tooluse"?: {"name", "parameters", "tool_result"}, "subtasks"?: [task*], "conclusion"}`.
Only lists and values at these places count: a list called `subtasks` inside the parameters of a tool is data.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Literal

from remnant.errors import ConfigError

__all__ = ["Event", "PruneQueue", "Span", "TaskTree"]

Span = tuple[int, int]
"""Token positions `start <= p < end`."""
Kind = Literal["list_open", "list_close", "tool_params_end", "conclusion_end"]
_SPACE = b" \t\r\n"
_SCALAR = re.compile(rb"(true|false|null|-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?)\Z")
_SCALAR_BYTES = frozenset(b"truefalsnl0123456789+-.eE")


@dataclass(frozen=True)
class Event:
    """Something that the host may act on.

    Attributes:
        kind: `list_open`, `list_close`, `tool_params_end` or `conclusion_end`.
        token: position of the token that brought it.
        start: position of the token in which the list or value began.
        key: `reasoning`, `subtasks`, `parameters` or `conclusion`.
        depth: tasks that enclose it; 0 for `reasoning`.
        name: of the tool, for `tool_params_end`.
        text: the parameters as JSON, for `tool_params_end`.
        rest: what the token's piece holds behind the end of the value.
    """

    kind: Kind
    token: int
    start: int
    key: str
    depth: int = 0
    name: str = ""
    text: str = ""
    rest: bytes = b""


@dataclass
class _Frame:
    """An open object or list."""

    array: bool
    role: str
    start: int
    expect: str
    depth: int
    key: str = ""
    tool: str = ""


# Role of a value by the role of its object and its key; everything else is data.
_ROLES = {
    ("root", "reasoning"): "tasks",
    ("root", "subtasks"): "tasks",
    ("task", "subtasks"): "tasks",
    ("task", "tooluse"): "tool",
    ("task", "conclusion"): "conclusion",
    ("root", "conclusion"): "conclusion",
    ("tool", "parameters"): "parameters",
    ("tool", "name"): "name",
}


class TaskTree:
    """Incremental parser. Feed it the text of each token; it answers with events.

    Text before the first `{` is skipped, text after the matching `}` is ignored. Output that is not JSON sets
    `broken` and ends the events: what was reported stays true, nothing more is reported. A piece may be bytes, so a
    character that is spread over tokens is no problem. Raw newlines in strings are let through.

    Attributes:
        broken: the text was not JSON.
        done: the object is complete.
    """

    def __init__(self) -> None:
        """Start before the first token."""
        self.broken = False
        self.done = False
        self._stack: list[_Frame] = []
        self._mode: Literal["value", "string", "escape", "scalar"] = "value"
        self._text = bytearray()  # the string or scalar being read
        self._start = 0  # token in which it began
        self._record: bytearray | None = None  # the parameters being read, as written
        self._record_depth = 0
        self._record_start = 0

    @property
    def depth(self) -> int:
        """Tasks that are open."""
        return self._stack[-1].depth if self._stack else 0

    def feed(self, piece: str | bytes, token: int) -> list[Event]:
        """Read the text of one token.

        Args:
            piece: its text or its UTF-8 bytes; may be empty.
            token: its position, not smaller than that of the piece before.
        """
        data = piece.encode() if isinstance(piece, str) else piece
        events: list[Event] = []
        for i, byte in enumerate(data):
            if self.broken or self.done:
                break
            if not self._byte(byte, token, data[i + 1 :], events):
                self.broken = True
        return events

    def _byte(self, c: int, token: int, rest: bytes, events: list[Event]) -> bool:
        """Advance by one byte; False when it cannot stand here."""
        if self._mode == "scalar":
            if c in _SCALAR_BYTES:
                self._text.append(c)
                self._note(c)
                return True
            # A scalar has no end of its own: it ended before this byte.
            if not self._end_scalar(token, bytes([c]) + rest, events):
                return False
        self._note(c)
        if self._mode == "escape":
            self._text.append(c)
            self._mode = "string"
            return True
        if self._mode == "string":
            return self._in_string(c, token, rest, events)
        if c in _SPACE:
            return True
        return self._structure(c, token, rest, events)

    def _note(self, c: int) -> None:
        if self._record is not None:
            self._record.append(c)

    def _in_string(self, c: int, token: int, rest: bytes, events: list[Event]) -> bool:
        if c == ord("\\"):
            self._text.append(c)
            self._mode = "escape"
            return True
        if c != ord('"'):
            self._text.append(c)
            return True
        self._mode = "value"
        frame = self._stack[-1]
        if frame.expect in ("key", "key or end"):
            frame.key = _decoded(self._text)
            frame.expect = ":"
            return True
        if self._role() == "name":
            frame.tool = _decoded(self._text)
        self._end_value(self._role(), self._start, token, rest, events)
        return True

    def _end_scalar(self, token: int, rest: bytes, events: list[Event]) -> bool:
        self._mode = "value"
        if not _SCALAR.match(bytes(self._text)):
            return False
        self._end_value(self._role(), self._start, token, rest, events)
        return True

    def _role(self) -> str:
        """Role of the value that stands at this place."""
        frame = self._stack[-1]
        if frame.array:
            return "task" if frame.role == "tasks" else "data"
        return _ROLES.get((frame.role, frame.key), "data")

    def _structure(self, c: int, token: int, rest: bytes, events: list[Event]) -> bool:
        if not self._stack:
            if c == ord("{"):
                self._stack.append(_Frame(False, "root", token, "key or end", 0))
            return True
        frame = self._stack[-1]
        if c in b":,":
            return self._separator(c, frame)
        if c in b"]}":
            if frame.array != (c == ord("]")) or frame.expect not in (", or end", "key or end", "value or end"):
                return False
            self._stack.pop()
            if not self._stack:
                self.done = True
                return True
            self._end_value(frame.role, frame.start, token, rest, events)
            return True
        if c == ord('"'):
            if frame.expect in (":", ", or end"):
                return False
            if frame.expect in ("value", "value or end"):
                self._begin_value(c, token)
            self._mode, self._start = "string", token
            self._text.clear()
            return True
        if frame.expect not in ("value", "value or end"):
            return False
        return self._open(c, token, frame, events)

    def _open(self, c: int, token: int, frame: _Frame, events: list[Event]) -> bool:
        """Begin a list, an object or a scalar."""
        self._begin_value(c, token)
        if c in b"[{":
            array, role = c == ord("["), self._role()
            if (role == "tasks") != array and role in ("tasks", "task", "tool"):
                role = "data"  # the right name for the wrong kind of value
            depth = frame.depth + (role == "task")
            self._stack.append(_Frame(array, role, token, "value or end" if array else "key or end", depth))
            if role == "tasks":
                events.append(Event("list_open", token, token, frame.key, depth))
            return True
        if c not in _SCALAR_BYTES:
            return False
        self._mode, self._start = "scalar", token
        self._text[:] = bytes([c])
        return True

    @staticmethod
    def _separator(c: int, frame: _Frame) -> bool:
        if c == ord(":"):
            ok, frame.expect = frame.expect == ":", "value"
            return ok
        ok, frame.expect = frame.expect == ", or end", "value" if frame.array else "key"
        return ok

    def _begin_value(self, c: int, token: int) -> None:
        if self._record is None and self._role() == "parameters":
            self._record, self._record_depth, self._record_start = bytearray([c]), len(self._stack), token

    def _end_value(self, role: str, start: int, token: int, rest: bytes, events: list[Event]) -> None:
        """A value ended; the frame around it is on top of the stack."""
        frame = self._stack[-1]
        frame.expect = ", or end"
        if self._record is not None and len(self._stack) == self._record_depth:
            text, self._record = self._record.decode(errors="replace"), None
            events.append(
                Event(
                    "tool_params_end",
                    token,
                    self._record_start,
                    "parameters",
                    frame.depth,
                    name=frame.tool,
                    text=text,
                    rest=rest,
                )
            )
        elif role == "tasks":
            events.append(Event("list_close", token, start, frame.key, frame.depth, rest=rest))
        elif role == "conclusion":
            events.append(Event("conclusion_end", token, start, "conclusion", frame.depth, rest=rest))


def _decoded(raw: bytearray) -> str:
    try:
        return str(json.loads(b'"' + bytes(raw) + b'"'))
    except ValueError:
        return raw.decode(errors="replace")


class PruneQueue:
    """Finished subtask lists, first in first out: what falls out is to be dropped.

    Positions given are those of the stream as it was written, counted without gaps. Spans returned are in the
    positions that the cache has at that moment: the same when gaps stay, moved down by everything that was dropped
    before them when positions are used again.

    Args:
        buffer: finished lists that stay.
        reuse_positions: what follows a dropped span moves into it.
    """

    def __init__(self, buffer: int = 1, reuse_positions: bool = False) -> None:
        """Start with no list."""
        if buffer < 0:
            raise ConfigError(f"buffer={buffer}", accepted="an integer of at least 0")
        self.buffer = buffer
        self.reuse_positions = reuse_positions
        self.dropped: list[Span] = []
        """Everything that was dropped, in stream positions: disjoint and ascending."""
        self._waiting: list[Span] = []

    def current(self, position: int) -> int:
        """Where a stream position stands now; a dropped one stands where its gap was."""
        if not self.reuse_positions:
            return position
        return position - sum(min(end, position) - start for start, end in self.dropped if start < position)

    def push(self, event: Event) -> list[Span]:
        """Take the end of a list.

        Returns:
            Spans to drop, latest first, so that dropping one does not move the next. They lie between the tokens that
            hold the brackets, never overlap one another or an earlier one, and none is empty.
        """
        if event.kind != "list_close" or event.key != "subtasks":
            return []
        self._waiting.append((event.start + 1, event.token))
        out: list[Span] = []
        while len(self._waiting) > self.buffer:
            out += self._drop(self._waiting.pop(0))
        return sorted(out, reverse=True)

    def _drop(self, span: Span) -> list[Span]:
        start, end = span
        if end <= start:
            return []
        if self.reuse_positions:
            now = (self.current(start), self.current(end))
            fresh = [now] if now[0] < now[1] else []
        else:
            fresh = _minus(span, self.dropped)
        self.dropped = sorted([*(d for d in self.dropped if not (start <= d[0] and d[1] <= end)), span])
        return fresh


def _minus(span: Span, holes: list[Span]) -> list[Span]:
    """What is left of a span between holes that lie inside it."""
    at, end = span
    out: list[Span] = []
    for a, b in holes:
        if a < end and b > at:
            out.append((at, a))
            at = b
    return [s for s in [*out, (at, end)] if s[0] < s[1]]
