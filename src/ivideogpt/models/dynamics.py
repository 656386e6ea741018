"""The dynamics network: a transformer over tokens with its inputs, its heads and its losses.

A sequence is the tokens of the context frames and then, for each future frame, a separator and the frame's tokens (see
`TokenLayout`). Each position reads the embedding of its token. The action that leads to a frame is added to the
frame's separator, or as `ACTION_CONDITIONING` says; or its numbers are tokens of the sequence themselves. A forecast,
where there is one, is added one position before the token that it predicts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from ivideogpt.core.config import check_at_least
from ivideogpt.core.errors import UserError
from ivideogpt.core.layout import IGNORED_LABEL, TokenLayout
from ivideogpt.models.kv_cache import KVCache
from ivideogpt.models.token_forecast import Forecast
from ivideogpt.models.transformer import Transformer


@dataclass(frozen=True, kw_only=True)
class HeadsConfig:
    """The layers around the transformer.

    Attributes:
        action_dim: numbers in an action; 0: action-free.
        action_frequencies: sines and cosines of this many octaves join each number of the action; 0 is official.
        action_conditioning: a name of `ACTION_CONDITIONING`: the positions of a frame that the action is added to, or
            "tokens": each number is a token.
        action_bins: ids of such a token: the range of a number is divided into bins of one size.
        action_low, action_high: that range of each number, in model units; numbers outside it are in the last bins.
        slots: size of a learned embedding of a token's position in its frame; 0 is official.
        forecast_grid: side of the token grid that a `Forecast` reads; 0, no forecast, is official.
        forecast_frames: frames that the forecast reads.
        forecast_width: channels of the forecast.
        forecast_blocks: residual blocks of the forecast.
        reward: a head predicts the reward from the last token of a frame.
        action_reconstruction: an auxiliary head predicts the action from each token of a future frame.
        termination: a head predicts from the last token of a frame whether the step ended the episode.
    """

    action_dim: int = 0
    action_frequencies: int = 0
    action_conditioning: str = "separator"
    action_bins: int = 256
    action_low: tuple[float, ...] = ()
    action_high: tuple[float, ...] = ()
    slots: int = 0
    forecast_grid: int = 0
    forecast_frames: int = 2
    forecast_width: int = 128
    forecast_blocks: int = 3
    reward: bool = False
    action_reconstruction: bool = False
    termination: bool = False

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            UserError: a number is out of range.
        """
        check_at_least(self, action_dim=0, action_frequencies=0, slots=0, forecast_grid=0)
        check_at_least(self, forecast_frames=1, forecast_width=2, forecast_blocks=0, action_bins=2)
        if self.action_conditioning not in ACTION_CONDITIONING:
            raise UserError(
                f"action_conditioning is {self.action_conditioning!r}; expected one of {', '.join(ACTION_CONDITIONING)}"
            )

    @property
    def action_tokens(self) -> bool:
        """True where the numbers of an action are tokens."""
        return self.action_conditioning == ACTION_TOKENS

    @property
    def is_official(self) -> bool:
        """True where the official format has a place for all the heads."""
        ours = self.action_frequencies or self.slots or self.forecast_grid or self.termination
        return not ours and self.action_conditioning == "separator"

    @property
    def action_features(self) -> int:
        """Width of the input of the action layer."""
        return self.action_dim * (1 + 2 * self.action_frequencies)


def add_to_separator(action: Tensor, tokens: int) -> Tensor:
    """Return ``[b 1+tokens d]``: the embedded action ``[b d]`` at the separator, zeros at the tokens.

    Source: thuml/iVideoGPT ``HeadModelWithAction``; same.
    """
    return F.pad(action[:, None], (0, 0, 0, tokens))


def add_to_all_tokens(action: Tensor, tokens: int) -> Tensor:
    """Return ``[b 1+tokens d]``: the embedded action ``[b d]`` at the separator and at every token of the frame."""
    return repeat(action, "b d -> b n d", n=1 + tokens)


#: The conditioning in which actions are tokens of the sequence, as in RLVR-World.
ACTION_TOKENS = "tokens"
#: Action conditioning by name: the embedded action ``[b d]`` and the number of tokens of a frame, to what is added to
#: the embeddings of the frame's separator and tokens, ``[b 1+tokens d]``. None: nothing, the action is in the sequence.
ACTION_CONDITIONING: dict[str, Callable[[Tensor, int], Tensor] | None] = {
    "separator": add_to_separator,
    "all_tokens": add_to_all_tokens,
    ACTION_TOKENS: None,
}


