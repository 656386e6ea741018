"""What the official tokenizer is trained on: pixels, a perceptual distance, its codebooks and a discriminator.

    loss = TokenizerLoss(TokenizerLossConfig(), perceptual, Discriminator(DiscriminatorConfig()))
    losses = loss.generator(found, context, future, step=step, last_layer=last_layer_of(tokenizer))
    losses.total.backward()                             # the discriminator gets no gradient
    if loss.is_adversarial(step):
        loss.discriminator(fake, real).loss.backward()  # the tokenizer gets none

A step counts updates of the tokenizer already made. Source: thuml/iVideoGPT train_tokenizer.py counts a batch of the
discriminator as a step too, also before it starts: its ``disc_start`` and step counts are twice ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ivideogpt.core.errors import UserError
from ivideogpt.models.discriminator import Discriminator
from ivideogpt.models.tokenizer import CompressiveTokenizer, Reconstruction
from ivideogpt.training.static_patch_loss import unrest

#: Distance ``[n]`` of found from true frames, both float ``[n 3 h w]`` in [0, 1] (found ones may lie a little outside).
Perceptual = Callable[[Tensor, Tensor], Tensor]

# Keeps the adaptive weight finite where the generator's gradient vanishes.
_LEAST_GRADIENT = 1e-8


@dataclass(frozen=True, kw_only=True)
class TokenizerLossConfig:
    """Weights of the parts of the loss. The defaults are the official ones.

    Attributes:
        l1_weight: of the absolute error of pixels.
        l2_weight: of their squared error.
        perceptual_weight: of the perceptual distance; at 0 it is not computed.
        commitment_weight: of the loss of each codebook.
        discriminator_weight: of the generator loss, after its adaptive weight; at 0 there is no discriminator.
        discriminator_start: updates of the tokenizer before the discriminator joins.
        adaptive_weight_limit: largest adaptive weight, before ``discriminator_weight``.
        balanced: context and future count by their share of frames; otherwise each counts as 1.
        still_weight: of `stillness.unrest`: patches that stay the same keep their vectors. Not in the official code.

    Source: official flags ``recon_weight`` (with ``vae_loss`` l1 or l2), ``perc_weight``, ``disc_weight``,
    ``disc_start`` (twice ours), ``balanced_loss``; the limit and the commitment weight are constants there.
    """

    l1_weight: float = 1.0
    l2_weight: float = 0.0
    perceptual_weight: float = 1.0
    commitment_weight: float = 1.0
    discriminator_weight: float = 0.8
    discriminator_start: int = 0
    adaptive_weight_limit: float = 1e4
    balanced: bool = False
    still_weight: float = 0.0

    def __post_init__(self) -> None:
        """Raises UserError where a number is negative or not finite, or no pixel counts."""
        for name, value in vars(self).items():
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"{name} is {value}; expected a number of at least 0")
        if not self.l1_weight + self.l2_weight:
            raise UserError("l1_weight and l2_weight are both 0; expected at least one above 0, or no pixel is learned")


class TokenizerLosses(NamedTuple):
    """Scalars, float32, the parts before their weights; None where a part is not used.

    Attributes:
        total: what is minimised; the only one to take a gradient of.
        context_l1, future_l1: absolute error of pixels.
        context_l2, future_l2: squared error of pixels.
        context_perceptual, future_perceptual: perceptual distance.
        context_commitment, dynamics_commitment: codebook and commitment loss of the two codebooks.
        unrest: of vectors whose patches stay the same.
        generator: minus the mean logit of the reconstructed frames.
        adaptive_weight: what ``generator`` is multiplied with in ``total``.
    """

    total: Tensor
    context_l1: Tensor
    future_l1: Tensor
    context_l2: Tensor
    future_l2: Tensor
    context_perceptual: Tensor | None = None
    future_perceptual: Tensor | None = None
    context_commitment: Tensor | None = None
    dynamics_commitment: Tensor | None = None
    unrest: Tensor | None = None
    generator: Tensor | None = None
    adaptive_weight: Tensor | None = None

    def figures(self) -> dict[str, Tensor]:
        """The parts that are used, without gradients, by name."""
        return {name: value.detach() for name, value in self._asdict().items() if name != "total" and value is not None}


class DiscriminatorLosses(NamedTuple):
    """Scalars, float32.

    Attributes:
        loss: hinge loss, 0 where all real logits are above 1 and all fake ones below -1.
        real_logits, fake_logits: their means (no gradient); close together, the discriminator sees no difference.
    """

    loss: Tensor
    real_logits: Tensor
    fake_logits: Tensor


class TokenizerLoss(nn.Module):
    """The losses of the tokenizer and of its discriminator.

    It has no state of its own to save: a run saves the discriminator as a part, and a perceptual network is fixed.

    Source: thuml/iVideoGPT train_tokenizer.py; same, but for what the methods say.
    """

    def __init__(
        self,
        config: TokenizerLossConfig,
        perceptual: Perceptual | None = None,
        discriminator: Discriminator | None = None,
        pixel_weight: Callable[[Tensor], Tensor] | None = None,
        *,
        conditional: bool = True,
    ) -> None:
        """Keeps the parts.

        Args:
            config: the weights.
            perceptual: gives the perceptual distance and scales its inputs itself; None leaves it out.
            discriminator: None leaves it out.
            pixel_weight: how much each pixel ``[n 1 h w]`` of true frames ``[n 3 h w]`` counts; None: all alike.
            conditional: vectors of context and future are of two kinds, so that none of one is compared with the other.
        """
        super().__init__()
        self.config = config
        self.perceptual = perceptual if config.perceptual_weight else None
        self.network = discriminator if config.discriminator_weight else None
        self.pixel_weight = pixel_weight
        self.conditional = conditional

    def is_adversarial(self, step: int) -> bool:
        """Return True where the discriminator takes part in update ``step`` (from 0)."""
        return self.network is not None and step >= self.config.discriminator_start

    def generator(
        self,
        found: Reconstruction,
        true_context: Tensor,
        true_future: Tensor,
        *,
        step: int,
        last_layer: Tensor,
        quantized: bool = True,
    ) -> TokenizerLosses:
        """Return the loss of the tokenizer. The discriminator's own weights get no gradient.

        Args:
            found: what the tokenizer made of the frames.
            true_context: ``[b c 3 h w]`` in [0, 1].
            true_future: ``[b f 3 h w]`` in [0, 1].
            step: updates of the tokenizer already made.
            last_layer: the weight at which gradients are compared, as `last_layer_of` gives it.
            quantized: False where ``found`` was made without codes: the codebooks' losses are left out.
        """
        config = self.config
        shares = frame_weights(true_context.shape[1], true_future.shape[1], config.balanced)
        parts: dict[str, Tensor] = {}
        if config.still_weight:
            parts["unrest"] = self._unrest(found, true_context, true_future)
        context, future = _images(found.context), _images(found.future)
        true_context, true_future = _images(true_context), _images(true_future)
        assert context.shape == true_context.shape and future.shape == true_future.shape
        pairs = self._pixels(context, true_context), self._pixels(future, true_future)
        l1, l2 = (pairs[0][0], pairs[1][0]), (pairs[0][1], pairs[1][1])
        total = config.l1_weight * _weighted(shares, l1) + config.l2_weight * _weighted(shares, l2)
        reference = config.l1_weight * l1[1] + config.l2_weight * l2[1]
        if config.still_weight:
            total = total + config.still_weight * parts["unrest"]
        images = torch.cat([context, future])
        if self.perceptual is not None:
            # One pass over all frames: the distance of a frame depends on no other.
            distance = self.perceptual(images, torch.cat([true_context, true_future])).float()
            perceptual = distance[: len(context)].mean(), distance[len(context) :].mean()
            total = total + config.perceptual_weight * _weighted(shares, perceptual)
            reference = perceptual[1]
            parts |= {"context_perceptual": perceptual[0], "future_perceptual": perceptual[1]}
        if quantized:
            commitment = found.context_loss.float(), found.dynamics_loss.float()
            total = total + config.commitment_weight * _weighted((1.0, 1.0), commitment)
            parts |= {"context_commitment": commitment[0], "dynamics_commitment": commitment[1]}
        if self.is_adversarial(step):
            generator = self._generator_loss(images)
            weight = self.adaptive_weight(reference, generator, last_layer)
            total = total + weight * generator
            parts |= {"generator": generator, "adaptive_weight": weight}
        return TokenizerLosses(total, *l1, *l2, **parts)

    def discriminator(self, fake: Tensor, real: Tensor) -> DiscriminatorLosses:
        """Return the loss of the discriminator. The network that made the ``fake`` frames gets no gradient.

        Source: as above. Differs: one pass over both, so one refinement of the spectral norms where there were two.

        Args:
            fake: reconstructed frames ``[... 3 h w]``, not clamped, context and future alike.
            real: the true ones, the same shape, in [0, 1].
        """
        assert self.network is not None and fake.shape == real.shape
        frames = _images(real)
        logits = self.network(torch.cat([frames, _images(fake.detach())])).float()
        real_logits, fake_logits = logits.split(len(frames))
        loss = F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()
        return DiscriminatorLosses(loss, real_logits.detach().mean(), fake_logits.detach().mean())

    def adaptive_weight(self, perceptual_loss: Tensor, generator_loss: Tensor, last_layer: Tensor) -> Tensor:
        """Return the weight at which the generator loss has about the gradient of the perceptual loss.

        It takes two more backward passes, from each loss to ``last_layer``; the graph stays for the one that follows.

        Args:
            perceptual_loss: scalar, of the future frames, without its weight. The weighted pixel loss of the future
                frames stands in for it where there is none.
            generator_loss: scalar.
            last_layer: a weight that both depend on.

        Returns:
            Scalar float32 without gradient: the ratio of the norms of the two gradients at ``last_layer``, at most the
            limit, times ``discriminator_weight``.
        """
        norms = []
        for loss in (perceptual_loss, generator_loss):
            (gradient,) = torch.autograd.grad(loss, last_layer, retain_graph=True)
            norms.append(gradient.float().norm())
        ratio = norms[0] / norms[1].clamp(min=_LEAST_GRADIENT)
        return self.config.discriminator_weight * ratio.clamp(max=self.config.adaptive_weight_limit)

    def _unrest(self, found: Reconstruction, true_context: Tensor, true_future: Tensor) -> Tensor:
        if not self.conditional:
            vectors = torch.cat([found.context_vectors, found.dynamics_vectors], dim=1)
            return unrest(vectors, torch.cat([true_context, true_future], dim=1))
        kinds = (found.context_vectors, true_context), (found.dynamics_vectors, true_future)
        several = [unrest(*kind) for kind in kinds if kind[1].shape[1] > 1]
        return torch.stack(several).mean() if several else found.context_vectors.new_zeros((), dtype=torch.float32)

    def _pixels(self, found: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
        """Absolute and squared error."""
        weight = 1.0 if self.pixel_weight is None else self.pixel_weight(true)
        error = found - true
        return (weight * error.abs()).mean(), (weight * error.square()).mean()

    def _generator_loss(self, images: Tensor) -> Tensor:
        assert self.network is not None
        fixed = {name: weight.detach() for name, weight in self.network.named_parameters()}
        return -functional_call(self.network, fixed, (images,)).float().mean()


def frame_weights(context_frames: int, future_frames: int, balanced: bool) -> tuple[float, float]:
    """Return the weights of context and future: their shares of all frames where ``balanced``, else 1 each.

    Source: official ``balanced_loss``; same.
    """
    total = context_frames + future_frames
    return (context_frames / total, future_frames / total) if balanced else (1.0, 1.0)


def last_layer_of(tokenizer: CompressiveTokenizer) -> nn.Parameter:
    """The weight that draws future frames, where the gradients of the losses are compared.

    Source: thuml/iVideoGPT train_tokenizer.py; same for conditional tokenizers, the only ones there.
    """
    decoder = tokenizer.cond_decoder if tokenizer.config.conditional else tokenizer.decoder
    return decoder.conv_out.weight  # type: ignore[return-value]


def _images(frames: Tensor) -> Tensor:
    return rearrange(frames.float(), "... c h w -> (...) c h w")


def _weighted(weights: tuple[float, float], parts: tuple[Tensor, Tensor]) -> Tensor:
    return weights[0] * parts[0] + weights[1] * parts[1]
