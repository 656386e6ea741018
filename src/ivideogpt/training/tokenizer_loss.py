"""Loss of a tokenizer: pixels, a perceptual distance, its codebooks and a discriminator.

    loss = TokenizerLoss(TokenizerLossConfig(), perceptual, Discriminator(DiscriminatorConfig()))
    losses = loss.generator(reconstruction, context, future, step=step, last_layer=last_layer_of(tokenizer))
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
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ivideogpt.core.errors import UserError
from ivideogpt.models.discriminator import Discriminator
from ivideogpt.models.tokenizer import CompressiveTokenizer, Reconstruction

#: Distance ``[n]`` of drawn from true frames, both float ``[n 3 h w]`` in [0, 1] (drawn ones may lie a little outside).
Perceptual = Callable[[Tensor, Tensor], Tensor]

#: A pixel that moves by less has not changed.
TOLERANCE = 4 / 255
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
        still_weight: of `unrest`: patches that stay the same keep their vectors. Not in the official code.

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
        """Check the weights.

        Raises:
            UserError: a number is negative or not finite, or no pixel counts.
        """
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
        """Return the parts that are used, without gradients, by name."""
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
        """Keep the parts.

        Args:
            config: the weights.
            perceptual: gives the perceptual distance and scales its inputs itself; None leaves it out.
            discriminator: None leaves it out.
            pixel_weight: how much each pixel ``[n 1 h w]`` of true frames ``[n 3 h w]`` counts; None: all alike.
            conditional: vectors of context and future are of two kinds, so that none of one is compared with the other.
        """
        super().__init__()
        self.config = config
        self.perceptual = perceptual if config.perceptual_weight > 0 else None
        self.network = discriminator if config.discriminator_weight > 0 else None
        self.pixel_weight = pixel_weight
        self.conditional = conditional

    def is_adversarial(self, step: int) -> bool:
        """Return True where the discriminator takes part in update ``step`` (from 0)."""
        return self.network is not None and step >= self.config.discriminator_start

    def generator(
        self,
        made: Reconstruction,
        true_context: Tensor,
        true_future: Tensor,
        *,
        step: int,
        last_layer: Tensor,
        quantized: bool = True,
    ) -> TokenizerLosses:
        """Return the loss of the tokenizer. The discriminator's own weights get no gradient.

        Args:
            made: reconstruction of the frames.
            true_context: ``[b c 3 h w]`` in [0, 1].
            true_future: ``[b f 3 h w]`` in [0, 1].
            step: updates of the tokenizer already made.
            last_layer: the weight at which gradients are compared, as `last_layer_of` gives it.
            quantized: False where there were no codes: the codebooks' losses are left out.
        """
        config, context_frames, future_frames = self.config, true_context.shape[1], true_future.shape[1]
        unrest_loss = context_perceptual = future_perceptual = None
        context_commitment = dynamics_commitment = generator = adaptive_weight = None

        # vectors of unchanged patches
        if config.still_weight > 0:
            unrest_loss = self._unrest(made, true_context, true_future)

        # pixels
        context, future = _images(made.context), _images(made.future)
        true_context, true_future = _images(true_context), _images(true_future)
        assert context.shape == true_context.shape and future.shape == true_future.shape
        context_l1, context_l2 = self._pixels(context, true_context)
        future_l1, future_l2 = self._pixels(future, true_future)
        reference = config.l1_weight * future_l1 + config.l2_weight * future_l2
        images = torch.cat([context, future])

        # perceptual distance; one pass over all frames, since the distance of a frame depends on no other
        if self.perceptual is not None:
            distance = self.perceptual(images, torch.cat([true_context, true_future])).float()
            context_perceptual, future_perceptual = distance[: len(context)].mean(), distance[len(context) :].mean()
            reference = future_perceptual

        # codebooks
        if quantized:
            context_commitment, dynamics_commitment = made.context_loss.float(), made.dynamics_loss.float()

        # discriminator
        if self.is_adversarial(step):
            generator = self._generator_loss(images)
            adaptive_weight = self.adaptive_weight(reference, generator, last_layer)

        # total
        of_context, of_future = frame_weights(context_frames, future_frames, config.balanced)
        l1, l2 = of_context * context_l1 + of_future * future_l1, of_context * context_l2 + of_future * future_l2
        total = config.l1_weight * l1 + config.l2_weight * l2
        if unrest_loss is not None:
            total = total + config.still_weight * unrest_loss
        if context_perceptual is not None and future_perceptual is not None:
            distance = of_context * context_perceptual + of_future * future_perceptual
            total = total + config.perceptual_weight * distance
        if context_commitment is not None and dynamics_commitment is not None:
            total = total + config.commitment_weight * (context_commitment + dynamics_commitment)
        if generator is not None and adaptive_weight is not None:
            total = total + adaptive_weight * generator
        return TokenizerLosses(
            total,
            context_l1,
            future_l1,
            context_l2,
            future_l2,
            context_perceptual,
            future_perceptual,
            context_commitment,
            dynamics_commitment,
            unrest_loss,
            generator,
            adaptive_weight,
        )

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

    def _unrest(self, made: Reconstruction, true_context: Tensor, true_future: Tensor) -> Tensor:
        if not self.conditional:
            vectors = torch.cat([made.context_vectors, made.dynamics_vectors], dim=1)
            return unrest(vectors, torch.cat([true_context, true_future], dim=1))
        kinds = (made.context_vectors, true_context), (made.dynamics_vectors, true_future)
        several = [unrest(*kind) for kind in kinds if kind[1].shape[1] > 1]
        return torch.stack(several).mean() if several else made.context_vectors.new_zeros((), dtype=torch.float32)

    def _pixels(self, drawn: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean absolute and squared error, weighted by pixel."""
        weight = 1.0 if self.pixel_weight is None else self.pixel_weight(true)
        error = drawn - true
        return (weight * error.abs()).mean(), (weight * error.square()).mean()

    def _generator_loss(self, images: Tensor) -> Tensor:
        assert self.network is not None
        fixed = {name: weight.detach() for name, weight in self.network.named_parameters()}
        return -functional_call(self.network, fixed, (images,)).float().mean()


