"""The page of ``ivideogpt plan``: what happened beside what the plans expected, and the success of each agent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ivideogpt.evaluation.intervals import Estimate
from ivideogpt.planning.results import AgentSummary, PlanningRecord
from ivideogpt.reports.page import Html, Playback, clip_figure, definitions, fixed, html_page, section, table, tag

#: Headings of the table of agents, on the page and on the terminal.
HEADINGS = ("agent", "instances", "success, %", "95 % interval", "block, %", "covered, %", "coverage", "s a decision")
_NOTES = {
    "success": "agent and block within 20 px of the goal together and the block within 20 degrees, at some step",
    "block": "the same for the block alone",
    "covered": "the block covered 95 % of its place in the goal picture at some step",
    "coverage": "largest covered share of that place, mean over instances",
}


def planning_page(
    title: str,
    facts: Mapping[str, str],
    summaries: Sequence[AgentSummary],
    records: Mapping[str, Sequence[PlanningRecord]],
) -> str:
    """Write the whole page.

    Args:
        title: of the benchmark.
        facts: settings: name -> text.
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
        table(HEADINGS, summary_rows(summaries), strong=["model"]),
        definitions(_NOTES),
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


def summary_rows(summaries: Sequence[AgentSummary]) -> list[tuple[str, ...]]:
    """Return the cells of the table of agents, see `HEADINGS`."""

    def percent(estimate: Estimate) -> str:
        return fixed(100 * estimate.value, 0)

    return [
        (
            summary.agent,
            str(summary.instances),
            percent(summary.success),
            f"{fixed(100 * summary.success.low, 0)} to {fixed(100 * summary.success.high, 0)}",
            percent(summary.block_success),
            percent(summary.covered),
            fixed(summary.coverage.value, 2),
            fixed(summary.seconds_per_decision, 2),
        )
        for summary in summaries
    ]


def audit(summary: AgentSummary) -> str:
    """Write a sentence on the instances that were solved before the first action."""
    rest = summary.not_solved
    return (
        f"Audit of the starts: in {100 * summary.solved_at_start:.0f} % of the instances agent and block were at the "
        f"goal before the first action, in {100 * summary.block_at_start:.0f} % the block was. Without the former, "
        f"the success of {summary.agent} is {fixed(100 * rest.value, 0)} % ({fixed(100 * rest.low, 0)} to "
        f"{fixed(100 * rest.high, 0)})."
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
    heading = tag("h3", f"Instance {record.number}", id=f"{agent}-{record.number}")
    return tag("div", heading, tag("div", *figures, class_="rows"))


def _padded(frames: np.ndarray, length: int) -> Tensor:
    """Return frames uint8 ``[length c h w]``; the last one is repeated."""
    frames = np.concatenate([frames, frames[-1:].repeat(length - len(frames), axis=0)])
    return torch.from_numpy(frames).permute(0, 3, 1, 2)
