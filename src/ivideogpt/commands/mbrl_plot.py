"""``ivideogpt mbrl plot``: draw the learning curves of runs of reinforcement learning, over their seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ivideogpt.commands.output import check_folder, print_json, print_table
from ivideogpt.core.errors import UserError

if TYPE_CHECKING:
    from ivideogpt.mbrl.results import Group


def mbrl_plot(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")],
    *,
    out: Path = Path("outputs/mbrl"),
    threshold: float | None = None,
) -> None:
    """Draw the returns of runs in the real simulator; runs that differ only in their seed are one line.

    Args:
        runs: folders that ivideogpt mbrl wrote; of any tasks, methods and seeds.
        out: folder for curves.png and curves.html.
        threshold: a return to mark; also says when each seed first reached it.
    """
    from ivideogpt.core.files import write_text_atomic
    from ivideogpt.mbrl.results import first_reached, grouped
    from ivideogpt.mbrl.run_reader import read_run
    from ivideogpt.reports.learning_curves import write_png
    from ivideogpt.reports.learning_curves_page import curves_page, notes

    if threshold is not None and not math.isfinite(threshold):
        raise UserError(f"threshold is {threshold}; expected a number, the return to mark")
    check_folder(out)
    groups = grouped([read_run(folder) for folder in runs])
    headings = ("", "seeds", "frames", "return", "95 %", "success", "95 %", "wall-clock", "imagined")
    print_table(headings, [_row(group) for group in groups])
    for text in notes(groups):
        print(text)
    if threshold is not None:
        for group in groups:
            listed = ", ".join(
                f"seed {seed} {'never' if frames is None else f'after {frames:,} frames'}"
                for seed, frames in first_reached(group, threshold).items()
            )
            print(f"{group.label}: return of {threshold:g} reached by {listed}")
    picture, page = out / "curves.png", out / "curves.html"
    write_png(picture, groups, threshold=threshold)
    write_text_atomic(page, curves_page(groups, threshold=threshold))
    summaries = {group.label: _summary(group, threshold) for group in groups}
    print_json({"curves": picture, "page": page, "groups": summaries})


def _row(group: Group) -> list[str]:
    from ivideogpt.reports.learning_curves_page import duration, number, percent

    last = group.points[-1]
    returns, success = last.returns, last.success
    return [
        group.label,
        str(len(group.runs)),
        f"{last.env_frames:,}",
        number(returns.value),
        f"{number(returns.low)} to {number(returns.high)}",
        percent(success.value),
        f"{percent(success.low)} to {percent(success.high)}",
        duration(group.seconds),
        f"{group.imagined_transitions:,}",
    ]


def _summary(group: Group, threshold: float | None) -> Mapping[str, object]:
    from ivideogpt.mbrl.results import first_reached

    last, best = group.points[-1], group.best
    summary: dict[str, object] = {
        "seeds": [run.seed for run in group.runs],
        "env_frames": last.env_frames,
        "return": last.returns.value,
        "return_low": last.returns.low,
        "return_high": last.returns.high,
        "success": last.success.value,
        "success_low": last.success.low,
        "success_high": last.success.high,
        "best_return": best.returns.value,
        "best_env_frames": best.env_frames,
        "seconds": group.seconds,
        "imagined_transitions": group.imagined_transitions,
    }
    if threshold is not None:
        summary["first_reached"] = {str(seed): frames for seed, frames in first_reached(group, threshold).items()}
    return summary
