"""Six tasks of Meta-World in one small model, with rewards; for `ivideogpt demos collect all`."""

from __future__ import annotations

from dataclasses import replace

from ivideogpt.models.transformer import TransformerConfig
from ivideogpt.presets.pusht import pusht_recipe, pusht_tokenizer
from ivideogpt.presets.recipe import Recipe


def metaworld_recipe() -> Recipe:
    """Wider than the PushT model; no background, as each task has a scene of its own; rewards reach far, so symlog."""
    recipe = pusht_recipe()
    tokenizer = replace(
        pusht_tokenizer(), block_channels=(96, 192), context_codes=1024, dynamics_codes=1024, background=False
    )
    transformer = TransformerConfig(
        vocab_size=tokenizer.layout.vocab_size,
        hidden_size=256,
        intermediate_size=704,
        num_layers=4,
        num_heads=2,
        max_positions=recipe.model.transformer.max_positions,
    )
    return replace(
        recipe,
        tokenizer=replace(recipe.tokenizer, tokenizer=tokenizer, rare_colour_weight=5.0),
        model=replace(
            recipe.model, transformer=transformer, action_frequencies=2, forecast_width=128, symlog_rewards=True
        ),
        temperature=1.0,
    )
