"""The model card of a checkpoint."""

from __future__ import annotations

from typing import Any

from torch import nn

from ivideogpt.models.dynamics import Dynamics
from ivideogpt.models.picture_dynamics import PictureDynamics
from ivideogpt.models.tokenizer import CompressiveTokenizer
from ivideogpt.worldmodel.config import WorldModelConfig


def token_facts(config: WorldModelConfig, tokenizer: CompressiveTokenizer, dynamics: Dynamics) -> dict[str, str]:
    """Return the facts of a model as name and value, both for people."""
    million = {
        name: sum(p.numel() for p in part.parameters()) / 1e6
        for name, part in (("tokenizer", tokenizer), ("transformer", dynamics.transformer))
    }
    shape, layers, layout = tokenizer.config, dynamics.transformer.config, dynamics.layout
    forecast = {}
    if config.heads.forecast_grid:
        weights = sum(p.numel() for p in dynamics.heads.forecast.parameters()) / 1e6
        forecast = {"forecast": f"{weights:.1f}M parameters, from {config.heads.forecast_frames} frames"}
    return {
        "frames": f"{shape.frame_size[1]} x {shape.frame_size[0]}, {config.context_frames} context frames",
        "tokens": f"{layout.context_tokens} a context frame, {layout.dynamics_tokens} a future frame",
        "tokenizer": f"{million['tokenizer']:.1f}M parameters, codebooks of {shape.context_codes} and "
        f"{shape.dynamics_codes}",
        "transformer": f"{million['transformer']:.1f}M parameters, {layers.num_layers} layers of {layers.hidden_size}",
        **forecast,
        "actions": f"{config.heads.action_dim} numbers" if config.heads.action_dim else "none",
        "rewards": "yes" if config.heads.reward else "no",
        "trained on clips of": f"{config.clip_frames} frames" if config.clip_frames else "unknown length",
        "official code": _official_use(config, tokenizer),
    }


def _official_use(config: WorldModelConfig, tokenizer: CompressiveTokenizer) -> str:
    """Say whether the code of thuml/iVideoGPT reads the folder, and why not."""
    options = list(tokenizer.config.unofficial_options)
    if options:
        return f"cannot read this folder; its tokenizer has {', '.join(options)}"
    if not config.heads.is_official:
        return "reads the tokenizer only; `heads.safetensors` has heads that it does not know"
    return "reads this folder"


def picture_facts(config: WorldModelConfig, pictures: PictureDynamics) -> dict[str, str]:
    """Return the facts of a picture model as name and value, both for people."""
    shape = pictures.config

    def million(part: nn.Module) -> str:
        return f"{sum(p.numel() for p in part.parameters()) / 1e6:.2f}M parameters"

    parts = {
        "forecast": f"{million(pictures.forecast)}, reads {shape.forecast.frames} frames and the action",
        "rigid objects": f"{len(shape.sprites.sprites)}, read and drawn again in each frame" if shape.sprites else "",
    }
    return {
        "frames": f"{shape.resolution} x {shape.resolution}, {config.context_frames} context frames",
        "tokens": "none: the next frame is drawn by a convolutional network, deterministically",
        **{name: value for name, value in parts.items() if value},
        "actions": f"{config.heads.action_dim} numbers" if config.heads.action_dim else "none",
        "rewards": "yes" if pictures.reward is not None else "no",
        "trained on rollouts of": f"{config.clip_frames} frames" if config.clip_frames else "unknown length",
        "official code": "cannot read this folder; a picture model has no tokenizer and no transformer",
    }


def model_card(config: WorldModelConfig, facts: dict[str, str], repository: str | None = None) -> str:
    """Return Markdown with the front matter of the Hub: the model, its training data and its results.

    Args:
        config: settings and metadata of the model.
        facts: of the model, as name and value.
        repository: ``owner/name`` on the Hub, for the line that loads it from there.
    """
    lines = [
        "---",
        *([f"license: {config.metadata['license']}"] if "license" in config.metadata else []),
        "library_name: ivideogpt",
        "tags: [world-model, video-prediction, robotics]",
        "---",
        "",
    ]
    lines += [f"# {config.name or 'An iVideoGPT world model'}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in facts.items()]
    for title, values in config.metadata.items():
        lines += ["", f"## {str(title).replace('_', ' ').capitalize()}", "", *_paragraph(values)]
    use = repository or config.name or "FOLDER"
    lines += [
        "",
        "## Use",
        "",
        "```python",
        "from ivideogpt import WorldModel",
        "",
        f'model = WorldModel.from_pretrained("{use}")',
    ]
    return "\n".join([*lines, "```", ""])


def _paragraph(values: Any) -> list[str]:
    if not isinstance(values, dict):
        return [str(values)]
    return ["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in values.items())]


def _cell(value: Any) -> str:
    """Return a value of a table in one line; a list of records has a semicolon between them."""
    if isinstance(value, list):
        return "; ".join(_cell(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {_cell(item)}" for name, item in value.items() if item is not None)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
