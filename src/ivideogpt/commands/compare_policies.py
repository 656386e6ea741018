"""``ivideogpt evaluate-policy --compare``: policies in the simulator and in the world model, from the same starts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ivideogpt.commands.output import print_json, print_table
from ivideogpt.core.config import save_json
from ivideogpt.core.errors import MissingExtraError

if TYPE_CHECKING:
    from ivideogpt.commands.policy_choice import PolicyChoice
    from ivideogpt.commands.policy_runs import PolicyWorld, TrialSeeds
    from ivideogpt.evaluation.intervals import Estimate
    from ivideogpt.evaluation.policy_trials import TrialResult

#: Scores of a trial that are compared: name in results, and in words.
SCORES = {"success": "success", "final_reward": "final reward", "mean_reward": "mean reward of a step"}


def compare_policies(
    choices: Sequence[PolicyChoice], names: Sequence[str], seeds: TrialSeeds, folder: Path, imagination: PolicyWorld
) -> None:
    """Play each policy in both worlds and report how well they agree; finished trials are kept.

    Args:
        choices: the policies.
        names: as they were called on the command line.
        seeds: the trials.
        folder: of ``real/POLICY``, ``imagined/POLICY``, ``comparison.json`` and ``comparison.png``.
        imagination: the world model, the judge and the settings of its episodes.

    Raises:
        UserError: a policy cannot be played.
    """
    import numpy as np

    from ivideogpt.commands.policy_runs import imagined_policy, real_policy
    from ivideogpt.evaluation.intervals import Bootstrap
    from ivideogpt.evaluation.policy_comparison import compare_worlds

    start = time.perf_counter()
    scores: dict[str, tuple[list[list[float]], list[list[float]]]] = {key: ([], []) for key in SCORES}
    for choice, name in zip(choices, names, strict=True):
        # An episode that ends at a success counts with the reward of its last step from then on.
        real = real_policy(choice, name, seeds, folder / "real" / choice.label, {}, report=False)
        imagined = imagined_policy(
            choice, name, seeds, folder / "imagined" / choice.label, imagination, None, report=False
        )
        for key, (of_real, of_imagined) in scores.items():
            of_real.append([_score(result, key, imagination.settings.steps) for result in real])
            of_imagined.append([_score(result, key, imagination.settings.steps) for result in imagined])
    labels = [choice.label for choice in choices]
    trials = len(scores["success"][0][0])
    values: dict[str, Any] = {"environment": seeds.name, "trials": trials, "policies": labels, **imagination.facts}
    if imagination.classifier is not None:
        values["classifier"] = imagination.classifier.scores()
    panels, rows = [], []
    for key, words in SCORES.items():
        real, imagined = (np.array(part, np.float64) for part in scores[key])
        agreement = compare_worlds(real, imagined)
        bootstrap = Bootstrap(trials)
        means = [[_mean(bootstrap, row) for row in part] for part in (real, imagined)]
        values[key] = {name: _numbers(getattr(agreement, name)) for name in vars(agreement)} | {
            "real": [round(mean.value, 4) for mean in means[0]],
            "imagined": [round(mean.value, 4) for mean in means[1]],
        }
        panels.append((words, list(zip(labels, *means, strict=True)), agreement))
        rows.append((words, *(_text(getattr(agreement, name)) for name in vars(agreement))))
    _print_policies(labels, values)
    print_table(("agreement of the two worlds", "Pearson r", "rank correlation", "rank violation"), rows)
    values["seconds"] = time.perf_counter() - start
    save_json(folder / "comparison.json", values)
    try:
        from ivideogpt.reports.policy_comparison_plot import ComparedPolicy, write_comparison_png

        plotted = [(words, [ComparedPolicy(*row) for row in policies], fit) for words, policies, fit in panels]
        write_comparison_png(folder / "comparison.png", plotted)
    except MissingExtraError as error:
        print(f"no plot was drawn: {error}")
    print_json(values | {"results": folder})


def _score(result: TrialResult, key: str, steps: int) -> float:
    if key == "mean_reward":
        # after a success an episode would go on with the reward that it ended with
        last = result.final_reward or 0.0
        return (result.total_reward + last * max(steps - result.steps, 0)) / max(steps, result.steps)
    return float(getattr(result, key) or 0.0)


def _mean(bootstrap: Any, values: Any) -> Estimate:
    import torch

    return bootstrap.mean(torch.from_numpy(values))


def _numbers(estimate: Estimate) -> dict[str, float | None]:
    import math

    values = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return {name: round(value, 4) if math.isfinite(value) else None for name, value in values.items()}


def _text(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"


def _print_policies(labels: Sequence[str], values: dict[str, Any]) -> None:
    heads = [f"{words}, {where}" for words in SCORES.values() for where in ("real", "imagined")]
    columns = [values[key][where] for key in SCORES for where in ("real", "imagined")]
    rows = [(label, *numbers) for label, numbers in zip(labels, zip(*columns, strict=True), strict=True)]
    print_table(("policy", *heads), rows)
