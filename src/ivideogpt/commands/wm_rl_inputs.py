"""Inputs of ``ivideogpt wm-rl``: checked before anything is written, then made where they are not given."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ivideogpt.configs.registry import find_preset
from ivideogpt.core.config import from_dict, load_json, save_json
from ivideogpt.core.errors import UserError

if TYPE_CHECKING:
    from ivideogpt.commands.collect import Recorder
    from ivideogpt.configs.wmrl import WmRlRecipe
    from ivideogpt.policies.vla.tiny_flow import PolicySizes

INPUTS = ("policy", "world", "classifier", "demos", "recordings", "held_out")
_STORES = INPUTS[3:]
#: First seeds of the recordings, and of the policy's own episodes for training and held out; see `WmRlRecipe` for those
#: of demonstrations and other held-out episodes.
_RECORDINGS, _OWN, _OWN_HELD_OUT = 1_000, 30_000, 40_000
_TOKENS = "tokens:"


@dataclass
class StageResults:
    """Results of a run that are kept in ``results.json``, and the seconds of each finished stage.

    Attributes:
        path: of the file.
        values: successes "before" and "after", and "seconds" by stage.
    """

    path: Path
    values: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        """Read the file, if there is one."""
        self.values = {"seconds": {}} | (load_json(self.path) if self.path.is_file() else {})

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Keep the seconds of a stage that ends for the first time; what it prints goes to stderr."""
        start = time.perf_counter()
        with contextlib.redirect_stdout(sys.stderr):
            yield
        self.values["seconds"].setdefault(name, round(time.perf_counter() - start, 1))
        save_json(self.path, self.values)


def needed_stores(recipe: WmRlRecipe, given: Mapping[str, str | None]) -> tuple[str, ...]:
    """Return the names of the stores that the run reads."""
    config = recipe.rl
    needed = _STORES if config.imagination else _STORES[:1]
    imitates = config.algorithm == "filtered_bc" and config.demo_share > 0
    return needed if imitates or not given["policy"] else needed[1:]


def check_inputs(recipe: WmRlRecipe, given: Mapping[str, str | None]) -> None:
    """Check that the inputs can be read or made and fit each other, before anything is written.

    Raises:
        UserError: the simulator cannot be made, an input is damaged or missing, or sizes differ.
        MissingExtraError: the simulator is not installed.
    """
    from ivideogpt.commands.training_stages import read_mixture
    from ivideogpt.data.store.reader import EpisodeStore
    from ivideogpt.envs.vector import environment_sizes

    config = recipe.rl
    action_dim, _ = environment_sizes(config.task, **config.environment_options)
    for name in needed_stores(recipe, given):
        if (data := given[name]) is not None:
            for source in read_mixture(data).sources:
                EpisodeStore(source.path)
        else:
            _recorder(recipe, name)
    sides, width = _picture_sides(recipe, given)
    if width != action_dim:
        raise UserError(
            f"the policy gives actions of {width} numbers and {config.task} takes {action_dim}; give another --policy "
            "or --policy-preset"
        )
    if len(set(sides.values())) > 1:
        listed = ", ".join(f"{name} {side} px" for name, side in sides.items())
        raise UserError(f"policy, world model and classifier read frames of one size, and here they differ: {listed}")


def _picture_sides(recipe: WmRlRecipe, given: Mapping[str, str | None]) -> tuple[dict[str, int], int]:
    """Return the side of the frames that each part reads, and the numbers of the policy's actions."""
    from ivideogpt.models.success_classifier import SuccessClassifier
    from ivideogpt.worldmodel.world_model import WorldModel

    world, classifier = given["world"], given["classifier"]
    shape = _policy_sizes(recipe, given["policy"], world)
    sides = {"policy": shape.resolution}
    if not recipe.rl.imagination:
        return sides, shape.action_dim
    if world:
        sides["world model"] = WorldModel.from_pretrained(world).resolution
    elif recipe.world_preset.startswith(_TOKENS):
        tokens = find_preset(recipe.world_preset.removeprefix(_TOKENS))
        sides["world model"] = tokens.tokenizer.tokenizer.resolution
    else:
        sides["world model"] = find_preset(recipe.world_preset, "pictures").training.dynamics.resolution
    if classifier:
        sides["classifier"] = SuccessClassifier.from_pretrained(classifier).config.resolution
    else:
        sides["classifier"] = find_preset(recipe.classifier_preset, "classifiers").network.resolution
    return sides, shape.action_dim


def _policy_sizes(recipe: WmRlRecipe, policy: str | None, world: str | None) -> PolicySizes:
    """Return the sizes of the policy that is given, or else made.

    Raises:
        UserError: there is no such policy, or the algorithm needs one of ours.
    """
    from ivideogpt.commands.wm_rl_improvers import residual_config
    from ivideogpt.policies.vla.tiny_flow import TinyFlow, policy_checkpoint

    algorithm = recipe.rl.algorithm
    if policy is None:
        return find_preset(recipe.policy_preset, "policies").policy
    if algorithm == "residual_drq":
        return residual_config(recipe, policy, world)
    if policy_checkpoint(Path(policy)) is None:
        raise UserError(
            f"{policy} is no policy that {algorithm} can change; give the folder of a run of ivideogpt train-policy, "
            "or learn a correction of it: --rl.algorithm residual_drq"
        )
    return TinyFlow.from_pretrained(policy).config


