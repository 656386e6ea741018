"""Episodes from which worlds begin: those of the start, and uploads, which expire."""

from __future__ import annotations

import io
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from einops import rearrange
from PIL import Image

from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.serve.guard import Limits
from ivideogpt.serve.protocol import Refused
from ivideogpt.serve.uploads import resized_upload
from ivideogpt.serve.worlds import known_frames
from ivideogpt.worldmodel.world_model import WorldModel

# Frames are compared as small pictures of so many pixels a side.
_SIDE = 16
# So many frames of so many recordings are compared.
_FRAMES, _RECORDINGS = 16, 32
# An upload may be further from the recordings than they are from each other: by this factor, and by 1 of 100.
_FACTOR, _ALLOWANCE = 1.5, 0.01


@dataclass
class Entry:
    """An episode at the model's size, and when it was last used."""

    id: str
    name: str
    episode: Episode
    uploaded: bool
    last_used: float
    familiar: bool = True

    def about(self) -> dict[str, object]:
        """Return the entry as in ``/api/world``."""
        return {
            "id": self.id,
            "name": self.name,
            "frames": len(self.episode),
            "actions": self.episode.actions is not None,
            "uploaded": self.uploaded,
            "familiar": self.familiar,
        }


class Library:
    """All episodes, by id."""

    def __init__(self, model: WorldModel, episodes: Iterable[Episode], limits: Limits) -> None:
        """Convert the episodes to what the model takes.

        Raises:
            UserError: one of them is too short, or has other actions.
        """
        self._limits = limits
        self._entries: dict[str, Entry] = {}
        for index, episode in enumerate(episodes):
            name = _name(episode, index)
            self._entries[str(index)] = Entry(str(index), name, fitted(model, episode, name), False, time.monotonic())
        self.likeness = Likeness([entry.episode.frames for entry in self._entries.values()])

    def about(self) -> list[dict[str, object]]:
        """Return all episodes as in ``/api/world``."""
        return [entry.about() for entry in self._entries.values()]

    def get(self, identity: str) -> Episode:
        """Return an episode, and mark it as used now.

        Raises:
            Refused: with status 404; there is no episode of this id.
        """
        entry = self._entries.get(identity)
        if entry is None:
            raise Refused(404, f"there is no episode {identity[:40]!r}; it may have expired: upload it again")
        entry.last_used = time.monotonic()
        return entry.episode

    def check_room(self, more: int = 0) -> None:
        """Check that there is room for an upload of ``more`` bytes.

        Raises:
            Refused: with status 429; there is none.
        """
        uploads = [entry.episode.frames.nbytes for entry in self._entries.values() if entry.uploaded]
        if len(uploads) >= self._limits.uploads or sum(uploads) + more > self._limits.upload_memory:
            raise Refused(429, "there are as many uploads as the server keeps; wait until one expires")

    def add(self, name: str, episode: Episode) -> Entry:
        """Store an upload that was converted by `fitted`.

        Raises:
            Refused: there is no room for it.
        """
        self.check_room(episode.frames.nbytes)
        familiar = self.likeness.is_familiar(episode.frames)
        entry = Entry(f"u-{secrets.token_urlsafe(9)}", name, episode, True, time.monotonic(), familiar)
        self._entries[entry.id] = entry
        return entry

    def sweep(self, in_use: set[str]) -> None:
        """Drop uploads that were not used for the session time; those ``in_use`` stay."""
        now = time.monotonic()
        for entry in list(self._entries.values()):
            if entry.id in in_use:
                entry.last_used = now
            elif entry.uploaded and now - entry.last_used > self._limits.idle_seconds:
                del self._entries[entry.id]


def _name(episode: Episode, index: int) -> str:
    """Return what tells an episode from others: task and seed of a simulator, else its key."""
    task, seed = episode.meta.get("task"), episode.meta.get("seed")
    parts = [task.replace("-", " ")] if isinstance(task, str) and task else []
    parts += [f"seed {seed}"] if isinstance(seed, int) else []
    return ", ".join(parts) or episode.key or f"episode {index}"


def fitted(model: WorldModel, episode: Episode, name: str) -> Episode:
    """Return the episode as the model takes it: at its size, and every ``frame_stride``-th frame.

    Raises:
        UserError: too few frames, or actions of another dimension.
    """
    size, stride, dim = model.resolution, model.config.frame_stride, model.action_dim
    frames = np.stack([resized_upload(frame, size) for frame in episode.frames[::stride]])
    if len(frames) < known_frames(model):
        every = f" at every {stride} of its {len(episode)}" if stride > 1 else ""
        raise UserError(
            f"{name} has {len(frames)} frames{every}; expected at least {known_frames(model)} to start from"
        )
    actions = episode.actions
    if actions is not None and dim and actions.shape[1] != dim:
        raise UserError(f"{name} has actions of {actions.shape[1]} numbers; this model takes {dim}")
    # Source: thuml/iVideoGPT, which also takes every n-th action without adding them up; same.
    actions = None if actions is None or not dim else actions[::stride].astype(np.float32)
    return Episode(frames=frames, actions=actions, key=name)


def png(frame: np.ndarray) -> bytes:
    """Return a frame uint8 ``[h w 3]`` as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return buffer.getvalue()


class Likeness:
    """Distances to a set of recordings.

    A distance is the mean over the frames of an episode of the mean absolute difference, 0 to 1, to the nearest frame
    of any recording.
    """

    def __init__(self, recordings: Sequence[np.ndarray]) -> None:
        """Keep some frames of each recording.

        Args:
            recordings: frames uint8 ``[t s s 3]`` of each, at the size of the model.
        """
        self._thumbnails = [_thumbnails(frames) for frames in recordings[:_RECORDINGS]]
        others = [self._thumbnails[:index] + self._thumbnails[index + 1 :] for index in range(len(self._thumbnails))]
        distances = [
            _distance(recording, rest) for recording, rest in zip(self._thumbnails, others, strict=True) if rest
        ]
        #: Largest distance of an episode of the same world; None: fewer than two recordings tell nothing.
        self.limit = _FACTOR * max(distances) + _ALLOWANCE if distances else None

    def distance(self, frames: np.ndarray) -> float:
        """Return the distance of frames uint8 ``[t s s 3]``; 0 where there are no recordings."""
        return _distance(_thumbnails(frames), self._thumbnails) if self._thumbnails else 0.0

    def is_familiar(self, frames: np.ndarray) -> bool:
        """Return False where frames uint8 ``[t s s 3]`` show another world than the recordings."""
        return self.limit is None or self.distance(frames) <= self.limit


def _thumbnails(frames: np.ndarray) -> np.ndarray:
    """Return float32 ``[n d]`` in [0, 1] of up to ``_FRAMES`` frames, the first one included."""
    chosen = frames[np.linspace(0, len(frames) - 1, min(len(frames), _FRAMES)).round().astype(int)]
    small = [Image.fromarray(frame).resize((_SIDE, _SIDE), Image.Resampling.BOX) for frame in chosen]
    return rearrange(np.stack([np.asarray(picture, np.float32) / 255 for picture in small]), "n h w c -> n (h w c)")


def _distance(frames: np.ndarray, recordings: Sequence[np.ndarray]) -> float:
    nearest = [min(float(np.abs(frame - recording).mean(1).min()) for recording in recordings) for frame in frames]
    return float(np.mean(nearest))
