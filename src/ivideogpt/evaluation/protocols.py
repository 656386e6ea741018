"""The protocols of ``ivideogpt evaluate``: which clips of which episodes, and how many futures of each.

    protocol = settle(PROTOCOLS["bair"], model)      # nothing is left open
    protocol.deviations(clips=64, dataset="bair_robot_pushing")

A protocol is data; what is measured on the clips is the same in all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from ivideogpt.core.config import suggestion
from ivideogpt.core.errors import UserError
from ivideogpt.decoding.sampling import Sampling
from ivideogpt.worldmodel.world_model import WorldModel


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a model is measured.

    Attributes:
        name: on the command line.
        context_frames: frames the model is given; None: as many as the checkpoint takes.
        clip_frames: frames of a clip, context included; None: as in the clips the checkpoint was trained on.
        start: where in its episode a clip begins: at frame 0, or anywhere (a pure function of seed and episode).
        split: of the episodes; None: "test", or "val" where there is no "test".
        samples: futures of each clip.
        temperature: of the draw; None: what the checkpoint is shown at.
        top_k: only so many likeliest tokens can be drawn; None: all.
        resize: frames of another size are resized (and cropped to a square where the catalogue says so), as the
            official loader does; False: they are refused.
        datasets: names of the stores it was published on; empty: it is not a published protocol.
        clips: how many clips were published; None: unknown, or not published.
    """

    name: str
    context_frames: int | None = None
    clip_frames: int | None = None
    start: Literal["first", "random"] = "random"
    split: str | None = None
    samples: int = 1
    temperature: float | None = None
    top_k: int | None = 100
    resize: bool = False
    datasets: tuple[str, ...] = ()
    clips: int | None = None

    @property
    def horizon(self) -> int:
        """Frames to imagine, of a protocol that is settled."""
        assert self.clip_frames is not None and self.context_frames is not None, "not settled"
        return self.clip_frames - self.context_frames

    @property
    def sampling(self) -> Sampling:
        """How tokens are drawn, of a protocol that is settled."""
        assert self.temperature is not None, "not settled"
        return Sampling(temperature=self.temperature, top_k=self.top_k)

    def deviations(self, *, clips: int, dataset: str) -> tuple[str, ...]:
        """What keeps a result from being comparable with published ones, in words; empty: nothing that we can see.

        Args:
            clips: how many were measured.
            dataset: the name of the store.
        """
        published = PROTOCOLS.get(self.name)
        if published is None or not published.datasets:
            return ()
        found = []
        if dataset not in published.datasets:
            found.append(f"the episodes are from {dataset}, not from {' or '.join(published.datasets)}")
        pairs = {label: (getattr(published, label), getattr(self, label)) for label in _COMPARED}
        for label, (wanted, used) in (pairs | {"clips": (published.clips, clips)}).items():
            if wanted is not None and used != wanted:
                found.append(f"{label.replace('_', ' ')}: {used} instead of {wanted}")
        return tuple(found)


_COMPARED = ("context_frames", "clip_frames", "start", "split", "samples", "temperature", "top_k")

#: Every protocol by name.
#: Source: paper section 4.1 and the scripts and flags of thuml/iVideoGPT (evaluation of BAIR and RoboNet; for VP2 the
#: evaluation during training, which takes one sample); same.
PROTOCOLS: Mapping[str, Protocol] = {
    "bair": Protocol(
        name="bair",
        context_frames=1,
        clip_frames=16,
        start="first",
        split="test",
        samples=100,
        temperature=1.0,
        resize=True,
        datasets=("bair_robot_pushing",),
        clips=256,
    ),
    "robonet": Protocol(
        name="robonet",
        context_frames=2,
        clip_frames=12,
        start="first",
        split="test",
        samples=100,
        temperature=1.0,
        resize=True,
        datasets=("tfds_robonet",),
        clips=256,
    ),
    "vp2": Protocol(
        name="vp2",
        context_frames=2,
        clip_frames=12,
        split="val",
        temperature=1.0,
        resize=True,
        datasets=("vp2_robodesk", "vp2_robosuite"),
    ),
    "single": Protocol(name="single", resize=True),
}


def find_protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        UserError: there is none; the message names the closest one.
    """
    if name not in PROTOCOLS:
        raise UserError(f"there is no protocol {name!r}; {suggestion(name, PROTOCOLS)}")
    return PROTOCOLS[name]


def settle(protocol: Protocol, model: WorldModel, *, horizon: int | None = None, **changes: Any) -> Protocol:
    """The protocol for one model, with nothing left open but the split.

    Args:
        protocol: what is wanted.
        model: takes its own number of context frames, whatever the protocol says: see `held_out.check_fit`.
        horizon: frames to imagine instead of the protocol's.
        changes: other fields to set; None leaves one as it is, and a ``top_k`` of 0 means all tokens.

    Raises:
        UserError: a number is less than 1, or the clip has no frame to imagine.
    """
    protocol = replace(protocol, **{name: value for name, value in changes.items() if value is not None})
    known = model.context_frames
    frames = protocol.clip_frames or model.config.clip_frames or known + model.segment_frames()
    settled = replace(
        protocol,
        context_frames=known,
        clip_frames=frames if horizon is None else known + horizon,
        temperature=model.config.sampling.temperature if protocol.temperature is None else protocol.temperature,
        top_k=None if protocol.top_k == 0 else protocol.top_k,
    )
    for name in ("samples", "horizon"):
        if getattr(settled, name) < 1:
            raise UserError(f"{name} is {getattr(settled, name)}; expected at least 1")
    assert settled.sampling  # checks temperature and top-k
    return settled
