"""The official presets: the published settings of each script, and sizes that fit together."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from ivideogpt.commands.arguments import assign
from ivideogpt.configs.official import GPUS, OFFICIAL, official_script, tokenizer_updates
from ivideogpt.configs.recipe import Recipe
from ivideogpt.configs.registry import PRESETS, find_preset
from ivideogpt.core.config import from_dict, to_dict
from ivideogpt.data.augment import Augmentation
from ivideogpt.data.mixtures import mixture_weights
from ivideogpt.worldmodel.checkpoint import RELEASED

SCRIPTS = Path(__file__).parents[2] / "../shared/data/official_scripts.json"
FLAGS = SCRIPTS.with_name("official_flags.json")

an_official = pytest.mark.parametrize("name", OFFICIAL)


@pytest.fixture(scope="module")
def published():
    """``published(preset, program)``: all flags of a script, with the defaults of the program."""
    for path in (SCRIPTS, FLAGS):
        if not path.exists():
            pytest.skip(f"{path} is not here")
    scripts, flags = json.loads(SCRIPTS.read_text()), json.loads(FLAGS.read_text())

    def find(preset, program):
        defaults = {row["flag"][0][2:]: row.get("default", False) for row in flags[program]}
        types = {row["flag"][0][2:]: {"int": int, "float": float}.get(row.get("type"), str) for row in flags[program]}
        typed = next(one for one in scripts[official_script(preset)] if one["program"] == program)
        given = {name: value if value is True else types[name](value) for name, value in typed.items() if name in types}
        return {**defaults, **given}

    return find


@an_official
def test_tokenizers_train_as_published(name, published):
    flags, recipe = published(name, "train_tokenizer.py"), find_preset(name)
    training, clips = recipe.tokenizer, recipe.tokenizer_clips()
    assert training.steps == math.ceil(flags["max_train_steps"] / 2)
    assert training.batch_size == flags["train_batch_size"] * flags["gradient_accumulation_steps"] * GPUS
    assert training.gradient_accumulation == flags["gradient_accumulation_steps"]
    assert training.tokenizer.frame_size == clips.size == (flags["resolution"], flags["resolution"])
    assert training.tokenizer.context_frames == clips.context_frames == flags["context_length"]
    assert clips.frames == flags["segment_length"] and clips.horizon == flags["segment_horizon"]
    assert clips.mode == ("random_order" if flags["rand_shuffle"] else "random_after_context")
    assert flags["rand_shuffle"] != flags["rand_select"]
    assert clips.stride is None and clips.video_stepsize == flags["video_stepsize"]
    assert training.learning_rate == flags["learning_rate"]
    assert training.warmup_steps == flags["lr_warmup_steps"]
    assert f"{training.schedule}_with_warmup" == flags["lr_scheduler"]
    assert training.betas == (flags["adam_beta1"], flags["adam_beta2"])
    assert training.weight_decay == flags["adam_weight_decay"]
    assert training.clip_norm == flags["max_grad_norm"]
    assert training.average_decay == 0 and not flags["use_ema"]
    assert training.codes == ("frozen" if flags["selected_params"] else "gradient") and not training.continuous_steps
    assert training.log_every == flags["log_steps"] / 2 and training.save_every == flags["checkpointing_steps"] / 2
    assert recipe.augmentation_of("tokenizer") == augmentation(flags)
    assert OFFICIAL[name].tokenizer_data == flags["oxe_data_mixes_type"]


@an_official
def test_the_objective_of_the_tokenizer_is_the_published_one(name, published):
    flags, training = published(name, "train_tokenizer.py"), find_preset(name).tokenizer
    loss = training.loss
    assert flags["vae_loss"] == "l1" and (loss.l1_weight, loss.l2_weight) == (flags["recon_weight"], 0)
    assert loss.perceptual_weight == flags["perc_weight"] and training.perceptual == "vgg"
    assert loss.commitment_weight == 1 and training.rare_colour_weight == 1
    assert loss.balanced == flags["balanced_loss"]
    if flags["disc_start"] >= flags["max_train_steps"]:
        assert loss.discriminator_weight == 0
    else:
        assert loss.discriminator_weight == flags["disc_weight"]
        assert loss.discriminator_start == math.ceil(flags["disc_start"] / 2) < training.steps
        assert training.discriminator.depth == flags["disc_depth"]
        rate, schedule = training.discriminator_learning_rate, training.discriminator_schedule
        assert flags["discr_learning_rate"] == (training.learning_rate if rate is None else rate)
        assert flags["discr_lr_scheduler"] == f"{schedule or training.schedule}_with_warmup"


@an_official
def test_transformers_train_as_published(name, published):
    flags, recipe = published(name, "train_gpt.py"), find_preset(name)
    training, shape = recipe.transformer, recipe.model.transformer
    assert training.steps == flags["max_train_steps"]
    assert training.batch_size == flags["per_device_train_batch_size"] * flags["gradient_accumulation_steps"] * GPUS
    assert training.gradient_accumulation == flags["gradient_accumulation_steps"]
    assert training.clip_frames == flags["segment_length"]
    assert training.learning_rate == flags["learning_rate"]
    assert training.schedule == flags["lr_scheduler_type"] and training.final_ratio == 0
    assert training.warmup_steps == flags["num_warmup_steps"]
    assert training.weight_decay == flags["weight_decay"] and flags["embed_no_wd"]
    assert training.betas == (0.9, 0.999) and training.clip_norm == flags["max_grad_norm"]
    assert training.imagined_share == 0 and not recipe.forecasts
    assert shape.attention_dropout == flags["llama_attn_drop"]
    sizes = (shape.num_layers, shape.hidden_size, shape.num_heads, shape.intermediate_size, shape.max_positions)
    medium = flags["config_name"].endswith("_medium.json")
    assert sizes == ((24, 1024, 16, 4096, 1024) if medium else (12, 768, 12, 3072, 1024))
    assert recipe.model.actions == flags["action_conditioned"]
    assert recipe.model.goal_conditioned == flags["goal_conditioned"]
    assert recipe.model.heads.reward == flags["reward_prediction"]
    assert training.log_every == flags["log_steps"] and training.save_every == flags["checkpointing_steps"]
    assert recipe.augmentation_of("transformer") == augmentation(flags)
    assert recipe.tokenizer.tokenizer.context_frames == flags["context_length"]
    assert OFFICIAL[name].transformer_data == flags["oxe_data_mixes_type"]


def augmentation(flags):
    if flags["no_aug"]:
        return None
    return Augmentation.strong() if flags["strong_aug"] else Augmentation()


def test_every_training_script_has_a_preset(published):
    scripts = {name for name in json.loads(SCRIPTS.read_text()) if not name.startswith("scripts/evaluation/")}
    assert {official_script(name) for name in OFFICIAL} == scripts


@an_official
def test_clips_fit_into_the_positions_and_the_vocabulary_is_the_tokenizers(name):
    recipe = find_preset(name)
    tokenizer, shape = recipe.tokenizer.tokenizer, recipe.model.transformer
    future = recipe.transformer.clip_frames - tokenizer.context_frames
    assert tokenizer.layout.length(tokenizer.context_frames, future) <= shape.max_positions
    assert tokenizer.layout.vocab_size == shape.vocab_size == 16386
    assert tokenizer.is_official


@an_official
def test_clips_are_as_long_as_the_table_of_released_models_says(name):
    released = f"ivideogpt-{name.removeprefix('official-')}"
    if released not in RELEASED:
        pytest.skip(f"{released} was never released")
    recipe = find_preset(name)
    assert (recipe.transformer.clip_frames, recipe.model.goal_conditioned) == RELEASED[released]


@an_official
def test_batches_divide_among_the_gpus_of_the_scripts(name):
    recipe = find_preset(name)
    assert recipe.tokenizer.batch_size % GPUS == recipe.transformer.batch_size % GPUS == 0


@an_official
def test_the_data_of_a_preset_are_mixtures_that_exist(name):
    official = OFFICIAL[name]
    assert mixture_weights(official.tokenizer_data) and mixture_weights(official.transformer_data)


@pytest.mark.parametrize("name", PRESETS["training"])
def test_a_preset_is_the_same_after_a_round_trip_through_json(name):
    recipe = find_preset(name)
    assert from_dict(Recipe, json.loads(json.dumps(to_dict(recipe)))) == recipe


def test_the_official_counter_counts_the_first_step_and_not_the_second():
    assert [tokenizer_updates(steps) for steps in (1, 2, 3, 4, 200_005)] == [1, 1, 2, 2, 100_003]


def test_one_training_alone_can_be_augmented():
    recipe = replace(find_preset("debug"), augmentation=Augmentation(), augment_only="transformer")
    assert recipe.augmentation_of("tokenizer") is None and recipe.augmentation_of("transformer") == Augmentation()
    recipe = assign(recipe, {"augment_only": "null"})
    assert recipe.augmentation_of("tokenizer") == Augmentation()