class Heads(nn.Module):
    """The layers around the transformer, under their official names; only those of the configuration exist.

    Source: thuml/iVideoGPT ``HeadModelWithAction``; same. Slots, forecast, frequencies and termination are ours.
    """

    def __init__(self, config: HeadsConfig, hidden_size: int, codes: int = 0) -> None:
        """Create the layers.

        Args:
            config: the options.
            hidden_size: width of the transformer.
            codes: size of the codebook, needed for a forecast.

        Raises:
            UserError: an option needs actions and there are none.
        """
        super().__init__()
        options = config.action_frequencies, config.action_reconstruction, config.action_conditioning != "separator"
        if config.action_dim == 0 and any(options):
            raise UserError("action options were given for a model with action_dim 0; set action_dim")
        self.config = config
        if config.action_dim and not config.action_tokens:
            self.action_linear = nn.Linear(config.action_features, hidden_size)
        if config.reward:
            self.reward_linear = nn.Linear(hidden_size, 1)
        if config.termination:
            self.termination_linear = nn.Linear(hidden_size, 1)
        if config.action_reconstruction:
            self.action_recon_linear = nn.Linear(hidden_size, config.action_dim)
        if config.slots:
            self.slot_embedding = nn.Embedding(config.slots, hidden_size)
            nn.init.normal_(self.slot_embedding.weight, std=0.02)
        if config.forecast_grid:
            self.forecast = Forecast(
                codes=codes,
                grid=config.forecast_grid,
                frames=config.forecast_frames,
                width=config.forecast_width,
                blocks=config.forecast_blocks,
                action_features=config.action_features,
                hidden_size=hidden_size,
            )

    def action_features(self, actions: Tensor) -> Tensor:
        """Return the input of the action layer for actions ``[... a]`` in model units."""
        if not self.config.action_frequencies:
            return actions
        octaves = torch.arange(self.config.action_frequencies, device=actions.device, dtype=actions.dtype)
        angles = (actions[..., None] * (math.pi * 2**octaves)).flatten(-2)
        return torch.cat([actions, angles.sin(), angles.cos()], dim=-1)