class RareColours(nn.Module):
    """Weights of pixels: those of rare colours count more.

    A small thing (a gripper, PushT's agent) is a few pixels of thousands: with equal weights it is never drawn.
    """

    LEVELS = 8
    weight: Tensor

    def __init__(self, frames: Tensor, most: float) -> None:
        """Count the colours of ``frames`` ``[n c h w]`` in [0, 1]; ``most`` is the largest weight."""
        super().__init__()
        colours = self._colours(frames)
        share = torch.bincount(colours.flatten(), minlength=self.LEVELS**3) / colours.numel()
        self.register_buffer("weight", (share.max() / share.clamp(min=1e-9)).sqrt().clamp(max=most))

    def forward(self, true: Tensor) -> Tensor:
        """Return weights ``[... 1 h w]`` of the pixels of frames ``[... c h w]`` in [0, 1]."""
        return self.weight[self._colours(true)].unsqueeze(-3)

    def _colours(self, frames: Tensor) -> Tensor:
        red, green, blue = (frames * (self.LEVELS - 1e-3)).long().unbind(dim=-3)
        return (red * self.LEVELS + green) * self.LEVELS + blue


def unrest(vectors: Tensor, frames: Tensor) -> Tensor:
    """Return the movement of the vectors of unchanged patches from one frame to the next.

    Patches with a vector of zeros (background) do not count, nor does a sequence in which every patch changes.

    Args:
        vectors: ``[b t n d]`` before they become codes, of n patches on a square grid.
        frames: ``[b t c h w]`` in [0, 1], that they were made of, in the order of their numbers.

    Returns:
        Scalar float32: the mean squared move, over twice the variance of all vectors (no gradient of that): 0 where
        nothing moves, 1 where a patch is independent of the one before it.
    """
    assert vectors.shape[:2] == frames.shape[:2]
    vectors, side = vectors.float(), math.isqrt(vectors.shape[2])
    changed = (frames[:, 1:] - frames[:, :-1]).abs() > TOLERANCE
    counts = 1 - reduce(changed.float(), "b t c (h p) (w q) -> b t (h w) 1", "max", h=side, w=side)
    counts = counts * vectors[:, 1:].detach().ne(0).any(dim=-1, keepdim=True)
    moved = (vectors[:, 1:] - vectors[:, :-1]).square() * counts
    spread = vectors.detach().var(dim=(0, 1, 2), correction=0).sum()
    return moved.sum() / (2 * spread * counts.sum()).clamp(min=torch.finfo(torch.float32).tiny)


def frame_weights(context_frames: int, future_frames: int, balanced: bool) -> tuple[float, float]:
    """Return the weights of context and future: their shares of all frames where ``balanced``, else 1 each.

    Source: official ``balanced_loss``; same.
    """
    total = context_frames + future_frames
    return (context_frames / total, future_frames / total) if balanced else (1.0, 1.0)


def last_layer_of(tokenizer: CompressiveTokenizer) -> nn.Parameter:
    """Return the weight that draws future frames, where the gradients of the losses are compared.

    Source: thuml/iVideoGPT train_tokenizer.py; same for conditional tokenizers, the only ones there.
    """
    decoder = tokenizer.cond_decoder if tokenizer.config.conditional else tokenizer.decoder
    return decoder.conv_out.weight  # type: ignore[return-value]


def _images(frames: Tensor) -> Tensor:
    return rearrange(frames.float(), "... c h w -> (...) c h w")
