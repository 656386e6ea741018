"""Success classifier: the probability that a frame shows a solved task, with the threshold from which it counts.

    classifier = SuccessClassifier.from_pretrained("classifiers/pusht", task="pusht", resolution=64)
    classifier.succeeds(frames)                         # uint8 [b h w 3] -> bool [b]
    ImaginedVectorEnv(..., success=classifier.condition, terminate=classifier.condition)

A checkpoint holds the network and what was measured on held-out episodes, real and imagined: print `summary` wherever
its judgement is used.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ivideogpt.core.checkpoint import load_tensors, save_tensors, step_folders
from ivideogpt.core.config import check_at_least, from_dict, load_json, save_json, to_dict
from ivideogpt.core.errors import UserError
from ivideogpt.core.files import replace_folder
from ivideogpt.core.reading import local_path, reason
from ivideogpt.models.blocks import Downsample, ResnetBlock

#: Folder of the measured classifier in the folder of its training.
CLASSIFIER_FOLDER = "classifier"
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
# Side of the grid that the last level has at most.
_GRID = 8
_ROWS_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """Sizes of a `SuccessClassifier`.

    Attributes:
        resolution: side of a frame in px, a power of 2 times at most 8.
        width: channels of the first level; each further level has twice as many, up to four times.
        hidden: units of the last hidden layer.
        words: rows of the table of hashed words; 0: the classifier reads no instruction.
        readout: "whole" reads all positions of the last level together; "places" judges each position alone, and one
            that shows success is enough. "places" learns from far fewer episodes where the place of one object decides.
    """

    resolution: int = 64
    width: int = 16
    hidden: int = 128
    words: int = 0
    readout: Literal["whole", "places"] = "whole"

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            UserError: one is out of range.
        """
        check_at_least(self, resolution=4, width=8, hidden=1, words=0)
        if self.width % 8 or self.grid * 2**self.levels != self.resolution:
            raise UserError(
                f"resolution is {self.resolution} and width is {self.width}; expected a resolution that halves to at "
                f"most {_GRID} px, such as 64, and a width that is a multiple of 8"
            )

    @property
    def levels(self) -> int:
        """Halvings of the frame until at most 8 x 8 positions are left."""
        return next(n for n in range(20) if self.resolution // 2**n <= _GRID)

    @property
    def grid(self) -> int:
        """Side of the last level."""
        return self.resolution // 2**self.levels


@dataclass(frozen=True, kw_only=True)
class ClassifierScore:
    """Agreement of a classifier with the labels of some frames.

    Attributes:
        precision: share of the frames counted as success that are; NaN (null in JSON) where none is counted.
        recall: share of the successes that are counted; None where there is no success.
        auc: probability that a success scores higher than another frame; None where there is no pair.
        frames, successes: numbers of frames, and of successes among them.
    """

    precision: float | None
    recall: float | None
    auc: float | None
    frames: int
    successes: int

    def __str__(self) -> str:
        """Return the numbers as words."""

        def text(value: float | None) -> str:
            return "-" if value is None else f"{value:.3f}"

        counts = f"{self.frames:,} frames, {self.successes:,} of them successes"
        return f"precision {text(self.precision)}, recall {text(self.recall)}, AUC {text(self.auc)} ({counts})"


@dataclass(frozen=True, kw_only=True)
class ClassifierFacts:
    """Facts about a trained classifier.

    Attributes:
        task: name of the task or dataset.
        labels: the frames that count as success in its data, in words.
        data, held_out: names of the episodes for training, and for threshold and measurement.
        threshold: probability from which a frame counts as success.
        target_precision: least precision that the threshold was chosen for.
        reached_precision: True where the lower end of the 95 % interval of the precision reached it on the calibration
            half of the held-out episodes.
        real: score on the other half.
        imagined: score on frames that ``world`` imagined for the same actions; None: not measured.
        world: name of the world model.
    """

    task: str = ""
    labels: str = ""
    data: str = ""
    held_out: str = ""
    threshold: float = 0.5
    target_precision: float = 0.95
    reached_precision: bool = False
    real: ClassifierScore | None = None
    imagined: ClassifierScore | None = None
    world: str = ""


@dataclass(frozen=True, kw_only=True)
class _Content:
    network: ClassifierConfig = field(default_factory=ClassifierConfig)
    facts: ClassifierFacts = field(default_factory=ClassifierFacts)


class SuccessClassifier(nn.Module):
    """A small residual network on one frame, optionally conditioned on the words of an instruction.

    Source: the per-task success classifiers of VP2 (convolutions, then two linear layers); ours is smaller, halves the
    frame, and comes with a measured threshold.
    """

    def __init__(self, config: ClassifierConfig, facts: ClassifierFacts | None = None) -> None:
        """Create the layers from PyTorch's random numbers."""
        super().__init__()
        self.config, self.facts = config, facts or ClassifierFacts()
        self.stem = nn.Conv2d(3, config.width, 3, padding=1)
        layers: list[nn.Module] = []
        width = config.width
        for _ in range(config.levels):
            wider = min(2 * width, 4 * config.width)
            layers += [Downsample(width), ResnetBlock(width, wider, 8)]
            width = wider
        self.layers = nn.Sequential(*layers)
        self.hidden: nn.Module
        if config.readout == "places":
            self.hidden = nn.Conv2d(width, config.hidden, 1)
            self.places = nn.Parameter(0.1 * torch.randn(config.hidden, config.grid, config.grid))
        else:
            self.hidden = nn.Linear(width * config.grid**2, config.hidden)
        self.words = nn.EmbeddingBag(config.words, 2 * config.hidden, mode="mean") if config.words else None
        self.head = nn.Linear(config.hidden, 1)
        if config.readout == "places":  # so that the smooth maximum of all positions begins near 0
            nn.init.constant_(self.head.bias, -2 * math.log(config.grid))

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.head.weight.device

    def forward(self, frames: Tensor, instructions: Sequence[str] | None = None) -> Tensor:
        """Compute the logit of success, float ``[b]``.

        Args:
            frames: float ``[b c h w]`` in [0, 1].
            instructions: one a frame, for a classifier that reads them.

        Raises:
            UserError: frames have another size, or instructions are missing or not expected.
        """
        side = self.config.resolution
        if frames.shape[1:] != (3, side, side):
            raise UserError(
                f"frames have shape {list(frames.shape)}; the success classifier takes [b 3 {side} {side}]: resize "
                "them, or train it on frames of their size"
            )
        if (self.words is None) == (instructions is not None) or len(instructions or frames) != len(frames):
            expected = "no instructions" if self.words is None else f"{len(frames)} instructions, one a frame"
            raise UserError(
                f"the success classifier got {len(instructions or ())} instructions for {len(frames)} frames; "
                f"expected {expected}"
            )
        x = self.layers(self.stem((frames - 0.5).contiguous(memory_format=torch.channels_last)))
        is_of_places = self.config.readout == "places"
        if is_of_places:
            x = rearrange(F.silu(self.hidden(x) + self.places), "b d h w -> b (h w) d")
        else:
            x = F.silu(self.hidden(rearrange(x, "b c h w -> b 1 (c h w)")))
        if self.words is not None:
            scale, shift = self.words(*self._word_ids(instructions or ()))[:, None].chunk(2, dim=2)
            x = x * (1 + scale) + shift
            x = F.silu(x) if is_of_places else x
        # the smooth maximum of one position is its value
        return self.head(x)[:, :, 0].logsumexp(dim=1)

    def _word_ids(self, instructions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the hashes of all words int64 ``[n]``, and where each instruction begins, int64 ``[b]``."""
        words = [text.lower().split() for text in instructions]
        hashed = [zlib.crc32(word.encode()) % self.config.words for row in words for word in row]
        starts = np.cumsum([0, *map(len, words)])[: len(words)]
        return torch.tensor(hashed, dtype=torch.long, device=self.device), torch.from_numpy(starts).to(self.device)

    # Judgement

    @torch.no_grad()
    def probability(self, frames: np.ndarray, instructions: Sequence[str] | None = None) -> np.ndarray:
        """Return the probability of success of frames uint8 ``[b h w 3]``, float32 ``[b]``."""
        parts = []
        for first in range(0, len(frames), _ROWS_AT_ONCE):
            rows = slice(first, first + _ROWS_AT_ONCE)
            pixels = rearrange(torch.from_numpy(frames[rows]).to(self.device), "b h w c -> b c h w").float() / 255
            words = None if instructions is None else instructions[rows]
            parts.append(self(pixels, words).sigmoid().float().cpu().numpy())
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def succeeds(self, frames: np.ndarray, instructions: Sequence[str] | None = None) -> np.ndarray:
        """Return True for frames uint8 ``[b h w 3]`` that count as success, bool ``[b]``."""
        return self.probability(frames, instructions) >= self.facts.threshold

    def condition(self, frames: np.ndarray, actions: np.ndarray, next_frames: np.ndarray) -> np.ndarray:
        """Return True for transitions to a success, bool ``[b]``; a `Condition` for environments."""
        return self.succeeds(next_frames)

    def summary(self) -> str:
        """Return task, threshold and measured scores, one line each."""
        facts = self.facts
        short = "" if facts.reached_precision else "; no threshold reached it on the calibration episodes"
        lines = [
            f"success classifier of {facts.task}: {facts.labels}",
            f"  threshold {facts.threshold:.3f} for a precision of at least {facts.target_precision}{short}",
            f"  real held-out frames: {facts.real or 'not measured'}",
            f"  frames imagined by {facts.world or 'a world model'}: {facts.imagined or 'not measured'}",
        ]
        return "\n".join(lines)

    def scores(self) -> dict[str, Any]:
        """Return threshold, the least precision that it was chosen for, and measured precision and recall, as JSON."""
        facts = self.facts
        values: dict[str, Any] = {"threshold": facts.threshold, "target_precision": facts.target_precision}
        for where, measured in (("real", facts.real), ("imagined", facts.imagined)):
            values[where] = measured and {"precision": measured.precision, "recall": measured.recall}
        return values

    # Files

    def save_pretrained(self, folder: Path | str) -> None:
        """Write weights and config.json into a folder, which appears whole or not at all."""
        content = _Content(network=self.config, facts=self.facts)

        def write(place: Path) -> None:
            save_tensors(place / _WEIGHTS, self.state_dict())
            save_json(place / _CONFIG, to_dict(content))

        replace_folder(folder, write)

    @classmethod
    def from_pretrained(
        cls, folder: Path | str, *, task: str | None = None, resolution: int | None = None
    ) -> SuccessClassifier:
        """Load a classifier, in evaluation mode.

        Args:
            folder: of ``save_pretrained``, or of a training.
            task: that it must be of; None: any.
            resolution: side of the frames that it will see; None: any.

        Raises:
            UserError: there is none, it is damaged, or it is of another task or frame size.
        """
        root = local_path(folder)
        steps = [step / CLASSIFIER_FOLDER for _, step in reversed(step_folders(root))]
        places = [place for place in (root, root / CLASSIFIER_FOLDER) if (place / _WEIGHTS).is_file()]
        if not places:
            advice = "let its training end" if steps else "train one: ivideogpt train-classifier"
            raise UserError(f"{folder} holds no success classifier; {advice}, and give its folder")
        path = places[0] / _CONFIG
        content = from_dict(_Content, load_json(path), where=str(path))
        classifier = cls(content.network, content.facts)
        try:
            classifier.load_state_dict(load_tensors(places[0] / _WEIGHTS))
        except RuntimeError as error:
            raise UserError(f"the weights of {places[0]} do not fit its {_CONFIG} ({reason(error)})") from error
        own = content.facts.task
        if task is not None and own != task:
            raise UserError(f"the success classifier {folder} is of the task {own!r}, not {task!r}; give one of {task}")
        if resolution not in (None, content.network.resolution):
            raise UserError(
                f"the success classifier {folder} takes frames of {content.network.resolution} px, and these have "
                f"{resolution}; train one on frames of that size"
            )
        return classifier.eval().requires_grad_(False)

    def with_facts(self, **changes: object) -> SuccessClassifier:
        """Set some of the facts; return this classifier."""
        self.facts = replace(self.facts, **changes)  # type: ignore[arg-type]
        return self
