"""Protocols of ``ivideogpt evaluate``: the clips, and the number of futures of each.

    protocol = settle(PROTOCOLS["bair"], model)      # every field is set
    protocol.deviations(clips=64, dataset="bair_robot_pushing")

A protocol is data: a new one is one more entry of `PROTOCOLS`. The figures are the same for all of them.
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
    """Settings of a measurement.

    Attributes:
        name: on the command line.
        context_frames: of a clip; None: as many as the checkpoint takes.
        clip_frames: frames of a clip, context included; None: as in the clips the checkpoint was trained on.
        start: first frame of a clip: frame 0 of the episode, a random one (a pure function of seed and episode), or the
            one that the simulator chooses.
        split: of the episodes; None: "test", or "val" where there is no "test".
        samples: futures of each clip.
        temperature: of the draw; None: the checkpoint's.
        top_k: draw from so many likeliest tokens; None: all.
        resize: frames of another size are resized (and cropped to a square where the catalogue says so), as the
            official loader does; False: they are refused.
        datasets: names of the published datasets; empty: it is not a published protocol.
        clips: published number of clips; None: unknown, or not published.
        simulator: records fresh episodes, see `held_out.SIMULATORS`; None: the clips are read from a store.
    """

    name: str
    context_frames: int | None = None
    clip_frames: int | None = None
    start: Literal["first", "random", "contact"] = "random"
    split: str | None = None
    samples: int = 1
    temperature: float | None = None
    top_k: int | None = 100
    resize: bool = False
    datasets: tuple[str, ...] = ()
    clips: int | None = None
    simulator: str | None = None

    @property
    def horizon(self) -> int:
        """Frames to imagine; the protocol must be settled."""
        assert self.clip_frames is not None and self.context_frames is not None, "not settled"
        return self.clip_frames - self.context_frames

    @property
    def sampling(self) -> Sampling:
        """Sampling of the tokens; the protocol must be settled."""
        assert self.temperature is not None, "not settled"
        return Sampling(temperature=self.temperature, top_k=self.top_k)

    def deviations(self, *, clips: int, dataset: str) -> tuple[str, ...]:
        """List the differences from the published protocol, in words; empty: the results compare.

        Args:
            clips: number of measured clips.
            dataset: the name of the store.
        """
        published = PROTOCOLS.get(self.name)
        if published is None or not published.datasets:
            return ()
        differences = []
        if dataset not in published.datasets:
            differences.append(f"the episodes are from {dataset}, not from {' or '.join(published.datasets)}")
        pairs = {label: (getattr(published, label), getattr(self, label)) for label in _COMPARED}
        for label, (expected, used) in (pairs | {"clips": (published.clips, clips)}).items():
            if expected is not None and used != expected:
                differences.append(f"{label.replace('_', ' ')}: {used} instead of {expected}")
        return tuple(differences)


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
    "pusht": Protocol(name="pusht", context_frames=2, clip_frames=16, start="contact", split="test", simulator="pusht"),
}


def find_protocol(name: str) -> Protocol:
    """Return the protocol of that name.

    Raises:
        UserError: there is none; the message names the closest one.
    """
    if name not in PROTOCOLS:
        raise UserError(f"there is no protocol {name!r}; {suggestion(name, PROTOCOLS)}")
    return PROTOCOLS[name]


def settle(protocol: Protocol, model: WorldModel, *, horizon: int | None = None, **changes: Any) -> Protocol:
    """Set every field of a protocol for one model, except the split.

    Args:
        protocol: of `PROTOCOLS`.
        model: its own number of context frames is taken, whatever the protocol says: see `held_out.check_fit`.
        horizon: frames to imagine instead of the protocol's.
        changes: other fields to set; None leaves one as it is, and a ``top_k`` of 0 means all tokens.

    Raises:
        UserError: a number is less than 1, or the clip has no frame to imagine.
    """
    protocol = replace(protocol, **{name: value for name, value in changes.items() if value is not None})
    count = model.context_frames
    frames = protocol.clip_frames or model.config.clip_frames or count + model.segment_frames()
    settled = replace(
        protocol,
        context_frames=count,
        clip_frames=frames if horizon is None else count + horizon,
        temperature=model.config.sampling.temperature if protocol.temperature is None else protocol.temperature,
        top_k=None if protocol.top_k == 0 else protocol.top_k,
    )
    for name in ("samples", "horizon"):
        if getattr(settled, name) < 1:
            raise UserError(f"{name} is {getattr(settled, name)}; expected at least 1")
    assert settled.sampling  # checks temperature and top-k
    return settled
