"""Presets of post-training; `ivideogpt posttrain PRESET`."""

from __future__ import annotations

from ivideogpt.posttrain.grpo import GrpoTraining


def rlvr_world() -> GrpoTraining:
    """Return the settings of RLVR-World (arXiv 2505.13934 and its scripts), which are the defaults."""
    return GrpoTraining()


def rlvr_world_single() -> GrpoTraining:
    """Return the settings of the single-step model: one frame is predicted and scored; 321 tokens."""
    return GrpoTraining(clip_frames=5, reward_frames="last")


def rlvr_world_multi() -> GrpoTraining:
    """Return the settings of the multi-step model: the mean over seven frames; 651 positions a future."""
    return GrpoTraining(clip_frames=9)


def cpu() -> GrpoTraining:
    """Return settings for a shipped model on a processor, where futures are dear: every batch is used three times."""
    return GrpoTraining(
        perceptual_network="alex",
        credit="frames",
        discount=0.5,
        advantage="batch",
        steps=60,
        prompts=8,
        group=8,
        minibatch_prompts=8,
        epochs=3,
        gradient_accumulation=4,
        learning_rate=3e-4,
        rows_at_once=32,
    )


def debug_grpo() -> GrpoTraining:
    """Return a run of seconds that goes through everything; what it learns is of no use."""
    return GrpoTraining(
        reward="mae",
        steps=3,
        prompts=4,
        group=4,
        minibatch_prompts=2,
        gradient_accumulation=2,
        learning_rate=1e-3,
        rows_at_once=16,
        save_every=2,
    )
