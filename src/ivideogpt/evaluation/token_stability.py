"""Stability of a tokenizer's codes, and the transformer's loss by part of the frame.

Codes that change although nothing moves, or that drift when a decoded frame is encoded again, blur a rollout whatever
the dynamics have learned. Nats by part of the frame show where the transformer's loss comes from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange, reduce
from torch import Tensor

from ivideogpt.core.errors import UserError
from ivideogpt.evaluation.held_out import Clips
from ivideogpt.evaluation.pusht_metrics import colour_shares, locate_block
from ivideogpt.evaluation.pusht_shape import block_shares
from ivideogpt.metrics.image import psnr
from ivideogpt.models.tokenizer import CompressiveTokenizer
from ivideogpt.worldmodel.world_model import WorldModel

#: Clips that `stability_measures` looks at: coding them again and again takes time.
MEASURED_CLIPS = 16
#: A pixel that moves by less has not changed.
TOLERANCE = 4 / 255
#: Parts of a PushT picture, see `patch_parts`.
PARTS = ("background", "agent", "block_at_rest", "block_pushed", "other")
# A patch shows the agent or the block if at least so many of its pixels have at least this share of the colour.
_PIXELS, _AGENT_SHARE, _BLOCK_SHARE = 2, 0.3, 0.4
# The block is pushed if it moves by more px or turns by more rad than the error of reading its pose.
_PUSHED_PX, _PUSHED_RAD = 0.2, 0.03


def stability_measures(model: WorldModel, clips: Clips) -> dict[str, Any]:
    """Measure the first clips of PushT with a token model: `recoding`, `kept_at_rest`, `nats_by_part`.

    Args:
        model: a picture model has none of these figures.
        clips: held-out clips.

    Returns:
        "recoded_1_times" and so on, "codes_kept_at_rest" and "nats", which has an entry for each of `PARTS`.
    """
    if not model.has_tokens:
        return {}
    last = model.context_frames + min(clips.frames.shape[1] - model.context_frames, model.segment_frames())
    frames = clips.frames[:MEASURED_CLIPS, :last].to(model.device).float() / 255
    actions = None
    if model.action_dim and clips.actions is not None:
        raw = clips.actions[:MEASURED_CLIPS, model.context_frames - 1 : last - 1]
        actions = model.normalize_actions(raw.to(model.device))
    recoded = recoding(model.tokenizer, frames)
    return {
        **{f"recoded_{times}_times": figures for times, figures in recoded.items()},
        "codes_kept_at_rest": float(kept_at_rest(model.tokenizer, frames)),
        "nats": nats_by_part(model, frames, actions),
    }


@torch.inference_mode()
def recoding(
    tokenizer: CompressiveTokenizer, frames: Tensor, times: Sequence[int] = (1, 2, 5, 14)
) -> dict[int, dict[str, float]]:
    """Encode and decode the future frames of clips several times, each time the frames decoded before.

    Args:
        tokenizer: in evaluation mode.
        frames: float ``[b t c h w]`` in [0, 1]; the first ``context_frames`` are the context and stay as they are.
        times: numbers of encodings after which to measure, ascending, from 1.

    Returns:
        For each of ``times``: "psnr" in dB of the decoded frames against the true ones; "kept", share of codes that
        equal those of the first encoding, 0 to 1.

    Raises:
        UserError: there is no frame after the context, or ``times`` is not ascending from 1.
    """
    if list(times) != sorted(set(times)) or not times or times[0] < 1:
        raise UserError(f"times is {list(times)}; expected ascending numbers from 1, for example 1, 2, 5, 14")
    encoder, decoder, future = _context(tokenizer, frames)
    first, shown, results = None, future, {}
    for time in range(1, times[-1] + 1):
        codes = tokenizer.encode_future(shown, encoder)
        first = codes if first is None else first
        shown = tokenizer.decode_future(codes, decoder).clamp(0, 1)
        if time in times:
            kept = (codes == first).float().mean()
            results[time] = {"psnr": float(psnr(shown, future).mean()), "kept": float(kept)}
    return results


@torch.inference_mode()
def kept_at_rest(tokenizer: CompressiveTokenizer, frames: Tensor, tolerance: float = TOLERANCE) -> Tensor:
    """Return the share of codes that stay the same in patches whose pixels do, from one future frame to the next.

    Args:
        tokenizer: in evaluation mode.
        frames: float ``[b t c h w]`` in [0, 1].
        tolerance: largest change of a pixel that counts as none.

    Returns:
        Scalar float32 in 0 to 1 over patches that differ from the background (if the tokenizer has one); NaN if no such
        patch stays the same.
    """
    encoder, _, future = _context(tokenizer, frames)
    codes = tokenizer.encode_future(future, encoder)
    grid = math.isqrt(codes.shape[-1])
    resting = ~patches_changed(future[:, 1:], future[:, :-1], grid, tolerance)
    if tokenizer.config.background:
        resting &= patches_changed(future[:, 1:], tokenizer.background.expand_as(future[:, 1:]), grid, tolerance)
    return (codes[:, 1:] == codes[:, :-1])[resting].float().mean()


@torch.inference_mode()
def nats(model: WorldModel, frames: Tensor, actions: Tensor | None) -> Tensor:
    """Return the cost of each token of the future frames, given the true tokens before it.

    Args:
        model: the world model, in evaluation mode.
        frames: float ``[b t c h w]`` in [0, 1], in which t fits into one segment.
        actions: ``[b p+f a]`` in model units, past ones first, or None.

    Returns:
        float32 ``[b f m]``, -log of the probability of each dynamics token.
    """
    ids, layout = model.tokenize(frames), model.layout
    context, dynamics_ids = ids[:, : layout.context_length(model.context_frames)], layout.dynamics_ids
    codes = layout.split(ids, model.context_frames)[1][:, layout.lead_frames :]
    scores = model.dynamics.token_logits(context, codes + dynamics_ids.start, actions, dynamics_ids).log_softmax(-1)
    return -scores.gather(-1, codes[..., None])[..., 0]


def nats_by_part(model: WorldModel, frames: Tensor, actions: Tensor | None) -> dict[str, dict[str, float]]:
    """Split the nats of PushT clips by the content of their patch.

    Args:
        model: the world model.
        frames: float ``[b t 3 64 64]`` in [0, 1].
        actions: ``[b f a]`` in model units.

    Returns:
        For each of `PARTS`: "nats_a_token" (NaN without such patches), "nats_a_frame", "share" of all nats and
        "patches", their share of all patches.
    """
    count = model.context_frames
    costs = nats(model, frames, actions)
    parts = patch_parts(frames[:, count - 1 :], math.isqrt(costs.shape[-1]))
    figures = {}
    for index, name in enumerate(PARTS):
        there = parts == index
        total = costs[there].sum()
        figures[name] = {
            "nats_a_token": float(costs[there].mean()),
            "nats_a_frame": float(total / costs[..., 0].numel()),
            "share": float(total / costs.sum()),
            "patches": float(there.float().mean()),
        }
    return figures


def patch_parts(frames: Tensor, grid: int) -> Tensor:
    """Classify each patch of PushT frames: an index into `PARTS`.

    A patch that never differs from the clip's most usual picture there is background; one that shows the agent is
    "agent", whatever else it shows.

    Args:
        frames: float ``[b t 3 64 64]`` in [0, 1].
        grid: patches along a side.

    Returns:
        int64 ``[b t-1 grid*grid]`` of the second to the last frame.
    """
    shares = colour_shares(frames)[:, 1:]
    agent = _count(shares[:, :, 0] > _AGENT_SHARE, grid) >= _PIXELS
    block = _count(block_shares(frames[:, 1:]) > _BLOCK_SHARE, grid) >= _PIXELS
    place = locate_block(frames)
    turn = place.angle[:, 1:] - place.angle[:, :-1]
    moved = (place.xy[:, 1:] - place.xy[:, :-1]).norm(dim=-1) > _PUSHED_PX
    pushed = (moved | (torch.atan2(turn.sin(), turn.cos()).abs() > _PUSHED_RAD))[..., None]
    usual = rearrange(frames, "b t c h w -> (b t) c h w").median(dim=0).values
    plain = ~patches_changed(frames[:, 1:], usual.expand_as(frames[:, 1:]), grid)
    parts = torch.full(agent.shape, PARTS.index("other"), device=frames.device)
    parts[block & ~pushed] = PARTS.index("block_at_rest")
    parts[block & pushed] = PARTS.index("block_pushed")
    parts[agent] = PARTS.index("agent")
    parts[plain] = PARTS.index("background")
    return parts


def patches_changed(frames: Tensor, others: Tensor, grid: int, tolerance: float = TOLERANCE) -> Tensor:
    """Return True for patches in which a pixel differs: bool ``[b t grid*grid]`` of two ``[b t c h w]``."""
    changed = ((frames - others).abs() > tolerance).any(dim=2)
    return _count(changed, grid) > 0


def _count(pixels: Tensor, grid: int) -> Tensor:
    """Count the pixels of each patch that are true: ``[b t grid*grid]`` of bool ``[b t h w]``."""
    return reduce(pixels.float(), "b t (h p) (w q) -> b t (h w)", "sum", h=grid, w=grid)


def _context(tokenizer: CompressiveTokenizer, frames: Tensor):
    """Return the features of the context for encoder and decoder, and the frames after it."""
    count = tokenizer.config.context_frames
    tokenizer.check_frames(frames, at_least=count + 1)
    codes, encoder = tokenizer.encode_context(frames[:, :count])
    return encoder, tokenizer.decoder_features(codes), frames[:, count:]
