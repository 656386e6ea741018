"""Presets of success classifiers; `ivideogpt train-classifier PRESET`."""

from __future__ import annotations

from ivideogpt.models.success_classifier import ClassifierConfig
from ivideogpt.training.success_classifier import ClassifierTraining


def pusht_classifier() -> ClassifierTraining:
    """Return the classifier of PushT: a reward above .95, as for the success head of pusht-64: 90 % are covered."""
    return ClassifierTraining(reward_above=0.95)


def robot_classifier() -> ClassifierTraining:
    """Return a classifier of robot episodes with an array or a flag of success, which reads the instruction."""
    return ClassifierTraining(network=ClassifierConfig(width=24, words=4096), shift=2)


def toy_push_classifier() -> ClassifierTraining:
    """Return the classifier of toy push, which reads the instruction; the place of the squares decides."""
    return ClassifierTraining(
        network=ClassifierConfig(resolution=32, width=8, hidden=64, words=512, readout="places"),
        reward_above=0.5,
        horizon=18,
        steps=1_500,
    )


def debug_classifier() -> ClassifierTraining:
    """Return a training of seconds on the moving squares, where the reward is 1 after a step of 2 px."""
    return ClassifierTraining(
        network=ClassifierConfig(resolution=16, width=8, hidden=16),
        reward_above=0.75,
        horizon=4,
        imagined_starts=8,
        steps=20,
        batch_size=16,
        warmup_steps=2,
        average_decay=0.9,
        log_every=10,
        save_every=10,
    )
