"""Messages of a client, good and bad, and frames as bytes."""

import json

import pytest

from ivideogpt.core.errors import UserError
from ivideogpt.serve.protocol import (
    MALFORMED,
    ChangeSettings,
    Fork,
    HangUp,
    Join,
    Open,
    Rewind,
    Settings,
    Show,
    StepRequest,
    Truth,
    encode_frame,
    finite,
    parse,
    unpack_frame,
)

GOOD = {
    '{"type": "open", "episode": "0"}': Open(episode="0"),
    '{"type": "open", "episode": "u-1", "start": 3, "settings": {"seed": 1, "greedy": false}}': Open(
        episode="u-1", start=3, settings={"seed": 1, "greedy": False}
    ),
    '{"type": "step", "request": 7, "world": 1, "action": [256, 2.5]}': StepRequest(
        request=7, world=1, action=(256.0, 2.5)
    ),
    '{"type": "step", "world": "all", "action": "episode"}': StepRequest(world="all", action="episode"),
    '{"type": "step", "action": null, "request": null}': StepRequest(),
    '{"type": "rewind", "world": "all", "step": 3}': Rewind(world="all", step=3),
    '{"type": "fork"}': Fork(),
    '{"type": "join", "keep": 1}': Join(keep=1),
    '{"type": "settings", "settings": {"temperature": 1}}': ChangeSettings(settings={"temperature": 1}),
    '{"type": "show", "first": -1, "count": 2}': Show(first=-1, count=2),
    '{"type": "truth", "first": 1, "count": 64}': Truth(first=1, count=64),
}

#: What has not the form of a message, and a part of the sentence it is refused with.
BAD = {
    "nothing": ("", "is no JSON"),
    "half": ('{"type": "fork"', "is no JSON"),
    "text": ("hello", "is no JSON"),
    "a list": ("[1]", "is no JSON object"),
    "null": ("null", "is no JSON object"),
    "no type": ("{}", "type is None"),
    "a type that is not there": ('{"type": "stpe"}', "did you mean 'step'?"),
    "a type of another kind": ('{"type": ["step"]}', "type is a list"),
    "an unknown key": ('{"type": "fork", "wrold": 1}', "fork has an unknown 'wrold'"),
    "a missing key": ('{"type": "open"}', "open has no episode"),
    "a missing count": ('{"type": "show", "first": 1}', "show has no count"),
    "text for a number": ('{"type": "rewind", "step": "3"}', "step of rewind is '3'; expected a whole number"),
    "a fraction": ('{"type": "rewind", "step": 3.5}', "expected a whole number"),
    "true for a number": ('{"type": "rewind", "step": true}', "expected a whole number"),
    "a number for a text": ('{"type": "open", "episode": 0}', "expected a text"),
    "a long text": (json.dumps({"type": "open", "episode": "x" * 200}), "at most 100 characters"),
    "an object for an action": ('{"type": "step", "action": {}}', "action of step is an object"),
    "text in an action": ('{"type": "step", "action": ["1"]}', "expected a finite number"),
    "null in an action": ('{"type": "step", "action": [null]}', "expected a finite number"),
    "true in an action": ('{"type": "step", "action": [true]}', "expected a finite number"),
    "NaN": ('{"type": "step", "action": [NaN, 1]}', "holds NaN"),
    "infinity": ('{"type": "step", "action": [1, -Infinity]}', "holds -Infinity"),
    "infinity by overflow": ('{"type": "step", "action": [1e999]}', "is inf; expected a finite number"),
    "a huge whole number": ('{"type": "step", "action": [' + "9" * 400 + "]}", "expected a finite number"),
    "a huger one": ('{"type": "step", "request": ' + "9" * 5000 + "}", "a message came that is no JSON"),
    "a huge step": ('{"type": "rewind", "step": 99999999999999999999}', "expected a whole number"),
    "deep lists": ('{"type": "step", "action": ' + "[" * 4000 + "]" * 4000 + "}", "nested too deeply"),
    "less deep lists": ('{"type": ' + "[" * 200 + "]" * 200 + "}", "type is a list"),
    "deep objects": ('{"a":' * 1200 + "1" + "}" * 1200, "nested too deeply"),
    "settings of another kind": ('{"type": "settings", "settings": [1]}', "settings of settings is a list"),
    "an unknown setting": ('{"type": "settings", "settings": {"top_p": 1}}', "unknown 'top_p'"),
    "a setting of another kind": ('{"type": "settings", "settings": {"greedy": 1}}', "expected true or false"),
    "too long": ('{"type": "fork"}' + " " * 9000, "more than 8192 bytes"),
    "too long in bytes": ('{"type": "open", "episode": "' + "ü" * 4500 + '"}', "more than 8192 bytes"),
    "binary": (None, "binary message"),
}


@pytest.mark.parametrize("text", GOOD)
def test_every_message_is_read(text):
    assert parse(text, 8192) == GOOD[text]


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_message_is_one_sentence_and_ends_the_connection(name):
    text, sentence = BAD[name]
    with pytest.raises(HangUp) as refused:
        parse(text, 8192)
    said = str(refused.value)
    assert sentence in said and len(said) < 200 and "\n" not in said
    assert refused.value.code == MALFORMED


@pytest.mark.parametrize(
    "changes", [{"temperature": 0}, {"temperature": 11}, {"top_k": -1}, {"seed": 2**31}, {"top_k": 10**6 + 1}]
)
def test_settings_out_of_range_are_one_sentence(changes):
    with pytest.raises(UserError, match="expected"):
        Settings(**changes)


def test_settings_become_sampling():
    sampling = Settings(temperature=0.5, top_k=3, greedy=False).sampling
    assert (sampling.temperature, sampling.top_k, sampling.greedy) == (0.5, 3, False)
    assert Settings().sampling.top_k is None and not Settings().sampling.greedy


def test_a_frame_comes_back_as_it_went():
    message = encode_frame({"type": "frame", "psnr": None}, b"\x01\x02")
    assert int.from_bytes(message[:4], "little") == len(message) - 4 - 2
    assert unpack_frame(message) == ({"type": "frame", "psnr": None}, b"\x01\x02")
    assert finite(float("nan")) is None and finite(1.5) == 1.5
