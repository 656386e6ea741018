"""``ivideogpt evaluate-policy``: the success of policies in a simulator, in the imagination, or in both."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from ivideogpt.commands.output import check_folder
from ivideogpt.core.errors import UserError
from ivideogpt.envs.registry import canonical_name


def evaluate_policy_command(
    environment: Annotated[
        str | None, tyro.conf.Positional, tyro.conf.arg(metavar="ENV", help_behavior_hint="")
    ] = None,
    *,
    suite: str | None = None,
    policy: tuple[str, ...] = ("random",),
    trials: int = 50,
    first_seed: int = 0,
    demos: Path | None = None,
    world: str | None = None,
    classifier: Path | None = None,
    data: Path | None = None,
    compare: bool = False,
    steps: int | None = None,
    reanchor_every: int | None = None,
    out: Path | None = None,
    workers: int | None = None,
    ray: str | None = None,
    videos: int = 2,
    image_size: int | None = None,
    environment_options: Annotated[str, tyro.conf.arg(metavar="JSON")] = "{}",
    device: str = "auto",
) -> None:
    """Measure the success of a policy in a simulator or in a world model; the same command goes on after a stop.

    Args:
        environment: of any kind: libero_spatial, libero_spatial/3, maniskill/pick_cube, plate-slide, pusht, the id of a
            gymnasium environment, or module:Name.
        suite: the same; for a suite of LIBERO, all its tasks.
        policy: random; replay (the actions of demonstrations: it measures the simulator and the data); a script of the
            environment (pusht-goal, pusht-drag, metaworld-script, reacher-script, toy-push-script), with options as in
            pusht-goal:noise=20; planner:world=CHECKPOINT, a search for reward in a world model; the folder of a run of
            `ivideogpt mbrl`, `train-policy` or `wm-rl` (RUN/improved), or one of its checkpoints; or the address
            ws://HOST:PORT of a policy server of the openpi protocol. Several with --compare.
        trials: episodes of each task. In LIBERO the seeds 0 to 49 are the fixed start states of a task.
        first_seed: of the first trial of each task.
        demos: for replay: an episode store; default: the folder in demos/ where `ivideogpt mbrl` looks.
        world: a world model in which the policy is played in the place of the simulator.
        classifier: judge of success in the imagination, a folder of `ivideogpt train-classifier`; default: the success
            head of the world model.
        data: an episode store; imagined episodes begin with its first frames, held-out episodes before others; default:
            with the first frame that the simulator shows.
        compare: play several policies in the simulator and in the world model, from the same starts, and report how
            well the two agree.
        steps: of an episode; default: the limit of the environment, or 100 in the imagination.
        reanchor_every: imagined frames between two encodings of the context; default: as the model was trained.
        out: folder of the results and videos; default: runs/policies/ENV-POLICY.
        workers: processes; 0: this one; default: one for each processor.
        ray: work on a Ray cluster: auto (that of this machine; also --ray alone), local, HOST:PORT or ray://HOST:PORT;
            every machine must have the same folders.
        videos: of each task, the number of trials with a video.
        image_size: side that pictures are resized to for the policy; an agent's run says it itself.
        environment_options: arguments of the environment, such as '{"steps": 100}'.
        device: of the world model: auto, cpu or cuda.
    """
    from ivideogpt.commands.compare_policies import compare_policies
    from ivideogpt.commands.policy_choice import choose_policy
    from ivideogpt.commands.policy_runs import TrialSeeds, imagined_policy, open_policy_world, real_policy
    from ivideogpt.evaluation.policy_comparison import MIN_POLICIES

    if (name := environment or suite) is None or (environment and suite and environment != suite):
        raise UserError("name one environment, such as --suite libero_spatial or maniskill/pick_cube")
    if trials < 1 or videos < 0:
        raise UserError(f"trials is {trials} and videos is {videos}; expected at least 1 and 0")
    if steps is not None and steps < 1:
        raise UserError(f"steps is {steps}; expected at least 1")
    if compare and (world is None or len(set(policy)) < MIN_POLICIES or data is not None):
        raise UserError(
            f"--compare needs --world CHECKPOINT and at least {MIN_POLICIES} policies, and starts from the simulator's "
            "seeds; give --policy A B C and no --data"
        )
    if not compare and len(policy) != 1:
        raise UserError(f"{len(policy)} policies were given; give one, or compare them with --compare")
    if world is None and (classifier or data or reanchor_every):
        raise UserError("classifier, data and reanchor_every are for the imagination; give --world CHECKPOINT")
    name = canonical_name(name)
    choices = [choose_policy(text, name, trials=trials, demos=demos, image_size=image_size) for text in policy]
    extra = _options(environment_options) | ({} if steps is None else {"max_episode_steps": steps})
    choices = [
        replace(
            choice,
            settings=replace(
                choice.settings, environment_options=choice.settings.environment_options | extra, videos=videos
            ),
        )
        for choice in choices
    ]
    label = "comparison" if compare else Path(policy[0]).name if Path(policy[0]).is_dir() else choices[0].label
    ending = "-imagined" if world is not None and not compare else ""
    folder = Path("runs/policies") / f"{name.replace('/', '-')}-{label}{ending}" if out is None else out
    check_folder(folder)
    seeds = TrialSeeds(name, trials, first_seed, workers, ray)
    if world is None:
        real_policy(choices[0], policy[0], seeds, folder, {"demos": str(demos)})
        return
    imagination = open_policy_world(world, classifier, name, steps, reanchor_every, device)
    if compare:
        compare_policies(choices, policy, seeds, folder, imagination)
    else:
        imagined_policy(choices[0], policy[0], seeds, folder, imagination, data)


def _options(text: str) -> dict[str, Any]:
    try:
        options = json.loads(text)
    except ValueError:
        options = None
    if not isinstance(options, dict):
        raise UserError(f"environment_options is {text!r}; expected JSON such as '{{\"steps\": 100}}'")
    return options
