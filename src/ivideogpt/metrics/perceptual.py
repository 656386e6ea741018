"""Perceptual distance of two pictures: LPIPS where a user has its weights, else ST-LPIPS.

Both compare the features of a network at five depths. ST-LPIPS is another network, trained on the same human
judgements; its weights install with the extra ``evaluation``. Their numbers do not compare, so every number is shown
with the ``name`` of its distance.
"""

from __future__ import annotations

import os
import re
from contextlib import nullcontext
from pathlib import Path
from typing import get_args

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ivideogpt.core.errors import UserError
from ivideogpt.metrics.backbones import Network, build_trunk
from ivideogpt.metrics.checks import check_floats, check_unit_range
from ivideogpt.metrics.pretrained import fill, packaged_file, read_weights

#: The environment variable that names a user's LPIPS weights.
WEIGHTS_VARIABLE = "IVIDEOGPT_LPIPS"

# Shift and scale of LPIPS for colours in [-1, 1]: the statistics of ImageNet.
_COLOURS = {"scaling_layer.shift": (-0.030, -0.088, -0.188), "scaling_layer.scale": (0.458, 0.448, 0.450)}
# Pixels that go through the network at once, which bounds the memory of a measurement.
_CHUNK_PIXELS = 2**17

_FULL_NAMES: dict[Network, str] = {"vgg": "VGG16", "alex": "AlexNet"}
# Files of a folder: the trunk as torchvision names it, the heads as LPIPS does.
_TRUNK_FILES: dict[Network, str] = {"vgg": "vgg16", "alex": "alexnet"}
_SUFFIXES = (".pth", ".pt", ".safetensors")
# Names in files of torchvision and of LPIPS, and ours; a replacement of None: not needed here.
_NAMES: tuple[tuple[str, str | None], ...] = (
    (r"(?:features|net\.slice\d)\.(\d+\.\w+)", r"trunk.\1"),
    (r"lin(\d)\.model\.1\.weight", r"heads.\1.weight"),
    (r"scaling_layer\.(shift|scale)", r"\1"),
    (r"lins\.\d\.model\.1\.weight", None),  # the heads a second time
    (r"(?:classifier|pre_logits|head)\..*", None),  # layers of the classifier behind the trunk
)


