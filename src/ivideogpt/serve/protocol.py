"""Messages of the websocket: those of a client as frozen dataclasses, frames as bytes. See docs/serving.md.

A malformed message raises `HangUp`, which ends the connection. A well-formed message that cannot be followed raises a
plain `UserError` later.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NoReturn

from ivideogpt.core.config import suggestion
from ivideogpt.core.errors import UserError
from ivideogpt.decoding.sampling import Sampling
from ivideogpt.worldmodel.world_model import WorldModel

MALFORMED, NO_TOKEN, FOREIGN, IDLE, OPENED_ELSEWHERE, TOO_MUCH = 4400, 4401, 4403, 4408, 4409, 4429
#: A close code of the websocket standard: the server failed.
FAILED = 1011

#: Whole numbers that a JavaScript number holds exactly.
_MOST = 2**53
_MOST_NUMBERS, _MOST_BRACKETS = 4096, 250


class HangUp(UserError):
    """Reason to end a connection: one sentence for the client, and a close code."""

    def __init__(self, code: int, sentence: str) -> None:
        """Store the close ``code`` beside the ``sentence``."""
        super().__init__(sentence)
        self.code = code


class Refused(UserError):
    """Refusal of an HTTP request: one sentence, and a status."""

    def __init__(self, status: int, sentence: str) -> None:
        """Store the ``status`` beside the ``sentence``."""
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sampling settings of a player's worlds.

    Attributes:
        temperature: 0.01 to 10.
        top_k: only the k likeliest tokens can be sampled; 0: all.
        greedy: take the likeliest token.
        seed: of the next world.
    """

    temperature: float = 1.0
    top_k: int = 0
    greedy: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UserError: a value is out of range.
        """
        for name, low, high in (("temperature", 0.01, 10), ("top_k", 0, 10**6), ("seed", 0, 2**31 - 1)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise UserError(f"{name} is {value}; expected {low} to {high}")

    @classmethod
    def of(cls, model: WorldModel) -> Settings:
        """Return the sampling rule of the checkpoint, with which a player begins."""
        sampling = model.config.sampling
        return cls(temperature=sampling.temperature, top_k=sampling.top_k or 0, greedy=sampling.greedy)

    @property
    def sampling(self) -> Sampling:
        """The sampling rule for a session."""
        return Sampling(temperature=self.temperature, top_k=self.top_k or None, greedy=self.greedy)


@dataclass(frozen=True, kw_only=True)
class Message:
    """Message of a client; ``request`` is the client's number for it, or None."""

    request: int | None = None


@dataclass(frozen=True, kw_only=True)
class Open(Message):
    """Open a new world at frame ``start`` of an episode; ``settings`` has those that change."""

    episode: str
    start: int = 0
    settings: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StepRequest(Message):
    """Imagine one frame of ``world`` ("all": of each); ``action`` in raw units, or "episode": the recorded one."""

    world: int | str = 0
    action: tuple[float, ...] | str | None = None


@dataclass(frozen=True, kw_only=True)
class Rewind(Message):
    """Forget all steps of ``world`` after ``step``."""

    step: int
    world: int | str = 0


@dataclass(frozen=True, kw_only=True)
class Fork(Message):
    """Open a second world that begins like the first."""


@dataclass(frozen=True, kw_only=True)
class Join(Message):
    """Close all worlds but ``keep``."""

    keep: int = 0


@dataclass(frozen=True, kw_only=True)
class Plan(Message):
    """Search actions that bring ``world`` to frame ``frame`` of an episode."""

    episode: str
    frame: int
    world: int = 0

    def __post_init__(self) -> None:
        """Check that one world is named.

        Raises:
            HangUp: ``world`` is no number.
        """
        if not isinstance(self.world, int):
            raise HangUp(MALFORMED, f"world of plan is {self.world!r}; expected a whole number")


@dataclass(frozen=True, kw_only=True)
class Cancel(Message):
    """Give up all searches asked for so far; it has no answer of its own."""


@dataclass(frozen=True, kw_only=True)
class ChangeSettings(Message):
    """Change some ``settings`` for the next steps."""

    settings: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Show(Message):
    """Send ``count`` frames of ``world`` again, from step ``first`` on."""

    first: int
    count: int
    world: int = 0

    def __post_init__(self) -> None:
        """Check that one world is named.

        Raises:
            HangUp: ``world`` is no number.
        """
        if not isinstance(self.world, int):
            raise HangUp(MALFORMED, f"world of show is {self.world!r}; expected a whole number")


@dataclass(frozen=True, kw_only=True)
class Truth(Message):
    """Send ``count`` true frames of the episode, from step ``first`` on."""

    first: int
    count: int


TYPES: Mapping[str, type[Message]] = {
    "open": Open,
    "step": StepRequest,
    "rewind": Rewind,
    "fork": Fork,
    "join": Join,
    "plan": Plan,
    "cancel": Cancel,
    "settings": ChangeSettings,
    "show": Show,
    "truth": Truth,
}