def _recorder(recipe: WmRlRecipe, name: str) -> tuple[Recorder, tuple[str, ...], range, Any]:
    """Return recorder, tasks, seeds and settings of a store that is to be recorded."""
    from ivideogpt.commands.collect import find_recorder

    config, count = recipe.rl, recipe.demonstrations
    own = config.seed % max(recipe.demonstration_seeds // count, 1) * count
    first, count, options = {
        "demos": (own, count, recipe.demonstration_options),
        "recordings": (_RECORDINGS, recipe.recording_episodes, recipe.recording_options),
        "held_out": (recipe.held_out_seed, recipe.held_out_episodes, recipe.recording_options),
    }[name]
    recorder, tasks = find_recorder(config.task)
    settings = from_dict(type(recorder.settings()), dict(options), where=f"options of the recording of {config.task}")
    return recorder, tasks, range(first, first + count), settings


def make_inputs(
    recipe: WmRlRecipe,
    folder: Path,
    given: Mapping[str, str | None],
    results: StageResults,
    device: str,
    precision: str,
) -> dict[str, str]:
    """Make the inputs that are not given, each in a folder of its own; finished ones are kept."""
    from ivideogpt.commands.train_classifier import train_success_classifier
    from ivideogpt.commands.train_policy import train_policy

    config, inputs = recipe.rl, {name: value for name, value in given.items() if value}
    machine: dict[str, Any] = {"device": device, "precision": precision}
    for name in needed_stores(recipe, given):
        if name not in inputs:
            inputs[name] = str(folder / name)
            recorder, tasks, seeds, settings = _recorder(recipe, name)
            with results.stage(name):
                recorder.record(tasks, seeds, folder / name, settings, 0)
    if "policy" not in inputs:
        inputs["policy"] = str(folder / "policy")
        with results.stage("policy"):
            train_policy(
                settings=find_preset(recipe.policy_preset, "policies"),
                data=Path(inputs["demos"]),
                out=folder / "policy",
                steps=recipe.policy_steps,
                seed=config.seed,
                **machine,
            )
    if config.imagination and "world" not in inputs:
        if recipe.own.episodes and config.algorithm != "residual_drq":
            with results.stage("own episodes"):
                _add_own_episodes(recipe, inputs, folder)
        inputs["world"] = str(folder / "world")
        with results.stage("world"):
            _train_world(recipe, inputs["recordings"], folder / "world", machine)
    if config.imagination and "classifier" not in inputs:
        inputs["classifier"] = str(folder / "classifier")
        with results.stage("classifier"):
            train_success_classifier(
                settings=find_preset(recipe.classifier_preset, "classifiers"),
                data=inputs["recordings"],
                held_out=inputs["held_out"],
                out=folder / "classifier",
                world=inputs["world"],
                steps=recipe.classifier_steps,
                device=device,
            )
    return inputs


def _add_own_episodes(recipe: WmRlRecipe, inputs: dict[str, str], folder: Path) -> None:
    """Record episodes of the policy itself, and put them beside recordings and held-out ones in mixture files."""
    from ivideogpt.policies.vla.tiny_flow import TinyFlow
    from ivideogpt.wmrl.own_episodes import record_own_episodes

    config, own, policy = recipe.rl, recipe.own, TinyFlow.from_pretrained(inputs["policy"])
    wanted = (("recordings", _OWN, own.episodes, "train"), ("held_out", _OWN_HELD_OUT, own.held_out, "test"))
    for name, first, count, split in wanted:
        if count:
            out, seeds = folder / f"own_{name}", range(first, first + count)
            record_own_episodes(policy, config.task, seeds, out, own, config.environment_options, split=split)
            paths = [str(Path(place).absolute()) for place in (out, inputs[name])]
            inputs[name] = str(folder / f"{name}.json")
            save_json(Path(inputs[name]), {"sources": [{"path": path} for path in paths]})


def _train_world(recipe: WmRlRecipe, data: str, folder: Path, machine: Mapping[str, Any]) -> None:
    if not recipe.world_preset.startswith(_TOKENS):
        from ivideogpt.commands.train_pictures import train_picture_model

        train_picture_model(
            settings=find_preset(recipe.world_preset, "pictures"),
            data=data,
            run=folder,
            steps=recipe.world_steps,
            tracker="none",
            **machine,
        )
        return
    from ivideogpt.commands.training_stages import Machine, read_mixture, tokenizer_stage, transformer_stage

    tokens = find_preset(recipe.world_preset.removeprefix(_TOKENS))
    if (most := recipe.world_steps) is not None:
        forecasts = tuple(replace(stage, steps=min(stage.steps, most)) for stage in tokens.forecasts)
        tokens = replace(tokens, forecasts=forecasts)
    stores, place = read_mixture(data), Machine(**machine)
    tokenizer = tokenizer_stage(tokens, stores, folder / "tokenizer-run", place, until=recipe.world_steps)
    transformer_stage(tokens, stores, tokenizer, folder, place, until=recipe.world_steps)
