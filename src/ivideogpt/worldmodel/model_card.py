"""The model card that lies in every checkpoint we write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ivideogpt.worldmodel.world_model import WorldModel


def card_facts(model: WorldModel) -> dict[str, str]:
    """What the model is: name -> value, both for people."""
    config, tokenizer, transformer = model.config, model.tokenizer.config, model.transformer.config
    million = {
        name: sum(p.numel() for p in part.parameters()) / 1e6
        for name, part in (("tokenizer", model.tokenizer), ("transformer", model.transformer))
    }
    forecast = {}
    if config.heads.forecast_grid:
        weights = sum(p.numel() for p in model.heads.forecast.parameters()) / 1e6
        forecast = {"forecast": f"{weights:.1f}M parameters, from {config.heads.forecast_frames} frames"}
    return {
        "frames": f"{tokenizer.resolution} x {tokenizer.resolution}, {config.context_frames} context frames",
        "tokens": f"{model.layout.context_tokens} a context frame, {model.layout.dynamics_tokens} a future frame",
        "tokenizer": f"{million['tokenizer']:.1f}M parameters, codebooks of {tokenizer.context_codes} and "
        f"{tokenizer.dynamics_codes}",
        "transformer": f"{million['transformer']:.1f}M parameters, {transformer.num_layers} layers of "
        f"{transformer.hidden_size}",
        **forecast,
        "actions": f"{config.heads.action_dim} numbers" if config.heads.action_dim else "none",
        "rewards": "yes" if config.heads.reward else "no",
        "trained on clips of": f"{config.clip_frames} frames" if config.clip_frames else "unknown length",
    }


def model_card(model: WorldModel, repository: str | None = None) -> str:
    """Markdown with the front matter that the Hub reads: what the model is, what it was trained on, how well it does.

    Args:
        model: the world model.
        repository: where on the Hub it goes, to say how it is loaded from there.
    """
    config = model.config
    lines = [
        "---",
        *([f"license: {config.metadata['license']}"] if "license" in config.metadata else []),
        "library_name: ivideogpt",
        "tags: [world-model, video-prediction, robotics]",
        "---",
        "",
    ]
    lines += [f"# {config.name or 'An iVideoGPT world model'}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in card_facts(model).items()]
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
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in values.items())]
