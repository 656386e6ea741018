"""The official training steps, written again from what thuml/iVideoGPT computes, for `train_step.py` to beat.

The transformer is ``LlamaForCausalLM`` of transformers. The tokenizer has our layers, computed as there: contiguous
convolutions, the context's features repeated for each future frame, and attention that also gives its weights. Kinder
than the original: features that no layer reads are not repeated, no keys and values are kept while training, and no
second batch is read and thrown away before the discriminator takes part.

Source: thuml/iVideoGPT train_gpt.py, train_tokenizer.py, ivideogpt/transformer/action_model.py and ivideogpt/vq_model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from _official_rollout import new_llama, plain_tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from ivideogpt.metrics.perceptual import PerceptualDistance
from ivideogpt.models.discriminator import Discriminator
from ivideogpt.models.tokenizer import CompressiveTokenizer
from ivideogpt.training.tokenizer import TokenizerTraining
from ivideogpt.training.transformer import TransformerTraining
from ivideogpt.worldmodel.checkpoint import transformer_to_official
from ivideogpt.worldmodel.world_model import WorldModel


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The forward pass of one network, as accelerate's ``mixed_precision`` does it."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


class LlamaWithActions(nn.Module):
    """``LlamaForCausalLM`` with the weights of a world model, actions added to the separators' embeddings."""

    def __init__(self, model: WorldModel) -> None:
        """Copies transformer and action layer."""
        super().__init__()
        shape = model.transformer.config
        self.llama = new_llama(shape)
        state = transformer_to_official(dict(model.transformer.state_dict()), shape.num_layers)
        self.llama.load_state_dict(state)
        if model.action_dim:
            self.action_linear = copy.deepcopy(model.heads.action_linear)
        self._layout, self._context_frames = model.layout, model.context_frames

    def forward(self, ids: Tensor, labels: Tensor, actions: Tensor | None) -> Tensor:
        """The loss, scalar, of ids int64 ``[b n]`` with their labels and actions ``[b f a]`` in model units."""
        if actions is None:
            return self.llama(input_ids=ids, labels=labels, use_cache=False).loss
        x = self.llama.get_input_embeddings()(ids).clone()
        positions = self._layout.action_positions(self._context_frames, actions.shape[1]).to(ids.device)
        x[:, positions] += self.action_linear(actions)
        return self.llama(inputs_embeds=x, labels=labels, use_cache=False).loss


class OfficialTransformer:
    """The official transformer's step: tokens as they come, in float32."""

    def __init__(
        self, model: WorldModel, training: TransformerTraining, frames: Tensor, actions: Tensor | None, device: str
    ) -> None:
        """Copies the weights; ``frames`` float ``[b t c h w]`` and ``actions`` ``[b f a]`` or None are on the CPU."""
        self.frames, self.actions, self.device = frames, actions, torch.device(device)
        self.tokenizer = plain_tokenizer(model.tokenizer).to(device).eval().requires_grad_(False)
        self.network = LlamaWithActions(model).to(device)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=training.learning_rate,
            betas=training.betas,
            weight_decay=training.weight_decay,
        )

    def loss(self) -> float:
        """The loss in float32, without dropout."""
        self.network.eval()
        with torch.no_grad():
            return self._loss("float32").item()

    def step(self, precision: str) -> Callable[[], None]:
        """One update, the transformer in ``precision``."""

        def update() -> None:
            self.network.train()
            self.optimizer.zero_grad()
            self._loss(precision).backward()
            self.optimizer.step()

        return update

    def _loss(self, precision: str) -> Tensor:
        with torch.no_grad():
            ids, labels = self.tokenizer.tokenize(self.frames.to(self.device))
        actions = None if self.actions is None else self.actions.to(self.device)
        with autocast(self.device, precision):
            return self.network(ids, labels, actions)


