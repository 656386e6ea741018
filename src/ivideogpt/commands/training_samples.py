"""Validation of a training at a checkpoint: metrics of held-out clips, and pictures of a few.

The clips are the same at every checkpoint of a run, so that its pictures can be laid side by side.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ivideogpt.core.run import Run
from ivideogpt.data.loader import ClipLoader
from ivideogpt.data.render import grid, to_uint8, write_mp4, write_strip
from ivideogpt.metrics.image import psnr
from ivideogpt.models.tokenizer import CompressiveTokenizer
from ivideogpt.training.token_batches import LiveTokens
from ivideogpt.worldmodel.world_model import WorldModel

SAMPLES = "samples"
_BATCHES, _SHOWN = 4, 4


@torch.inference_mode()
def reconstruction_figures(tokenizer: CompressiveTokenizer, clips: ClipLoader, run: Run, step: int) -> dict[str, float]:
    """Measures a tokenizer and shows its reconstructions.

    Args:
        tokenizer: in evaluation mode.
        clips: held-out ones.
        run: gets the pictures, see ``write_samples``.
        step: updates made.

    Returns:
        ``validation_psnr_context``, ``validation_psnr_future``: mean PSNR in dB of these frames.
    """
    context, future, count = 0.0, 0.0, tokenizer.config.context_frames
    for number in range(_BATCHES):
        true = clips.clips(clips.numbers(number)).frames
        decoded = tokenizer.detokenize(tokenizer.tokenize(true)[0]).clamp(0, 1)
        quality = psnr(decoded, true)
        context += float(quality[:, :count].mean()) / _BATCHES
        future += float(quality[:, count:].mean()) / _BATCHES
        if number == 0:
            write_samples(run, step, {"true": true[:_SHOWN], "reconstructed": decoded[:_SHOWN]}, context_frames=count)
    return {"validation_psnr_context": context, "validation_psnr_future": future}


@torch.inference_mode()
def imagination_figures(model: WorldModel, clips: LiveTokens, run: Run, step: int) -> dict[str, float]:
    """Measures a transformer and shows what it imagines.

    Args:
        model: in evaluation mode.
        clips: held-out ones.
        run: gets the pictures, see ``write_samples``.
        step: updates made.

    Returns:
        ``validation_tokens``, ``validation_accuracy``: mean loss in nats, and share of the tokens that were the
        likeliest, given all true tokens before them.
    """
    loss = accuracy = 0.0
    for number in range(_BATCHES):
        batch = clips.batch(clips.loader.numbers(number))
        losses = model.dynamics.losses(batch.ids, batch.actions)
        loss += float(losses.tokens) / _BATCHES
        accuracy += float(losses.accuracy) / _BATCHES
    shown = clips.loader.numbers(0)[:_SHOWN]
    true, actions, count = clips.loader.clips(shown).frames, clips.batch(shown).actions, model.context_frames
    past, actions = model.split_actions(actions)
    imagined = model.imagine(true[:, :count], actions, horizon=true.shape[1] - count, past_actions=past)
    ours = torch.cat([true[:, :count], imagined.frames.to(true.device)], dim=1)
    write_samples(run, step, {"true": true, "imagined": ours}, context_frames=count)
    return {"validation_tokens": loss, "validation_accuracy": accuracy}


def write_samples(run: Run, step: int, clips: dict[str, Tensor], *, context_frames: int) -> None:
    """Write ``samples/step-00000010.mp4`` and a PNG strip into the run folder; trackers get the strip.

    Args:
        run: whose folder and trackers.
        step: updates made.
        clips: label -> clips ``[b t c h w]`` in [0, 1], all of one shape; the first label is the upper row.
        context_frames: how many of the first frames were given to the model.
    """
    pictures = {label: [to_uint8(clip) for clip in rows] for label, rows in clips.items()}
    path = run.folder / SAMPLES / f"step-{step:08d}.png"
    count = len(next(iter(pictures.values())))
    strip = {f"{label} {k + 1}": rows[k] for k in range(count) for label, rows in pictures.items()}
    write_strip(path, strip, context_frames=context_frames)
    write_mp4(path.with_suffix(".mp4"), grid(pictures, context_frames=context_frames))
    run.show(step, samples=path)
