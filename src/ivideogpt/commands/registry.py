"""Every command of ``ivideogpt`` by name. A new command is a function and one row here.

Nothing is imported before a command is used.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Command:
    """A command of the command line.

    Attributes:
        target: the function that runs it, "module:function".
        summary: one line of help.
        settings: the function that loads the default settings, "module:function", for a command with settings.
    """

    target: str
    summary: str
    settings: str = ""

    def load(self) -> Callable[..., object]:
        """Import the function that runs the command."""
        return _imported(self.target)

    def settings_loader(self) -> Callable[[Mapping[str, str]], Any] | None:
        """Import the function that loads the default settings; None for a command without settings."""
        return _imported(self.settings) if self.settings else None


def _imported(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


COMMANDS: Mapping[str, Command] = {
    "demo": Command("ivideogpt.commands.demo:demo", "imagine a held-out episode with the shipped model"),
    "predict": Command("ivideogpt.commands.predict:predict", "imagine the future of a video or an episode of your own"),
    "gallery": Command(
        "ivideogpt.commands.gallery:gallery", "write a web page of held-out clips beside what the model imagines"
    ),
    "serve": Command("ivideogpt.commands.serve:serve", "play a world in a browser, one action at a time"),
    "collect": Command(
        "ivideogpt.commands.collect:collect",
        "record episodes in a simulator into an episode store",
        settings="ivideogpt.commands.collect:load_recording_settings",
    ),
    "convert": Command("ivideogpt.commands.convert:convert", "turn a downloaded dataset into an episode store"),
    "demos maniskill": Command(
        "ivideogpt.commands.demos:demos_maniskill", "draw ManiSkill's recorded trajectories into an episode store"
    ),
    "demos libero": Command(
        "ivideogpt.commands.demos:demos_libero", "turn LIBERO's demonstrations into episode stores"
    ),
    "data": Command("ivideogpt.commands.data:data", "print what an episode store holds, and check it"),
    "train-tokenizer": Command(
        "ivideogpt.commands.train:train_tokenizer",
        "train a tokenizer on episode stores",
        settings="ivideogpt.commands.train:load_training_settings",
    ),
    "tokenize": Command("ivideogpt.commands.train:tokenize", "store the tokens of episodes, to train from"),
    "train-transformer": Command(
        "ivideogpt.commands.train:train_transformer",
        "train a world model around a tokenizer",
        settings="ivideogpt.commands.train:load_training_settings",
    ),
    "train-pictures": Command(
        "ivideogpt.commands.train_pictures:train_picture_model",
        "train a picture model, which needs no tokens, on episode stores",
        settings="ivideogpt.commands.train_pictures:load_picture_settings",
    ),
    "train-classifier": Command(
        "ivideogpt.commands.train_classifier:train_success_classifier",
        "train a classifier of success on recorded frames, for policies and planners",
        settings="ivideogpt.commands.train_classifier:load_classifier_settings",
    ),
    "train-policy": Command(
        "ivideogpt.commands.train_policy:train_policy",
        "train a policy that reads pictures and words on demonstrations",
        settings="ivideogpt.commands.train_policy:load_policy_settings",
    ),
    "posttrain": Command(
        "ivideogpt.commands.posttrain:posttrain",
        "improve a world model by reinforcement learning on its own metrics",
        settings="ivideogpt.commands.posttrain:load_posttrain_settings",
    ),
    "evaluate": Command(
        "ivideogpt.commands.evaluate:evaluate", "measure a checkpoint on held-out episodes, by a protocol"
    ),
    "evaluate-policy": Command(
        "ivideogpt.commands.evaluate_policy:evaluate_policy_command",
        "measure the success of policies",
    ),
    "serve-policy": Command(
        "ivideogpt.commands.serve_policy:serve_policy", "serve a policy to other programs by the openpi protocol"
    ),
    "bench": Command("ivideogpt.commands.bench:bench", "measure how fast a model imagines on this machine"),
    "plan": Command(
        "ivideogpt.commands.plan:plan",
        "reach goal pictures in a simulator by planning in a world model",
        settings="ivideogpt.commands.plan:load_planning_settings",
    ),
    "plan goals": Command(
        "ivideogpt.commands.plan_goals:plan_goals", "record goals of RoboDesk or robosuite into a file in VP2's layout"
    ),
    "mbrl": Command(
        "ivideogpt.commands.mbrl:mbrl",
        "train an agent on real and imagined episodes",
        settings="ivideogpt.commands.mbrl:load_mbrl_settings",
    ),
    "wm-rl": Command(
        "ivideogpt.commands.wm_rl:wm_rl",
        "improve a policy that reads pictures and words in a world model",
        settings="ivideogpt.commands.wm_rl:load_wm_rl_settings",
    ),
    "mbrl plot": Command("ivideogpt.commands.mbrl_plot:mbrl_plot", "draw the learning curves of such runs"),
    "migrate": Command("ivideogpt.commands.migrate:migrate", "print the command here for one of thuml/iVideoGPT"),
}
