"""What a guest may do with the user's terminal: colours, cursor, full-screen programs; no more.

A terminal obeys whatever is written to it. Some of that reaches beyond the screen: the clipboard
(OSC 52), keys that type what the guest wants (DCS, APC), and questions whose answers the terminal
types as if the user had (title, attributes, settings) - into this session, or, when the session
ends in between, into the user's own shell. So nothing passes that is not on a list here. What is
left out is counted; text always passes.

References: ECMA-48; xterm, `ctlseqs.txt`.
"""

import re
from collections.abc import Iterator
from typing import Final

from teuthis.flows import FLOWS, Counters

_FLOW: Final = "client.terminal"
_SEQUENCE_MAX: Final = FLOWS[_FLOW].values["sequence_max"]

# Printable ASCII, BEL, BS, HT, LF, VT, FF, CR, SO, SI; valid UTF-8 but for C1 controls, which some
# terminals obey in that form too.
_TEXT: Final = re.compile(
    rb"(?:[\x20-\x7e\x07-\x0f]"
    rb"|\xc2[\xa0-\xbf]|[\xc3-\xdf][\x80-\xbf]"
    rb"|\xe0[\xa0-\xbf][\x80-\xbf]|\xed[\x80-\x9f][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]{2}"
    rb"|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}|\xf4[\x80-\x8f][\x80-\xbf]{2})+"
)
_BEGUN_CHARACTER: Final = re.compile(
    rb"[\xc2-\xdf]|[\xe0-\xef][\x80-\xbf]?|[\xf0-\xf4][\x80-\xbf]{0,2}"
)
_REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}".encode()

_ESCAPE: Final = 0x1B
_CSI: Final = re.compile(rb"\x1b\[[0-?]{0,128}[ -/]{0,4}[@-~]")
_BEGUN_CSI: Final = re.compile(rb"\x1b\[[0-?]{0,128}[ -/]{0,4}")
_STRINGS: Final = b"]PX^_k"
"""OSC, DCS, SOS, PM, APC, and the title as screen has it."""
_STRING: Final = re.compile(
    rb"\x1b(.)([^\x07\x18\x1a\x1b]*)(\x07|\x18|\x1a|\x1b\\|\x1b)", re.DOTALL
)
_STRING_END: Final = re.compile(rb"[\x07\x18\x1a]|\x1b\\?")
_SHORT: Final = re.compile(rb"\x1b[ -/]{0,4}[0-~]")
_BEGUN_SHORT: Final = re.compile(rb"\x1b[ -/]{0,4}")

# Saving and restoring the cursor, keypad modes, line feeds, tab stops, reset; character sets; line
# sizes and the alignment pattern.
_GOOD_SHORT: Final = re.compile(rb"\x1b(?:[78=>DEHMcno|}~]|[()*+\-./][0-~]|#[34568])")
# Modes: cursor keys, columns, colours, origin, wrapping, the cursor, other screens, keypad,
# margins; mouse and focus; keys with Meta; pasting; drawing at once. Not those that make a terminal
# type by itself (its size, its theme) or send each key as something else (win32-input-mode).
_MODE: Final = rb"(?:[135678]|12|25|4[057]|6[679]|100[02-7]|101[56]|103[4-69]|104[789]|2004|2026)"
# Parameters, intermediates and final byte of what moves, erases, scrolls, colours, sets modes.
_GOOD_CSI: Final = re.compile(
    rb"[0-9;:]*[@-MPXZ`abdefghlmrsu]"
    rb"|[0-9]*[ST]"  # scroll; with more parameters T makes xterm wait for an answer
    rb"|6n"  # where is the cursor: line editors ask, and the answer is but two numbers
    rb"|2[23](?:;[012])?t"  # keeps and restores the title
    rb"|\?" + _MODE + rb"(?:;" + _MODE + rb")*[hlrs]"
    rb"|\?[0-9;]*[JK]"
    rb"|>[0-9;]*m"  # how keys with modifiers are sent
    rb"|[0-9]* q"  # the cursor's shape
    rb"|!p"
)
# The title; colours, when they are set or reset and not asked for.
_GOOD_OSC: Final = re.compile(
    rb"(?:[012];[^\x00-\x1f]{0,256}|(?:4|1[0-9]|104|11[0-9])(?:;[0-9A-Za-z#:/,.]{1,64})*)"
)