class PerceptualDistance(nn.Module):
    """Mean squared difference of unit-length features, channels weighted by heads, summed over five depths.

    The weights are frozen; gradients flow to the pictures.

    Source: Zhang et al. 2018 (LPIPS v0.1), Ghildyal & Liu 2022 (ST-LPIPS), and the official code, which trains and
    evaluates with LPIPS over VGG16; same.

    Attributes:
        name: of the distance, for example "ST-LPIPS (VGG16)".
    """

    def __init__(self, network: Network, *, shift_tolerant: bool) -> None:
        """Build the network without weights; ``load_perceptual`` loads them."""
        super().__init__()
        self.name = f"{'ST-LPIPS' if shift_tolerant else 'LPIPS'} ({_FULL_NAMES[network]})"
        self.trunk = build_trunk(network, shift_tolerant=shift_tolerant)
        self.heads = nn.ModuleList(nn.Conv2d(channels, 1, 1, bias=False) for channels in self.trunk.channels)
        self.register_buffer("shift", torch.empty(1, 3, 1, 1))
        self.register_buffer("scale", torch.empty(1, 3, 1, 1))

    def forward(self, imagined: Tensor, true: Tensor) -> Tensor:
        """Compute the distance of each picture; 0 where they are equal.

        Where ``imagined`` needs no gradient, it is computed in float32 also under autocast (on a GPU, convolutions use
        TF32 where PyTorch is set so); as a loss it follows autocast.

        Args:
            imagined: float ``[... 3 h w]`` in [0, 1], which a decoder may overshoot, on the device of the weights.
            true: the same shape, in [0, 1]; or without the first dimensions of ``imagined``, and then its features are
                computed once for all of them, for example for many samples of one future.

        Returns:
            float32 ``[...]``, 0 or more.

        Raises:
            UserError: shapes do not fit, are not ``[... 3 h w]`` or empty, pictures are too small for the network or
                no floats, or, where no gradient is needed, ``true`` leaves [0, 1].
        """
        measuring = not imagined.requires_grad
        self._check(imagined, true)
        if measuring:  # a training step does not wait for its device
            check_unit_range(true, "the true pictures")
        pictures = rearrange(true, "... c h w -> (...) c h w")
        samples = imagined.reshape(-1, *pictures.shape)
        count = max(1, _CHUNK_PIXELS // (imagined.shape[-2] * imagined.shape[-1]))
        parts = []
        with torch.autocast(imagined.device.type, enabled=False) if measuring else nullcontext():
            for chunk, true_chunk in zip(samples.split(count, dim=1), pictures.split(count), strict=True):
                features = self._features(true_chunk)
                parts.append(torch.stack([self._difference(self._features(sample), features) for sample in chunk]))
        return torch.cat(parts, dim=1).reshape(imagined.shape[:-3])

    def _features(self, frames: Tensor) -> list[Tensor]:
        """Return five maps ``[b c h' w']`` of features of length 1."""
        colours = (2 * frames.float() - 1 - self.get_buffer("shift")) / self.get_buffer("scale")
        return [F.normalize(features.float(), dim=1, eps=1e-10) for features in self.trunk(colours)]

    def _difference(self, imagined: list[Tensor], true: list[Tensor]) -> Tensor:
        """Return the distance ``[b]``, in float32 also under autocast: small differences need the precision."""
        with torch.autocast(imagined[0].device.type, enabled=False):
            depths = [
                F.conv2d((a - b) ** 2, head.get_parameter("weight")).mean((1, 2, 3))
                for head, a, b in zip(self.heads, imagined, true, strict=True)
            ]
            return torch.stack(depths).sum(0)

    def _check(self, imagined: Tensor, true: Tensor) -> None:
        fitting = true.ndim >= 3 and imagined.shape[-true.ndim :] == true.shape and true.shape[-3] == 3
        if not fitting or not imagined.numel():
            raise UserError(
                f"the pictures have shapes {list(imagined.shape)} and {list(true.shape)}; "
                "expected [... 3 h w] twice, not empty"
            )
        height, width = imagined.shape[-2:]
        if min(height, width) < self.trunk.smallest:
            raise UserError(
                f"the pictures are {width} x {height} pixels; {self.name} needs at least "
                f"{self.trunk.smallest} x {self.trunk.smallest}"
            )
        check_floats(imagined, "the imagined pictures")
        check_floats(true, "the true pictures")


def load_perceptual(weights: str | Path | None = None, *, network: Network = "vgg") -> PerceptualDistance:
    """Load LPIPS with a user's weights, or ST-LPIPS with those of the installed package ``stlpips_pytorch``.

    Nothing is downloaded.

    Args:
        weights: a folder with the trunk as torchvision publishes it (``vgg16-*.pth`` or ``alexnet-*.pth``) and the
            LPIPS v0.1 heads (``vgg.pth`` or ``alex.pth``), each also as ``.safetensors``; or one file with both. None:
            the folder in the environment variable IVIDEOGPT_LPIPS, else ST-LPIPS.
        network: "vgg", which papers on video prediction report, or "alex", which is faster.

    Returns:
        The distance on the CPU, in float32.

    Raises:
        UserError: an unknown network, or weights that are missing, damaged or of another network.
        MissingExtraError: ``stlpips_pytorch`` is not installed.
    """
    if network not in get_args(Network):
        raise UserError(f"there is no perceptual network {network!r}; expected one of {', '.join(get_args(Network))}")
    chosen = weights or os.environ.get(WEIGHTS_VARIABLE)
    if chosen:
        origin = Path(chosen).expanduser()
        state = _from_user(origin, network)
    else:
        origin = packaged_file("stlpips_pytorch", f"weights/vST0.0/{network}_shift_tolerant.pth")
        state = read_weights(origin)
    with torch.device("meta"):  # no time and no random numbers spent on weights that are replaced
        distance = PerceptualDistance(network, shift_tolerant=not chosen)
    fill(distance, _renamed(state), origin=origin, title=distance.name)
    return distance


def _from_user(path: Path, network: Network) -> dict[str, Tensor]:
    """Read the weights in a user's folder or file, under the names of the files."""
    state = {name: torch.tensor(values).view(1, 3, 1, 1) for name, values in _COLOURS.items()}
    if path.is_file():
        return state | read_weights(path)
    if not path.is_dir():
        raise UserError(
            f"LPIPS weights {str(path)!r} do not exist; expected a folder with a trunk and heads, or a file"
        )
    for kind, stem, published in (
        ("trunk", _TRUNK_FILES[network], f"{_TRUNK_FILES[network]}-*.pth"),
        ("heads", network, f"{network}.pth"),
    ):
        files = [
            file
            for file in sorted(path.iterdir())
            if file.suffix in _SUFFIXES and re.match(rf"{stem}[-.]", file.name) and file.is_file()
        ]
        if len(files) != 1:
            listed = ", ".join(file.name for file in files) or "none"
            raise UserError(
                f"folder '{path}' must hold the {kind} of {_FULL_NAMES[network]} in one file, {published} or the same "
                f"as .safetensors; found: {listed}"
            )
        state |= read_weights(files[0])
    return state


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights under our names, without those that are not needed."""
    ours = {}
    for name, tensor in state.items():
        for pattern, replacement in _NAMES:
            if match := re.fullmatch(pattern, name):
                name = match.expand(replacement) if replacement else None
                break
        if name is not None:
            ours[name] = tensor
    return ours
