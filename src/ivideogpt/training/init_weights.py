"""Shape and first weights of a new world model around a trained tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from ivideogpt.core.errors import UserError
from ivideogpt.models.dynamics import Heads, HeadsConfig
from ivideogpt.models.quantizer import VectorQuantizer
from ivideogpt.models.tokenizer import CompressiveTokenizer
from ivideogpt.models.tokenizer_config import TokenizerConfig
from ivideogpt.models.transformer import Transformer, TransformerConfig
from ivideogpt.worldmodel.config import WorldModelConfig
from ivideogpt.worldmodel.world_model import WorldModel

EMBEDDING_STD = 0.3
HEAD_STD = 0.05
QUIET = 0.3


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Shape of a new world model, except what its tokenizer and its data determine.

    Attributes:
        transformer: its shape; ``vocab_size`` becomes that of the tokenizer.
        heads: its heads. ``action_dim`` becomes that of the data. Where ``slots`` or ``forecast_grid`` is not 0, it
            becomes that of the tokenizer. ``reward`` holds where the data have rewards, and the action options where
            they have actions. Only reinforcement learning trains ``termination``.
        actions: condition on the actions of the data.
        symlog_rewards: train the reward head on symlog(reward).
        goal_conditioned: the context is [goal, last frame].
    """

    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    heads: HeadsConfig = field(default_factory=HeadsConfig)
    actions: bool = True
    symlog_rewards: bool = False
    goal_conditioned: bool = False

    def like(self, initial: WorldModel) -> ModelShape:
        """Return the shape of ``initial`` with the heads that only this shape has, and with its own dropout."""
        config, own, heads = initial.config, self.heads, initial.config.heads
        dropout = self.transformer.attention_dropout
        return replace(
            self,
            transformer=replace(initial.transformer.config, attention_dropout=dropout),
            heads=replace(
                heads,
                action_frequencies=heads.action_frequencies if heads.action_dim else own.action_frequencies,
                action_conditioning=heads.action_conditioning if heads.action_dim else own.action_conditioning,
                action_reconstruction=heads.action_reconstruction or own.action_reconstruction,
                reward=heads.reward or own.reward,
                termination=heads.termination or own.termination,
            ),
            symlog_rewards=config.symlog_rewards if heads.reward else self.symlog_rewards,
            goal_conditioned=config.goal_conditioned,
        )

    def context_frames(self, tokenizer: TokenizerConfig) -> int:
        """Return the context frames of the model: those of the tokenizer, and a lead frame (see `TokenLayout`)."""
        return tokenizer.context_frames + (self.heads.action_tokens and tokenizer.conditional)

    def fitted_heads(self, tokenizer: CompressiveTokenizer, action_dim: int, rewards: bool) -> HeadsConfig:
        """Return the heads for a tokenizer and data.

        Args:
            tokenizer: of the model.
            action_dim: numbers in an action of the data; 0: none.
            rewards: the data have rewards.
        """
        heads, action_dim = self.heads, action_dim if self.actions else 0
        return replace(
            heads,
            action_dim=action_dim,
            action_frequencies=heads.action_frequencies if action_dim else 0,
            action_conditioning=heads.action_conditioning if action_dim else "separator",
            action_reconstruction=heads.action_reconstruction and action_dim > 0,
            slots=tokenizer.layout.slot_count if heads.slots else 0,
            forecast_grid=tokenizer.config.dynamics_grid if heads.forecast_grid else 0,
            reward=heads.reward and rewards,
        )