class OfficialTokenizer:
    """The official tokenizer's step; with a discriminator, its own batch after that of the tokenizer."""

    def __init__(
        self,
        tokenizer: CompressiveTokenizer,
        training: TokenizerTraining,
        perceptual: PerceptualDistance,
        discriminator: Discriminator | None,
        frames: Tensor,
        device: str,
    ) -> None:
        """Copies the weights; ``frames`` float ``[b t c h w]`` are on the CPU."""
        self.training, self.frames, self.device = training, frames, torch.device(device)
        self.perceptual, self.count = perceptual.to(device), training.tokenizer.context_frames
        self.tokenizer = plain_tokenizer(tokenizer).to(device)
        self.discriminator = None if discriminator is None else copy.deepcopy(discriminator).to(device)
        modules = [self.tokenizer, *([self.discriminator] if self.discriminator else [])]
        self.optimizers = [
            torch.optim.AdamW(
                module.parameters(),
                lr=training.learning_rate,
                betas=training.betas,
                weight_decay=training.weight_decay,
            )
            for module in modules
        ]

    def loss(self) -> float:
        """The tokenizer's loss in float32, without dropout."""
        self.tokenizer.eval()
        if self.discriminator is not None:
            self.discriminator.eval()
        return self._generator_loss("float32").item()

    def step(self, precision: str) -> Callable[[], None]:
        """One update of the tokenizer and, where there is one, of the discriminator, in ``precision``."""

        def update() -> None:
            self.tokenizer.train()
            self.optimizers[0].zero_grad()
            self._descend(self.optimizers[0], self._generator_loss(precision), self.tokenizer)
            if self.discriminator is not None:
                self.discriminator.train()
                self.optimizers[1].zero_grad()
                self._descend(self.optimizers[1], self._discriminator_loss(precision), self.discriminator)

        return update

    def _descend(self, optimizer: torch.optim.Optimizer, loss: Tensor, module: nn.Module) -> None:
        loss.backward()
        if self.training.clip_norm is not None:
            nn.utils.clip_grad_norm_(module.parameters(), self.training.clip_norm)
        optimizer.step()

    def _reconstruct(self, precision: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        frames = self.frames.to(self.device)
        with autocast(self.device, precision):
            found = self.tokenizer(frames)
        commitment = found.context_loss.float() + found.dynamics_loss.float()
        true = frames[:, : self.count], frames[:, self.count :]
        return found.context.float(), found.future.float(), *true, commitment

    def _judge(self, frames: Tensor, precision: str) -> Tensor:
        assert self.discriminator is not None
        with autocast(self.device, precision):
            return self.discriminator(frames.flatten(0, 1).contiguous()).float()

    def _generator_loss(self, precision: str) -> Tensor:
        context, future, true_context, true_future, commitment = self._reconstruct(precision)
        # Only the networks that are trained run in lower precision there: the perceptual one does not.
        perceptual = self.perceptual(future, true_future).mean()
        loss = F.l1_loss(future, true_future) + F.l1_loss(context, true_context) + commitment
        loss = loss + perceptual + self.perceptual(context, true_context).mean()
        if self.discriminator is None:
            return loss
        generator = -self._judge(torch.cat([context, future], dim=1), precision).mean()
        layer = self.tokenizer.cond_decoder.conv_out.weight
        norms = [torch.autograd.grad(part, layer, retain_graph=True)[0].norm() for part in (perceptual, generator)]
        weight = (norms[0] / norms[1].clamp(min=1e-8)).clamp(max=self.training.loss.adaptive_weight_limit)
        return loss + self.training.loss.discriminator_weight * weight * generator

    def _discriminator_loss(self, precision: str) -> Tensor:
        # A batch of its own, reconstructed with a graph that is thrown away.
        context, future, true_context, true_future, _ = self._reconstruct(precision)
        real = self._judge(torch.cat([true_context, true_future], dim=1), precision)
        fake = self._judge(torch.cat([context, future], dim=1).detach(), precision)
        return (F.relu(1 + fake) + F.relu(1 - real)).mean()
