"""The page of ``ivideogpt plan``: what happened beside what the plans expected, and the success of each agent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ivideogpt.evaluation.intervals import Estimate
from ivideogpt.planning.benchmark import AgentSummary, Figure
from ivideogpt.planning.results import PlanningRecord
from ivideogpt.reports.page import Html, Playback, clip_figure, definitions, fixed, html_page, section, table, tag


def planning_page(
    title: str,
    facts: Mapping[str, str],
    success_note: str,
    figures: Sequence[Figure],
    summaries: Sequence[AgentSummary],
    records: Mapping[str, Sequence[PlanningRecord]],
) -> str:
    """Write the whole page.

    Args:
        title: of the benchmark.
        facts: settings: name -> text.
        success_note: meaning of a success.
        figures: of the benchmark.
        summaries: one an agent.
        records: pictures of some instances by agent.
    """
    shown = [record for rows in records.values() for record in rows]
    length = max((len(record.frames) for record in shown), default=1)
    agents = [
        section(agent, f"Agent: {agent}", *(_instance(agent, record, length) for record in rows))
        for agent, rows in records.items()
        if rows
    ]
    results = section(
        "results",
        "Results",
        table(headings(figures), summary_rows(summaries, figures), strong=["model"]),
        definitions(
            {"success": success_note} | {figure.heading.removesuffix(", %"): figure.note for figure in figures}
        ),
        tag("p", audit(summaries[0])) if summaries else Html(),
        definitions(facts),
    )
    player = Playback(frames=length, context_frames=1, size=shown[0].frames.shape[-2]) if shown else None
    return html_page(
        kind="iVideoGPT planning",
        title=title,
        lead="An agent reaches goal pictures. Below: the goal, what happened, and what its plan expected at each step.",
        main=[results, *agents],
        player=player,
    )


def headings(figures: Sequence[Figure]) -> tuple[str, ...]:
    """Return the headings of the table of agents, on the page and on the terminal."""
    own = [figure.heading for figure in figures]
    return ("agent", "instances", "success, %", "95 % interval", *own, "s a decision")


def summary_rows(summaries: Sequence[AgentSummary], figures: Sequence[Figure]) -> list[tuple[str, ...]]:
    """Return the cells of the table of agents, see `headings`."""

    def own(figure: Figure, estimate: Estimate) -> str:
        return fixed(100 * estimate.value, 0) if figure.heading.endswith("%") else fixed(estimate.value, 2)

    return [
        (
            summary.agent,
            str(summary.instances),
            fixed(100 * summary.success.value, 0),
            f"{fixed(100 * summary.success.low, 0)} to {fixed(100 * summary.success.high, 0)}",
            *(own(figure, summary.figures[figure.name]) for figure in figures),
            fixed(summary.seconds_per_decision, 2),
        )
        for summary in summaries
    ]


def audit(summary: AgentSummary) -> str:
    """Write a sentence on the instances that were solved before the first action."""
    rest = summary.not_solved
    return (
        f"Audit of the starts: {100 * summary.solved_at_start:.0f} % of the instances were solved before the first "
        f"action. Without them, the success of {summary.agent} is {fixed(100 * rest.value, 0)} % "
        f"({fixed(100 * rest.low, 0)} to {fixed(100 * rest.high, 0)})."
    )


def _instance(agent: str, record: PlanningRecord, length: int) -> Html:
    outcome = f"{'reached' if record.success else 'missed'} after {len(record.frames) - 1} steps"
    figures = [
        clip_figure("true", "goal", "the picture to reach", _padded(record.goal[None], length)),
        clip_figure("true", "what happened", outcome, _padded(record.frames, length)),
    ]
    if not np.array_equal(record.planned, record.frames):
        expected = _padded(record.planned, length)
        figures.append(clip_figure("imagined", "what the plan expected", "searched again every few steps", expected))
    heading = tag("h3", f"Instance {record.number + 1}", id=f"{agent}-{record.number}")
    return tag("div", heading, tag("div", *figures, class_="rows"))


def _padded(frames: np.ndarray, length: int) -> Tensor:
    """Return frames uint8 ``[length c h w]``; the last one is repeated."""
    frames = np.concatenate([frames, frames[-1:].repeat(length - len(frames), axis=0)])
    return torch.from_numpy(frames).permute(0, 3, 1, 2)
