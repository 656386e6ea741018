"""Every preset by name, of world models, reinforcement learning and post-training.

Presets are imported when they are used: listing their names imports nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Literal

from ivideogpt.core.config import suggestion
from ivideogpt.core.errors import UserError
from ivideogpt.envs.registry import ROBODESK_TASKS

#: The function of each preset, "module:function" or "module:function:argument" inside ``ivideogpt.configs``.
PRESETS: Mapping[str, Mapping[str, str]] = {
    # ``Recipe``: train-tokenizer and train-transformer
    "training": {
        "debug": "robot:debug_recipe",
        "pusht-64": "pusht:pusht_recipe",
        "robot-64": "robot:robot_recipe",
        "robot-64-quick": "robot:robot_quick_recipe",
        "metaworld-64": "metaworld:metaworld_recipe",
        "rlvr-world-single": "rlvr:rlvr_single",
        "rlvr-world-multi": "rlvr:rlvr_multi",
        "official-oxe-64-act-free": "official:oxe_64_act_free",
        "official-oxe-64-act-free-medium": "official:oxe_64_act_free_medium",
        "official-oxe-64-goal-cond": "official:oxe_64_goal_cond",
        "official-oxe-256-act-free": "official:oxe_256_act_free",
        "official-bair-64-act-free": "official:bair_64_act_free",
        "official-bair-64-act-cond": "official:bair_64_act_cond",
        "official-robonet-64-act-cond": "official:robonet_64_act_cond",
        "official-robonet-256-act-cond": "official:robonet_256_act_cond",
        "official-vp2-robosuite-64-act-cond": "official:vp2_64_act_cond",
        "official-vp2-robodesk-64-act-cond": "official:vp2_64_act_cond",
    },
    # ``PictureRecipe``: train-pictures
    "pictures": {
        "debug": "pictures:debug_pictures",
        "robot-64": "pictures:robot_pictures",
        "pusht-64": "pictures:pusht_pictures",
        "toy-push": "pictures:toy_push_pictures",
        "metaworld-64": "pictures:metaworld_pictures",
    },
    # ``ClassifierTraining``: train-classifier
    "classifiers": {
        "pusht": "classifier:pusht_classifier",
        "robot": "classifier:robot_classifier",
        "toy-push": "classifier:toy_push_classifier",
        "debug": "classifier:debug_classifier",
    },
    # ``PolicyRecipe``: train-policy
    "policies": {
        "toy": "policies:toy_policy",
        "pusht": "policies:pusht_policy",
        "libero": "policies:libero_policy",
        "libero-quick": "policies:quick_libero_policy",
        "debug": "policies:debug_policy",
    },
    # ``MbrlConfig``: mbrl
    "mbrl": {
        "metaworld": "mbrl:metaworld_agent",
        "official": "mbrl:official",
        "pusht": "mbrl:pusht",
        "reacher": "mbrl:reacher",
        "maniskill": "mbrl:maniskill_agent",
        "libero": "mbrl:libero_agent",
        "debug": "mbrl:debug",
    },
    # ``PlanningConfig``: plan
    "planning": {
        "pusht": "planning:pusht_planning",
        **{f"robodesk/{task}": f"planning:robodesk_planning:{task}" for task in ROBODESK_TASKS},
        "robosuite/push": "planning:robosuite_planning",
    },
    # ``WmRlRecipe``: wm-rl
    "wmrl": {
        "toy-push": "wmrl:toy_push_improvement",
        "libero": "wmrl:libero_improvement",
        "libero-quick": "wmrl:quick_libero_improvement",
        "debug": "wmrl:debug_improvement",
    },
    # ``GrpoTraining``: posttrain
    "posttrain": {
        "rlvr-world": "posttrain:rlvr_world",
        "rlvr-world-single": "posttrain:rlvr_world_single",
        "rlvr-world-multi": "posttrain:rlvr_world_multi",
        "cpu": "posttrain:cpu",
        "debug": "posttrain:debug_grpo",
    },
}

#: A kind of presets.
PresetKind = Literal["training", "pictures", "classifiers", "policies", "mbrl", "planning", "wmrl", "posttrain"]
#: The command of each kind that the message on an unknown preset names.
_COMMANDS: Mapping[PresetKind, str] = {
    "training": "",
    "pictures": " for train-pictures",
    "classifiers": " for train-classifier",
    "policies": " for train-policy",
    "mbrl": " for mbrl",
    "planning": " for plan",
    "wmrl": " for wm-rl",
    "posttrain": " for posttrain",
}


def find_preset(name: str, kind: PresetKind = "training") -> Any:
    """Return the settings of a preset.

    Args:
        name: of the preset.
        kind: "training" gives a ``Recipe``, "pictures" a ``PictureRecipe``, "classifiers" a ``ClassifierTraining``,
            "policies" a ``PolicyRecipe``, "mbrl" an ``MbrlConfig``, "planning" a ``PlanningConfig``, "wmrl" a
            ``WmRlRecipe``, and "posttrain" a ``GrpoTraining``.

    Raises:
        UserError: there is no such preset; the message names the closest one.
    """
    presets = PRESETS[kind]
    if name not in presets:
        raise UserError(f"there is no preset {name!r}{_COMMANDS[kind]}; {suggestion(name, presets)}")
    module, function, *arguments = presets[name].split(":")
    return getattr(importlib.import_module(f"ivideogpt.configs.{module}"), function)(*arguments)