RESET: Final = (
    b"\x1b[!p\x1b[?1049l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1004l\x1b[?1005l\x1b[?1006l"
    b"\x1b[?1015l\x1b[?1016l\x1b[?2004l\x1b[?2026l\x1b[?1l\x1b[?5l\x1b[?69l"
    b"\x1b[>4;0m\x1b[?7h\x1b[?25h\x1b>\x1b(B\x1b[0m"
)
"""Takes back what a full-screen program that was cut off may have left: other screen, mouse, …"""


class Filter:
    """Passes what may be shown, in whatever pieces it comes."""

    def __init__(self, counters: Counters) -> None:
        """`counters` count the bytes that came and each thing that was left out."""
        self._counters = counters
        self._rest = b""
        """The beginning of something whose end has not come yet."""
        self._in_string = False
        """Inside of a string too long to keep: nothing shows until its end."""

    def feed(self, data: bytes) -> bytes:
        """What may be shown of `data` and of what was kept of earlier data."""
        self._counters.accept(_FLOW, len(data))
        data = self._rest + data
        self._rest = b""
        return b"".join(self._pieces(data))

    def _pieces(self, data: bytes) -> Iterator[bytes]:
        at = 0
        while at < len(data):
            if self._in_string:
                end = _STRING_END.search(data, at)
                if end is None:
                    return
                at = end.end()
                if end[0] == b"\x1b":  # its end, or something new
                    at -= 1
                    if at + 1 == len(data):
                        self._rest = data[at:]
                        return
                self._in_string = False
            elif text := _TEXT.match(data, at):
                yield text[0]
                at = text.end()
            elif data[at] == _ESCAPE:
                passed, after = self._escape(data, at)
                if after is None:
                    self._rest = data[at:]
                    return
                yield passed
                at = after
            elif data[at] < 0x80:
                at += self._left_out("malformed")
            elif _BEGUN_CHARACTER.fullmatch(data, at):
                self._rest = data[at:]
                return
            else:
                yield _REPLACEMENT
                at += self._left_out("malformed")

    def _escape(self, data: bytes, at: int) -> tuple[bytes, int | None]:
        """What passes of the sequence at `at`, and where it ends; None: more must come."""
        kind = data[at + 1 : at + 2]
        if kind == b"[":
            whole, begun = _CSI.match(data, at), _BEGUN_CSI
            good = whole and _GOOD_CSI.fullmatch(data, at + 2, whole.end())
        elif kind and kind in _STRINGS:
            return self._string(data, at)
        else:
            whole, begun = _SHORT.match(data, at), _BEGUN_SHORT
            good = whole and _GOOD_SHORT.fullmatch(whole[0])
        if whole and good:
            return whole[0], whole.end()
        if whole:
            return b"", at + len(whole[0]) * self._left_out("forbidden")
        if begun.fullmatch(data, at):
            return b"", None
        return b"", at + self._left_out("malformed")  # what follows is text

    def _string(self, data: bytes, at: int) -> tuple[bytes, int | None]:
        whole = _STRING.match(data, at)
        if whole is None:
            if len(data) - at <= _SEQUENCE_MAX:
                return b"", None
            self._in_string = True
            return b"", at + (len(data) - at) * self._left_out("malformed")
        if whole[3] == b"\x1b" and whole.end() == len(data):
            return b"", None  # the first half of its end, perhaps
        if whole[1] == b"]" and whole[3] in (b"\x07", b"\x1b\\") and self._good_osc(whole[2]):
            return whole[0], whole.end()
        self._left_out("forbidden")
        # An escape that is not the end of the string begins something new.
        return b"", whole.end() - (whole[3] == b"\x1b")

    @staticmethod
    def _good_osc(content: bytes) -> bool:
        return bool(_GOOD_OSC.fullmatch(content)) and _TEXT.fullmatch(content) is not None

    def _left_out(self, kind: str) -> int:
        """Counts one thing that does not pass; 1."""
        self._counters.reject(_FLOW, kind)
        return 1