def z_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean square of the logarithm of the softmax's denominator, which keeps logits from drifting.

    Source: Chowdhery et al. 2022 (PaLM), there with a weight of 1e-4.
    """
    normalizers = logits.logsumexp(dim=-1).square()
    counted = targets != IGNORED_LABEL
    return (normalizers * counted).sum() / counted.sum().clamp(min=1)


#: Additional losses by name: logits float32 ``[b n v]`` and targets int64 ``[b n]`` (``IGNORED_LABEL``: none) of the
#: predicted tokens, to a scalar. ``TransformerTraining.extra_losses`` gives a loss its weight.
EXTRA_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"z": z_loss}


class DynamicsLosses(NamedTuple):
    """Scalar losses; None where the model has no such head or the target is not given.

    Attributes:
        tokens: cross-entropy over all tokens after the prompt, separators included, action tokens not.
        rewards: mean squared error (of symlog where the model uses it).
        terminations: binary cross-entropy of the last step of an episode.
        actions: mean squared error of reconstructed actions over all positions of future frames.
        forecast: cross-entropy of the forecast of the dynamics tokens.
        accuracy: share of dynamics tokens that have the largest logit (no gradient).
        extra: weighted sum of the `EXTRA_LOSSES` in use.
    """

    tokens: Tensor
    rewards: Tensor | None
    terminations: Tensor | None
    actions: Tensor | None
    forecast: Tensor | None
    accuracy: Tensor
    extra: Tensor | None = None


class Dynamics(nn.Module):
    """Predict the tokens, the reward and the end of the next frame from the tokens before it and the action.

    Attributes:
        transformer: the network over embeddings.
        heads: the layers around it.
        layout: positions and ids of the token sequence.
        context_frames: context frames of a sequence.
        shared_codebook: context and future frames have the same grid and the same codes.
        symlog_rewards: the reward head predicts symlog(reward).
    """

    def __init__(
        self,
        transformer: Transformer,
        heads: Heads,
        layout: TokenLayout,
        *,
        context_frames: int,
        shared_codebook: bool,
        symlog_rewards: bool = False,
    ) -> None:
        """Join the parts.

        Raises:
            UserError: the parts do not fit each other.
        """
        super().__init__()
        self.transformer, self.heads, self.layout = transformer, heads, layout
        self.context_frames, self.shared_codebook, self.symlog_rewards = context_frames, shared_codebook, symlog_rewards
        self._check(heads.config)

    # Facts

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.transformer.embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return self.transformer.embed.weight.dtype

    @property
    def cache_dtype(self) -> torch.dtype:
        """The type of keys and values: that of the weights, but float32 on a CPU, which would convert all others."""
        return torch.float32 if self.device.type == "cpu" else self.dtype

    @property
    def max_future_frames(self) -> int:
        """Future frames that fit into the transformer's positions."""
        return self.layout.future_frames(self.context_frames, self.transformer.config.max_positions)

    def allowed_ids(self, legal_only: bool) -> range:
        """Return the ids that may be sampled for a token of a future frame."""
        return self.layout.dynamics_ids if legal_only else range(self.layout.vocab_size)

    def codes(self, ids: Tensor) -> Tensor:
        """Return the dynamics codes, from 0, of ids of the full vocabulary; ids out of range are clamped."""
        return (ids - self.layout.dynamics_ids.start).clamp(0, self.layout.dynamics_codes - 1)

    # Actions as tokens

    def action_ids(self, actions: Tensor) -> Tensor:
        """Return the ids int64 ``[... k]`` of the action tokens of actions ``[... a]`` in model units.

        Source: thuml/RLVR-World ``_discretize_actions``; same.
        """
        config = self.heads.config
        low, high = (actions.new_tensor(limits) for limits in (config.action_low, config.action_high))
        share = ((actions - low) / (high - low + 1e-8)).clamp(0, 1)
        bins = (share * config.action_bins).floor().long().clamp(max=config.action_bins - 1)
        return self.layout.action_ids.start + bins

    def with_actions(self, ids: Tensor, actions: Tensor | None) -> Tensor:
        """Return a sequence int64 ``[b length]`` with its action tokens, where actions are tokens.

        ``actions``: ``[b p+f a]`` in model units: the past actions of the context, then one for each future frame.
        """
        if not self.layout.action_tokens:
            return ids
        assert actions is not None
        future = (ids.shape[1] - self.layout.context_length(self.context_frames)) // self.layout.frame_length
        places = self.layout.action_positions(self.context_frames, future).to(ids.device)
        ids = ids.clone()
        ids[:, places.flatten()] = self.action_ids(actions).flatten(1)
        return ids

    def read_opening(self, cache: KVCache, action: Tensor | None) -> Tensor:
        """Read the opening of the next frame but its last position; return the ids int64 ``[b]`` of that one."""
        ids = torch.full((len(cache.ids), 1), self.layout.dynamics_separator, device=cache.ids.device)
        if self.layout.action_tokens:
            ids = torch.cat([self.action_ids(action), ids], dim=1)[:, : self.layout.opening]  # type: ignore[arg-type]
        if self.layout.opening > 1:
            self.append(cache, ids[:, :-1], torch.zeros(ids.shape[1] - 1, dtype=torch.long))
        return ids[:, -1]

    # Inputs

    def embed(self, ids: Tensor, slots: Tensor) -> Tensor:
        """Embed ids int64 ``[b n]`` at positions ``slots`` int64 ``[n]`` of their frames: ``[b n d]``."""
        x = self.transformer.embed(ids)
        return x + self.heads.slot_embedding(slots.to(ids.device)) if self.heads.config.slots else x

    def forecast(self, history: Tensor, action: Tensor | None) -> Tensor | None:
        """Return the forecast ``[b m d]`` of the next frame, or None where the model has no forecast.

        Args:
            history: codes int64 ``[b k m]`` of the frames before it, at least as many as the forecast reads.
            action: ``[b a]`` in model units, or None.
        """
        config = self.heads.config
        if not config.forecast_grid:
            return None
        features = None if action is None else self.heads.action_features(action.to(self.dtype))
        forecast: Tensor = self.heads.forecast(history[:, -config.forecast_frames :], features)
        return forecast

    def frame_inputs(self, forecast: Tensor | None, action: Tensor | None) -> Tensor | None:
        """Return the inputs that are added to the embeddings of a frame's separator and tokens, ``[b 1+m d]``, or None.

        Args:
            forecast: ``[b m d]``, see `forecast`; added one position before the token that it predicts.
            action: ``[b a]`` in model units, or None; added as `ACTION_CONDITIONING` says.
        """
        inputs = None if forecast is None else F.pad(forecast, (0, 0, 0, 1))
        add_action = ACTION_CONDITIONING[self.heads.config.action_conditioning]
        if action is None or add_action is None:
            return inputs
        embedded = self.heads.action_linear(self.heads.action_features(action.to(self.dtype)))
        embedded = add_action(embedded, self.layout.dynamics_tokens)
        return embedded if inputs is None else inputs + embedded

    def history(self, ids: Tensor, frames: int) -> Tensor:
        """Return the codes int64 ``[b frames m]`` of the last frames of a sequence ``[b length]`` of whole frames.

        Only for a tokenizer with a shared codebook.
        """
        grids = ids[:, -(frames * self.layout.frame_length - 1) :]
        grids = rearrange(F.pad(grids, (1, 0)), "b (f m) -> b f m", f=frames)[:, :, 1:]
        return torch.where(grids < self.layout.context_codes, grids, self.codes(grids))

    # Passes over whole sequences (teacher forcing)

    def hidden_states(self, ids: Tensor, actions: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the hidden states of a whole sequence.

        Args:
            ids: int64 ``[b length]``: context and f future frames.
            actions: ``[b p+f a]`` in model units, or None; see `with_actions`.

        Returns:
            ``[b length d]``, and the forecasts ``[b f m d]`` or None.
        """
        ids = self.with_actions(ids, actions)
        start = self.layout.context_length(self.context_frames)
        frames = (ids.shape[1] - start) // self.layout.frame_length
        x = self.embed(ids, self.layout.slots(self.context_frames, frames))
        inputs, forecasts = self._all_frame_inputs(ids, actions, frames)
        if inputs is not None:
            x = x + F.pad(inputs, (0, 0, start, 0))
        return self.transformer(x), forecasts

    def token_logits(self, context: Tensor, ids: Tensor, actions: Tensor | None, allowed: range) -> Tensor:
        """Return the logits of each token of the future frames, given the true tokens before it.

        Args:
            context: int64 ``[b length]``: the context, as `TokenLayout.join` returns it.
            ids: int64 ``[b f m]`` of the full vocabulary.
            actions: ``[b p+f a]`` in model units, or None; see `with_actions`.
            allowed: ids of the vocabulary whose logits are returned.

        Returns:
            float32 ``[b f m len(allowed)]``.
        """
        hidden, _ = self.hidden_states(self.layout.extend(context, ids), actions)
        return self.logits(self._frames(hidden)[:, :, :-1], allowed)

    def log_prob(
        self,
        context: Tensor,
        ids: Tensor,
        actions: Tensor | None,
        *,
        temperature: float = 1.0,
        legal_only: bool = True,
    ) -> Tensor:
        """Return the log-probability of each token of the future frames, differentiable.

        Args:
            context: int64 ``[b length]``: the context, as `TokenLayout.join` returns it.
            ids: int64 ``[b f m]`` of the full vocabulary.
            actions: ``[b p+f a]`` in model units, or None; see `with_actions`.
            temperature: logits are divided by it.
            legal_only: the distribution is over dynamics ids alone.

        Returns:
            float32 ``[b f m]``.
        """
        allowed = self.allowed_ids(legal_only)
        logits = self.token_logits(context, ids, actions, allowed)
        return F.log_softmax(logits / temperature, dim=-1).gather(-1, (ids - allowed.start)[..., None])[..., 0]

    def _frames(self, hidden: Tensor) -> Tensor:
        """Return the states ``[b f 1+m d]`` of future frames in those of a sequence: from the last of an opening on."""
        start, before = self.layout.context_length(self.context_frames), self.layout.opening - 1
        return rearrange(hidden[:, start:], "b (f m) d -> b f m d", m=self.layout.frame_length)[:, :, before:]

    def losses(
        self,
        ids: Tensor,
        actions: Tensor | None = None,
        rewards: Tensor | None = None,
        terminated: Tensor | None = None,
        *,
        inputs: Tensor | None = None,
        extra_losses: Mapping[str, float] | None = None,
    ) -> DynamicsLosses:
        """Return the losses of one batch; the trainer weighs and adds them.

        Args:
            ids: int64 ``[b length]``, as `CompressiveTokenizer.tokenize` returns them.
            actions: ``[b p+f a]`` in model units, or None; see `with_actions`.
            rewards: ``[b f]`` in reward units, or None.
            terminated: bool ``[b f]``, True where the step to a future frame was the last, or None.
            inputs: int64 ``[b length]`` to read instead of ``ids``, or None; frames in which they differ are no
                targets.
            extra_losses: names of `EXTRA_LOSSES` with their weights.

        Source: thuml/iVideoGPT train_gpt.py and HeadModelWithAction; same.
        """
        layout, prompt = self.layout, self.layout.prompt_length(self.context_frames)
        hidden, forecasts = self.hidden_states(ids if inputs is None else inputs, actions)
        frames = self._frames(hidden)

        # targets
        logits = self.logits(hidden[:, prompt - 1 : -1])
        targets = layout.labels(ids, self.context_frames)[:, prompt:]
        if inputs is not None:
            changed = (inputs != ids)[:, prompt - layout.opening :].unflatten(1, (-1, layout.frame_length)).any(dim=-1)
            changed = changed.repeat_interleave(layout.frame_length, dim=1)[:, layout.opening :]
            targets = targets.masked_fill(changed, IGNORED_LABEL)

        # tokens; the loss is 0 where nothing is a target
        count = (targets != IGNORED_LABEL).sum().clamp(min=1)
        token_loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / count
        with torch.no_grad():
            counted = (targets != IGNORED_LABEL) & (targets != layout.dynamics_separator)
            accuracy = ((logits.argmax(dim=-1) == targets) & counted).sum() / counted.sum().clamp(min=1)

        # heads
        reward_loss = termination_loss = action_loss = forecast_loss = None
        config = self.heads.config
        if rewards is not None and config.reward:
            target = rewards.sign() * rewards.abs().log1p() if self.symlog_rewards else rewards
            reward_loss = F.mse_loss(self.heads.reward_linear(frames[:, :, -1])[..., 0].float(), target)
        if terminated is not None and config.termination:
            predicted = self.heads.termination_linear(frames[:, :, -1])[..., 0].float()
            termination_loss = F.binary_cross_entropy_with_logits(predicted, terminated.float())
        if actions is not None and config.action_reconstruction:
            predicted = self.heads.action_recon_linear(frames).float()
            own = actions[:, layout.past_actions(self.context_frames) :]
            action_loss = F.mse_loss(predicted, repeat(own, "b f a -> b f m a", m=1 + layout.dynamics_tokens))

        # forecast
        if forecasts is not None:
            forecast_logits = self.forecast_logits(forecasts, layout.dynamics_ids)
            _, codes = layout.split(ids, self.context_frames)
            forecast_loss = F.cross_entropy(forecast_logits.flatten(0, 2), codes.flatten())

        # extra losses
        extra = None
        if extra_losses:
            extra = torch.stack([w * EXTRA_LOSSES[name](logits, targets) for name, w in extra_losses.items()]).sum()
        return DynamicsLosses(token_loss, reward_loss, termination_loss, action_loss, forecast_loss, accuracy, extra)

    def forward(self, *batch: Tensor | None, **options: Any) -> DynamicsLosses:
        """Return `losses`: the forward pass of training, which distributed training and compilation wrap."""
        return self.losses(*batch, **options)  # type: ignore[arg-type]

    # Passes with a cache (decoding)

    def new_cache(self, rows: int, future_frames: int) -> KVCache:
        """Return an empty cache for the context and ``future_frames`` of ``rows`` sequences."""
        config, positions = self.transformer.config, self.layout.length(self.context_frames, future_frames)
        shape = (config.num_layers, rows, config.num_heads, positions, config.hidden_size // config.num_heads)
        return KVCache.allocate(shape, self.device, self.cache_dtype)

    def append(self, cache: KVCache, ids: Tensor, slots: Tensor, inputs: Tensor | None = None) -> Tensor:
        """Read the next tokens, append them to the cache and return their hidden states ``[b n d]``.

        Args:
            cache: earlier positions.
            ids: int64 ``[b n]``.
            slots: int64 ``[n]``: their positions in their frames.
            inputs: ``[b n d]`` added to their embeddings, see `frame_inputs`, or None.
        """
        cache.remember(ids)
        x = self.embed(ids, slots)
        return self.transformer(x if inputs is None else x + inputs, cache)

    def next_forecast(self, cache: KVCache, action: Tensor | None) -> Tensor | None:
        """Return the forecast ``[b m d]`` of the frame after those in the cache, or None."""
        config = self.heads.config
        if not config.forecast_grid:
            return None
        ids = cache.last_ids(config.forecast_frames * self.layout.frame_length - 1)
        return self.forecast(self.history(ids, config.forecast_frames), action)

    # Outputs

    def logits(self, hidden: Tensor, allowed: range | None = None) -> Tensor:
        """Return float32 logits ``[... v]`` of hidden states ``[... d]``; ``allowed``: of these ids alone."""
        return self.transformer.logits(hidden, allowed)

    def forecast_logits(self, forecast: Tensor, allowed: range) -> Tensor:
        """Return float32 logits ``[... len(allowed)]`` of a forecast ``[... d]``, by the last norm and the head."""
        return self.transformer.logits(self.transformer.norm(forecast), allowed)

    def rewards(self, hidden: Tensor) -> Tensor | None:
        """Return rewards ``[...]`` in reward units from hidden states ``[... d]`` of a frame's last token, or None."""
        if not self.heads.config.reward:
            return None
        rewards = self.heads.reward_linear(hidden)[..., 0].float()
        return rewards.sign() * rewards.abs().expm1() if self.symlog_rewards else rewards

    def terminations(self, hidden: Tensor) -> Tensor | None:
        """Return the probability ``[...]`` that a step was the last, from hidden states as for `rewards`, or None."""
        if not self.heads.config.termination:
            return None
        return self.heads.termination_linear(hidden)[..., 0].float().sigmoid()

    def _all_frame_inputs(
        self, ids: Tensor, actions: Tensor | None, frames: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return `frame_inputs` ``[b f*(1+m) d]`` and forecasts ``[b f m d]`` of all future frames of a sequence."""
        if frames == 0 or self.layout.action_tokens:
            return None, None
        flat, forecasts = None if actions is None else rearrange(actions, "b f a -> (b f) a"), None
        if self.heads.config.forecast_grid:
            back = self.heads.config.forecast_frames
            windows = self.history(ids, back + frames)[:, :-1].unfold(1, back, 1)
            forecasts = self.forecast(rearrange(windows, "b f m k -> (b f) k m"), flat)
        inputs = self.frame_inputs(forecasts, flat)
        inputs = None if inputs is None else rearrange(inputs, "(b f) m d -> b (f m) d", f=frames)
        return inputs, None if forecasts is None else rearrange(forecasts, "(b f) m d -> b f m d", f=frames)

    def _check(self, config: HeadsConfig) -> None:
        layout = self.layout
        if self.transformer.config.vocab_size != layout.vocab_size:
            raise UserError(
                f"the transformer has {self.transformer.config.vocab_size} ids and the tokenizer {layout.vocab_size}; "
                "expected a pair that was trained together"
            )
        if config.slots not in (0, layout.slot_count):
            raise UserError(
                f"slots is {config.slots}; expected 0, or {layout.slot_count}: a separator and each token of a frame"
            )
        if layout.action_tokens:
            _check_action_tokens(config)
        if config.forecast_grid:
            if not self.shared_codebook:
                raise UserError("a forecast needs a tokenizer with one codebook for all frames; set forecast_grid to 0")
            if config.forecast_grid**2 != layout.dynamics_tokens:
                raise UserError(
                    f"forecast_grid is {config.forecast_grid}; expected 0, or the side of a grid of "
                    f"{layout.dynamics_tokens} tokens"
                )
            if not 1 <= config.forecast_frames <= self.context_frames:
                raise UserError(
                    f"forecast_frames is {config.forecast_frames}; expected 1 to {self.context_frames}, "
                    "the context frames"
                )
        if self.max_future_frames < 1:
            raise UserError(
                f"{self.transformer.config.max_positions} positions hold no future frame after {self.context_frames} "
                "context frames; use fewer context frames"
            )


def _check_action_tokens(config: HeadsConfig) -> None:
    ranges = len(config.action_low), len(config.action_high)
    if ranges != (config.action_dim, config.action_dim):
        raise UserError(
            f"action_low has {ranges[0]} numbers and action_high {ranges[1]}; expected {config.action_dim} each, the "
            "ranges of the numbers of an action, whose bins are tokens"
        )
    if config.slots or config.forecast_grid or config.action_frequencies:
        raise UserError(
            "a model whose actions are tokens has no slots, no forecast and no action_frequencies; set them to 0"
        )