def parse(text: str | None, limit: int) -> Message:
    """Parse a message of a client.

    Args:
        text: of the message; None: it was binary.
        limit: most bytes of the message.

    Raises:
        HangUp: it is malformed.
    """
    if text is None:
        raise HangUp(MALFORMED, "a binary message came; expected JSON text")
    if len(text) > limit or len(text.encode(errors="replace")) > limit:
        raise HangUp(MALFORMED, f"a message of more than {limit} bytes came; send less at a time")
    if text.count("[") + text.count("{") > _MOST_BRACKETS:  # before the recursive parser reads it
        raise HangUp(MALFORMED, "a message came that is nested too deeply; expected a flat JSON object")
    try:
        values = json.loads(text, parse_constant=_no_constant)
    except HangUp:
        raise
    except ValueError:
        raise HangUp(MALFORMED, "a message came that is no JSON; expected a JSON object with a type") from None
    if not isinstance(values, dict):
        raise HangUp(MALFORMED, "a message came that is no JSON object; expected one with a type")
    kind = values.pop("type", None)
    if not isinstance(kind, str) or kind not in TYPES:
        raise HangUp(MALFORMED, f"type is {_shown(kind)}; {suggestion(str(kind)[:40], TYPES)}")
    return _read(kind, values)


def encode_frame(header: Mapping[str, object], picture: bytes) -> bytes:
    """Return a frame as bytes: length of the header (uint32, little endian), header as JSON, picture."""
    text = json.dumps(header, allow_nan=False, separators=(",", ":")).encode()
    return struct.pack("<I", len(text)) + text + picture


def unpack_frame(message: bytes) -> tuple[dict[str, Any], bytes]:
    """Return header and picture of a frame, as a client reads it."""
    (length,) = struct.unpack_from("<I", message)
    return json.loads(message[4 : 4 + length]), message[4 + length :]


def _read(kind: str, values: dict[str, Any]) -> Message:
    wanted = {entry.name for entry in fields(TYPES[kind])}
    for name in values:
        if name not in wanted:
            raise HangUp(MALFORMED, f"{kind} has an unknown {_shown(name)}; {suggestion(name[:40], wanted)}")
    if values.get("request", 0) is None:
        del values["request"]
    read = {name: _READERS[name](f"{name} of {kind}", value) for name, value in values.items()}
    try:
        return TYPES[kind](**read)
    except TypeError:
        missing = [
            name for name in ("episode", "frame", "step", "settings", "first", "count") if name in wanted - set(read)
        ]
        raise HangUp(MALFORMED, f"{kind} has no {missing[0]}; send one") from None


def _no_constant(name: str) -> NoReturn:
    raise HangUp(MALFORMED, f"a message holds {name}; expected finite numbers")


def _shown(value: object) -> str:
    if isinstance(value, (list, dict)):  # may be nested deeper than repr can follow
        return "a list" if isinstance(value, list) else "an object"
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _wrong(name: str, value: object, expected: str) -> NoReturn:
    raise HangUp(MALFORMED, f"{name} is {_shown(value)}; expected {expected}")


def _whole(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > _MOST:
        _wrong(name, value, "a whole number")
    return value


def _number(name: str, value: object) -> float:
    # Comparing first: a whole number of 400 digits has no float.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
        _wrong(name, value, "a finite number")
    return float(value)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or len(value) > 100:
        _wrong(name, value, "a text of at most 100 characters")
    return value


def _world(name: str, value: object) -> int | str:
    return "all" if value == "all" else _whole(name, value)


def _action(name: str, value: object) -> tuple[float, ...] | str | None:
    if value is None or value == "episode":
        return value if value is None else "episode"
    if not isinstance(value, list) or len(value) > _MOST_NUMBERS:
        _wrong(name, value, 'a list of numbers, "episode" or null')
    return tuple(_number(name, number) for number in value)


def _settings(name: str, value: object) -> dict[str, float]:
    if not isinstance(value, dict):
        _wrong(name, value, "an object")
    names = [entry.name for entry in fields(Settings)]
    for key, item in value.items():
        if key not in names:
            raise HangUp(MALFORMED, f"{name} has an unknown {_shown(key)}; {suggestion(key[:40], names)}")
        if key == "greedy" and not isinstance(item, bool):
            _wrong(key, item, "true or false")
        elif key == "temperature":
            _number(key, item)
        elif key != "greedy":
            _whole(key, item)
    return value


_READERS: Mapping[str, Callable[[str, object], Any]] = {
    "request": _whole,
    "episode": _text,
    "start": _whole,
    "frame": _whole,
    "settings": _settings,
    "world": _world,
    "action": _action,
    "step": _whole,
    "keep": _whole,
    "first": _whole,
    "count": _whole,
}


def finite(value: float | None) -> float | None:
    """Return the value, or None if it is not finite: JSON has no NaN."""
    return value if value is not None and math.isfinite(value) else None