def new_world_model(
    shape: ModelShape, config: WorldModelConfig, tokenizer: CompressiveTokenizer, *, seed: int = 0
) -> WorldModel:
    """Make a world model with a new transformer.

    Args:
        shape: of the transformer.
        config: what the checkpoint will say of itself, heads included.
        tokenizer: trained.
        seed: of the weights.

    Raises:
        UserError: clips of ``config.clip_frames`` do not fit into the transformer's positions.
    """
    torch.manual_seed(seed)
    layout = config.layout(tokenizer.config)
    needed = layout.length(config.context_frames, (config.clip_frames or 0) - config.context_frames)
    if needed > shape.transformer.max_positions:
        raise UserError(
            f"a clip of {config.clip_frames} frames takes {needed} positions and the transformer has "
            f"{shape.transformer.max_positions}; set transformer.clip_frames to fewer, or for a new model "
            "model.transformer.max_positions to more"
        )
    transformer = Transformer(replace(shape.transformer, vocab_size=layout.vocab_size))
    model = WorldModel(
        config, tokenizer, transformer, Heads(config.heads, transformer.config.hidden_size, layout.dynamics_codes)
    )
    if not tokenizer.config.conditional and not tokenizer.config.levels:
        _begin_with_codes(model)
    return model


def start_from(model: WorldModel, initial: WorldModel) -> list[str]:
    """Copy the weights of ``initial`` that ``model`` has a place for; return the names of those that stay new.

    Raises:
        UserError: the transformers differ.
    """
    mine, other = model.transformer.state_dict(), initial.transformer.state_dict()
    wrong = [name for name, value in mine.items() if name not in other or other[name].shape != value.shape]
    if wrong:
        name, there = wrong[0], list(other[wrong[0]].shape) if wrong[0] in other else "none"
        raise UserError(
            f"the model to start from has {name} of shape {there}, expected {list(mine[name].shape)}; its tokenizer or "
            "its shape is another"
        )
    model.transformer.load_state_dict(other)
    heads, trained = model.heads.state_dict(), initial.heads.state_dict()
    fitting = {
        name: trained[name] for name, value in heads.items() if name in trained and trained[name].shape == value.shape
    }
    model.heads.load_state_dict(heads | fitting)
    return sorted(heads.keys() - fitting.keys())


@torch.no_grad()
def _begin_with_codes(model: WorldModel) -> None:
    """Weights that know what a tokenizer with one codebook knows.

    Embeddings start as a random projection of the codes' vectors, so that codes that look alike are alike; they are the
    same for a code in a context frame and in a future frame; and looking back starts in the directions of the head.
    Layers start almost silent beside the embeddings, so that the first guess is "as before" and everything learned is a
    change.
    """
    transformer, heads = model.transformer, model.heads
    quantizer = model.tokenizer.quantize
    assert isinstance(quantizer, VectorQuantizer)
    vectors = quantizer.embedding.weight.detach().cpu()
    vectors = (vectors - vectors.mean(dim=0)) / vectors.std(dim=0).clamp(min=1e-6)
    codes = len(vectors)
    for weight, std in ((transformer.embed.weight, EMBEDDING_STD), (transformer.head.weight, HEAD_STD)):
        alike = vectors @ torch.randn(vectors.shape[1], weight.shape[1]) * (vectors.shape[1] ** -0.5)
        weight[: 2 * codes] = std * (alike + 0.25 * torch.randn_like(alike)).repeat(2, 1)
    if heads.config.forecast_grid:
        same = transformer.head.weight[codes : 2 * codes] * (EMBEDDING_STD / HEAD_STD)
        for frame, weight in enumerate(heads.forecast.seen.parameters()):
            weight.copy_(same * QUIET**frame)
        seen = heads.forecast.codes.weight
        seen.copy_(vectors @ torch.randn(vectors.shape[1], seen.shape[1]) * vectors.shape[1] ** -0.5)
        for name, weight in heads.forecast.named_parameters():
            if name == "out.weight" or name.endswith("conv2.weight"):
                weight.mul_(QUIET)
    if heads.config.slots:
        heads.slot_embedding.weight.mul_(EMBEDDING_STD / heads.slot_embedding.weight.std())
    if heads.config.action_dim:
        heads.action_linear.weight.normal_(std=EMBEDDING_STD / heads.config.action_features**0.5)
    for layer in transformer.layers:
        for name, weight in layer.named_parameters():
            if name in ("attention.out.weight", "feed_forward.down.weight"):
                weight.mul_((2 * len(transformer.layers)) ** -0.5)
