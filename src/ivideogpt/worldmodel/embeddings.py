"""What the transformer reads: embeddings of tokens, of their places, of actions, and of what the forecast expects."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from ivideogpt.worldmodel.world_model import WorldModel


def embed(model: WorldModel, ids: Tensor, slots: Tensor) -> Tensor:
    """Embeddings ``[b n d]`` of ids int64 ``[b n]`` at places ``slots`` int64 ``[n]`` of their frames."""
    x = model.transformer.embed(ids)
    return x + model.heads.slot_embedding(slots.to(ids.device)) if model.config.heads.slots else x


def forecast(model: WorldModel, history: Tensor, action: Tensor | None) -> Tensor | None:
    """The first guess at the tokens of a frame, ``[b m d]``, or None where the model has no forecast.

    Args:
        model: the world model.
        history: codes int64 ``[b k m]`` of the frames before it, at least as many as the forecast reads.
        action: ``[b a]`` in model units, or None.
    """
    heads = model.config.heads
    if not heads.forecast_grid:
        return None
    features = None if action is None else model.heads.action_features(action.to(model.dtype))
    guess: Tensor = model.heads.forecast(history[:, -heads.forecast_frames :], features)
    return guess


def frame_inputs(model: WorldModel, guess: Tensor | None, action: Tensor | None) -> Tensor | None:
    """What joins the embeddings of a frame's separator and tokens, ``[b 1+m d]``, or None.

    Args:
        model: the world model.
        guess: ``[b m d]``, see `forecast`; it joins the position before the one it guesses.
        action: ``[b a]`` in model units, or None; it joins the separator, as in the official model.
    """
    added = None if guess is None else F.pad(guess, (0, 0, 0, 1))
    if action is None:
        return added
    embedded = model.heads.action_linear(model.heads.action_features(action.to(model.dtype)))[:, None]
    embedded = F.pad(embedded, (0, 0, 0, model.layout.dynamics_tokens))
    return embedded if added is None else added + embedded


def frame_embeddings(model: WorldModel, ids: Tensor, actions: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """What joins the embeddings of all future frames of a sequence.

    Args:
        model: the world model.
        ids: int64 ``[b length]``: context and f future frames.
        actions: ``[b f a]`` in model units, or None.

    Returns:
        `frame_inputs` of all future positions ``[b f*(1+m) d]``, or None; their forecasts ``[b f m d]``, or None.
    """
    rows, start = len(ids), model.layout.context_length(model.context_frames)
    frames = (ids.shape[1] - start) // model.layout.frame_length
    if frames == 0:
        return None, None
    flat = None if actions is None else rearrange(actions, "b f a -> (b f) a")
    guess = None
    if model.config.heads.forecast_grid:
        back = model.config.heads.forecast_frames
        windows = history(model, ids, back + frames)[:, :-1].unfold(1, back, 1)
        guess = forecast(model, rearrange(windows, "b f m k -> (b f) k m"), flat)
    added = frame_inputs(model, guess, flat)
    added = None if added is None else rearrange(added, "(b f) m d -> b (f m) d", b=rows)
    return added, None if guess is None else rearrange(guess, "(b f) m d -> b f m d", b=rows)


def hidden_states(model: WorldModel, ids: Tensor, actions: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Hidden states of a whole sequence.

    Args:
        model: the world model.
        ids: int64 ``[b length]``: context and f future frames.
        actions: ``[b f a]`` in model units, or None.

    Returns:
        ``[b length d]``, and the forecasts ``[b f m d]`` or None.
    """
    start = model.layout.context_length(model.context_frames)
    frames = (ids.shape[1] - start) // model.layout.frame_length
    x = embed(model, ids, model.layout.slots(model.context_frames, frames))
    added, guess = frame_embeddings(model, ids, actions)
    if added is not None:
        x = x + F.pad(added, (0, 0, start, 0))
    return model.transformer(x), guess


def history(model: WorldModel, ids: Tensor, frames: int) -> Tensor:
    """Codes int64 ``[b frames m]`` of the last frames of a sequence ``[b length]`` that ends with a whole one.

    Only for a tokenizer whose frames all have the same grid and codebook.
    """
    grids = ids[:, -(frames * model.layout.frame_length - 1) :]
    grids = rearrange(F.pad(grids, (1, 0)), "b (f m) -> b f m", f=frames)[:, :, 1:]
    return torch.where(grids < model.layout.context_codes, grids, model.codes(grids))
