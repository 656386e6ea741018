"""A patch discriminator of reconstructed and real frames, for sharp reconstructions of a tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ivideogpt.core.errors import UserError

LEAK = 0.2


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """Shape of a discriminator. The defaults are the official ones.

    Attributes:
        hidden: channels of the widest layers; the first layer has ``hidden / 2^max(depth - 3, 3)``.
        depth: layers that halve the frame.
        in_channels: of a frame.
    """

    hidden: int = 512
    depth: int = 4
    in_channels: int = 3

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UserError: a size is out of range, or the sizes do not fit together.
        """
        for name in ("hidden", "depth", "in_channels"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.hidden % 2**self._doublings:
            raise UserError(
                f"hidden {self.hidden} is not a multiple of {2**self._doublings}, by which a discriminator of depth "
                f"{self.depth} divides it in its first layer"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels after each layer: they double until they are ``hidden``."""
        return tuple(self.hidden // 2 ** max(self._doublings - layer, 0) for layer in range(self.depth))

    @property
    def _doublings(self) -> int:
        return max(self.depth - 3, 3)


class Discriminator(nn.Module):
    """Strided convolutions with spectral norm, then a real-or-fake logit for each patch.

    Source: thuml/iVideoGPT ``Discriminator``, from Paella's VQGAN; same layers. Differs: depths below 4, which fail
    there, work here (the last layer is then narrower than ``hidden``).
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        """Create random weights in the shape of ``config``."""
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        input_widths = (config.in_channels, *config.widths)
        for layer, (before, after) in enumerate(zip(input_widths, config.widths, strict=False)):
            layers.append(spectral_norm(nn.Conv2d(before, after, 3, stride=2, padding=1)))
            if layer:
                layers.append(nn.InstanceNorm2d(after))
            layers.append(nn.LeakyReLU(LEAK))
        self.encoder = nn.Sequential(*layers)
        self.logits = nn.Conv2d(config.widths[-1], 1, 1)

    def forward(self, frames: Tensor) -> Tensor:
        """Return the logits of frames; in training mode each call also refines the estimate of the spectral norms.

        Args:
            frames: float ``[n c h w]``, [0, 1] where they are real, not clamped where they are reconstructed.

        Returns:
            Logits ``[n 1 h' w']``, above 0 for real; ``h'`` is ``h / 2^depth``, rounded up.

        Raises:
            UserError: the frames are so small that one patch would be left, which an instance norm turns to 0.
        """
        least = 2**self.config.depth + 1
        if max(frames.shape[-2:]) < least:
            raise UserError(
                f"frames of {frames.shape[-1]} x {frames.shape[-2]} pixels are too small for a discriminator of depth "
                f"{self.config.depth}; expected at least {least}: lower its depth"
            )
        return self.logits(self.encoder(frames))
