"""Plot of policies by their score in the simulator and in the imagination, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ivideogpt.core.files import write_atomic
from ivideogpt.evaluation.intervals import Estimate
from ivideogpt.evaluation.policy_comparison import Agreement
from ivideogpt.reports.learning_curves import PAPER, styled

try:
    from matplotlib.figure import Figure
except ModuleNotFoundError as error:
    from ivideogpt.core.errors import MissingExtraError

    raise MissingExtraError("matplotlib", "rl") from error

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#75787f", "#000000", "#8c510a")
_MARKERS = "os^DvPX*"


@dataclass(frozen=True)
class ComparedPolicy:
    """A policy with its mean score in the simulator and in the imagination."""

    label: str
    real: Estimate
    imagined: Estimate


def write_comparison_png(path: Path, panels: Sequence[tuple[str, Sequence[ComparedPolicy], Agreement]]) -> None:
    """Write a panel for each score: its name, the policies and their agreement.

    Raises:
        UserError: the file cannot be written.
    """
    with styled():
        figure = Figure(figsize=(5.0 * len(panels), 6.0), layout="constrained")
        all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (score, policies, agreement) in zip(all_axes, panels, strict=True):
            for number, policy in enumerate(policies):
                real, imagined = policy.real, policy.imagined
                axes.errorbar(
                    [real.value],
                    [imagined.value],
                    xerr=[[real.value - real.low], [real.high - real.value]],
                    yerr=[[imagined.value - imagined.low], [imagined.high - imagined.value]],
                    fmt=_MARKERS[number % len(_MARKERS)],
                    color=_COLOURS[number % len(_COLOURS)],
                    label=policy.label,
                    elinewidth=1,
                    markersize=8,
                )
            ends = [end for policy in policies for x in (policy.real, policy.imagined) for end in (x.low, x.high)]
            low, high = min(ends), max(ends)
            margin = 0.05 * (high - low or 1)
            axes.plot([low, high], [low, high], color="#75787f", linewidth=1, linestyle=(0, (3, 3)), zorder=0)
            axes.set(xlim=(low - margin, high + margin), ylim=(low - margin, high + margin))
            axes.set_box_aspect(1)
            axes.set_xlabel(f"{score}, in the simulator")
            axes.set_ylabel(f"{score}, in the imagination")
            axes.set_title(f"Pearson {agreement.pearson.value:.2f}, rank {agreement.spearman.value:.2f}")
        handles, labels = all_axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 2 * len(panels)))
        write_atomic(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120, facecolor=PAPER))
