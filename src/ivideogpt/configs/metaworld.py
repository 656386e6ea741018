"""Six tasks of Meta-World in one small model, with rewards; for `ivideogpt collect metaworld/all`."""

from __future__ import annotations

from dataclasses import replace

from ivideogpt.configs.pusht import pusht_recipe, pusht_tokenizer
from ivideogpt.configs.recipe import Recipe
from ivideogpt.models.transformer import TransformerConfig
from ivideogpt.training.token_forecast import ForecastTraining


def metaworld_recipe() -> Recipe:
    """Return the PushT recipe with more codes, stable codes of static patches, and symlog rewards."""
    recipe = pusht_recipe()
    tokenizer = replace(pusht_tokenizer(), context_codes=1024, dynamics_codes=1024)
    transformer: TransformerConfig = replace(recipe.model.transformer, vocab_size=tokenizer.layout.vocab_size)
    training = replace(
        recipe.tokenizer,
        tokenizer=tokenizer,
        rare_colour_weight=5.0,
        loss=replace(recipe.tokenizer.loss, still_weight=2.0),
    )
    return replace(
        recipe,
        tokenizer=training,
        model=replace(
            recipe.model,
            transformer=transformer,
            heads=replace(recipe.model.heads, action_frequencies=2, forecast_width=128),
            symlog_rewards=True,
        ),
        forecasts=(ForecastTraining(steps=4_000), ForecastTraining(steps=2_500, unroll=3, learning_rate=1e-3)),
        transformer=replace(recipe.transformer, steps=3_200),
        temperature=0.5,
    )
