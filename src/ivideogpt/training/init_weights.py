"""A new world model around a trained tokenizer: its shape, and weights to start training from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from ivideogpt.core.errors import UserError
from ivideogpt.models.dynamics import Heads, HeadsConfig
from ivideogpt.models.tokenizer import CompressiveTokenizer
from ivideogpt.models.transformer import Transformer, TransformerConfig
from ivideogpt.worldmodel.config import WorldModelConfig
from ivideogpt.worldmodel.world_model import WorldModel

EMBEDDING_STD = 0.3
HEAD_STD = 0.05
QUIET = 0.3


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A world model but for what its tokenizer and its data fix: ids, dimension of the actions, rewards.

    Attributes:
        transformer: its shape; ``vocab_size`` becomes that of the tokenizer.
        actions: conditioned on actions, where the data has some.
        action_frequencies, action_conditioning, slots, action_reconstruction: see ``HeadsConfig``; slots: whether there
            are any.
        forecast_width, forecast_blocks: of a forecast; width 0: none.
        rewards: with a reward head, where the data has rewards.
        symlog_rewards: it is trained on symlog(reward).
        terminations: with a head that says whether a step is the last; only reinforcement learning trains it.
        goal_conditioned: the context is [goal, last frame].
    """

    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    actions: bool = True
    action_frequencies: int = 0
    action_conditioning: str = "separator"
    slots: bool = False
    action_reconstruction: bool = False
    forecast_width: int = 0
    forecast_blocks: int = 3
    rewards: bool = False
    symlog_rewards: bool = False
    terminations: bool = False
    goal_conditioned: bool = False

    def like(self, initial: WorldModel) -> ModelShape:
        """The shape of ``initial``; what it lacks of actions and rewards is as here, and dropout is as here."""
        config, heads = initial.config, initial.config.heads
        dropout = self.transformer.attention_dropout
        return replace(
            self,
            transformer=replace(initial.transformer.config, attention_dropout=dropout),
            action_frequencies=heads.action_frequencies if heads.action_dim else self.action_frequencies,
            action_conditioning=heads.action_conditioning if heads.action_dim else self.action_conditioning,
            slots=heads.slots > 0,
            action_reconstruction=heads.action_reconstruction or self.action_reconstruction,
            forecast_width=heads.forecast_width if heads.forecast_grid else 0,
            forecast_blocks=heads.forecast_blocks,
            rewards=heads.reward or self.rewards,
            symlog_rewards=config.symlog_rewards if heads.reward else self.symlog_rewards,
            terminations=heads.termination or self.terminations,
            goal_conditioned=config.goal_conditioned,
        )

    def heads(self, tokenizer: CompressiveTokenizer, action_dim: int, rewards: bool) -> HeadsConfig:
        """The heads for a tokenizer and for data with actions of ``action_dim`` numbers (0: none)."""
        layout, dim = tokenizer.layout, action_dim if self.actions else 0
        return HeadsConfig(
            action_dim=dim,
            action_frequencies=self.action_frequencies if dim else 0,
            action_conditioning=self.action_conditioning if dim else "separator",
            slots=1 + max(layout.context_tokens, layout.dynamics_tokens) if self.slots else 0,
            forecast_grid=tokenizer.config.dynamics_grid if self.forecast_width else 0,
            forecast_width=self.forecast_width or HeadsConfig.forecast_width,
            forecast_blocks=self.forecast_blocks,
            reward=self.rewards and rewards,
            action_reconstruction=self.action_reconstruction and dim > 0,
            termination=self.terminations,
        )


def new_world_model(
    shape: ModelShape, config: WorldModelConfig, tokenizer: CompressiveTokenizer, *, seed: int = 0
) -> WorldModel:
    """A world model with a new transformer.

    Args:
        shape: of the transformer.
        config: what the checkpoint will say of itself, heads included.
        tokenizer: trained.
        seed: of the weights.

    Raises:
        UserError: clips of ``config.clip_frames`` do not fit into the transformer's positions.
    """
    torch.manual_seed(seed)
    layout = tokenizer.layout
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
    if not tokenizer.config.conditional:
        _begin_with_codes(model)
    return model


def start_from(model: WorldModel, initial: WorldModel) -> list[str]:
    """Copies the weights of ``initial`` that ``model`` has a place for; returns the names of those that stay new.

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
    heads, found = model.heads.state_dict(), initial.heads.state_dict()
    fitting = {name: found[name] for name, value in heads.items() if name in found and found[name].shape == value.shape}
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
    vectors = model.tokenizer.quantize.embedding.weight.detach().cpu()
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
