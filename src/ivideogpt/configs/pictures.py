"""Picture models: what a preset is, the shipped PushT model, and a tiny one that shows that everything runs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ivideogpt.models.frame_reward import FrameRewardConfig
from ivideogpt.models.picture_dynamics import PictureDynamicsConfig
from ivideogpt.models.picture_forecast import PictureForecastConfig, PictureNetConfig
from ivideogpt.models.sprites import SpriteConfig, SpriteProjectionConfig
from ivideogpt.training.picture_crops import CropConfig
from ivideogpt.training.pictures import PictureTraining, PictureWeights, RoundSchedule


@dataclass(frozen=True, kw_only=True)
class PictureRecipe:
    """A picture model and how it is trained: everything but its data and its folder.

    Attributes:
        world: of `PICTURE_WORLDS`.
        training: the networks and the settings of their training.
        clip_frames: frames of the clips that the model is measured on, context included.
        actions_from_data: the forecast reads as many numbers as the actions of the data have; without actions, none.
    """

    world: str = "any"
    training: PictureTraining = field(default_factory=PictureTraining)
    clip_frames: int = 16
    actions_from_data: bool = False


def pusht_pictures() -> PictureRecipe:
    """Return the recipe of the shipped model: block and agent are rigid objects, read from every drawn frame."""
    block = SpriteConfig(size=24, texels=2, angles=24, shrink=2)
    agent = SpriteConfig(size=7, turns=False, texels=4, shrink=2)
    return PictureRecipe(
        world="pusht",
        training=PictureTraining(
            dynamics=PictureDynamicsConfig(
                resolution=64,
                forecast=PictureForecastConfig(
                    net=PictureNetConfig(width=48, deep_width=96, blocks_in=1, blocks_deep=4, blocks_out=2, copies=True)
                ),
                pointer_scale=32.0,
                pointer_offset=32.0,
                sprites=SpriteProjectionConfig(sprites=(block, agent), steps=3, rounds=2, missing_below=0.02),
                reward=FrameRewardConfig(success_above=0.95),
            ),
            steps=40_000,
            crops=CropConfig(pixels=8 * 64 * 64, sides=(40, 64), side_shares=(0.4, 0.6), place_shares=(0.5, 0.5)),
            weights=PictureWeights(shown=8.0, marked=10.0),
            rounds=RoundSchedule(first=6_000, every=2_000),
            learning_rate=1e-3,
            save_every=500,
        ),
    )


def metaworld_pictures() -> PictureRecipe:
    """Return the recipe of the shipped model of six tasks, whose cameras stand still: a scene for each task."""
    net = PictureNetConfig(width=48, deep_width=128, blocks_in=1, blocks_deep=8, blocks_out=3, copies=True, flow=True)
    return PictureRecipe(
        training=PictureTraining(
            dynamics=PictureDynamicsConfig(
                resolution=64,
                scenes=6,
                forecast=PictureForecastConfig(net=net, frames=3, action="numbers", action_dim=4),
                reward=FrameRewardConfig(
                    patch=8, width=64, blocks=3, readout="places", resolution=64, symlog=True, change=True
                ),
            ),
            steps=18_000,
            crops=CropConfig(pixels=8 * 64 * 64, sides=(64,), side_shares=(1.0,), place_shares=(1.0,), symmetry="none"),
            weights=PictureWeights(shown=2.0, marked=0.0, moving=4.0),
            square_weight=8.0,
            unroll=12,
            unroll_after=2_000,
            unroll_growth=8_000,
            stills=24,
            rewarded_share=0.0,
            learning_rate=1e-3,
            save_every=500,
        ),
        clip_frames=17,
    )


def robot_pictures() -> PictureRecipe:
    """Return a model of one scene of any robot, before a camera that stands still.

    Actions and rewards are those of the episodes, if they have any.
    """
    recipe = metaworld_pictures()
    forecast = recipe.training.dynamics.forecast
    smaller = replace(forecast, net=replace(forecast.net, blocks_deep=4, blocks_out=2))
    dynamics = replace(recipe.training.dynamics, scenes=1, forecast=smaller)
    training = replace(
        recipe.training, dynamics=dynamics, steps=6_000, square_weight=4.0, unroll=6, unroll_growth=3_000, stills=16
    )
    return replace(recipe, training=training, actions_from_data=True)


def debug_pictures() -> PictureRecipe:
    """Seconds for everything; what it learns is of no use."""
    net = PictureNetConfig(width=8, deep_width=8, blocks_deep=1)
    return PictureRecipe(
        training=PictureTraining(
            dynamics=PictureDynamicsConfig(
                resolution=16,
                forecast=PictureForecastConfig(net=net, action="numbers", action_dim=1),
                reward=FrameRewardConfig(width=8, blocks=1),
            ),
            steps=20,
            crops=CropConfig(pixels=4 * 16 * 16, sides=(16,), side_shares=(1.0,), place_shares=(1.0,), symmetry="none"),
            unroll=2,
            unroll_after=10,
            warmup_steps=2,
            log_every=10,
            save_every=10,
        ),
        clip_frames=6,
    )


def toy_push_pictures() -> PictureRecipe:
    """Return a small model of toy push at 32 px, trained in some minutes on a processor core; it has no reward.

    It reads one frame: the frame before tells nothing more. Its fine grid has a position for each cell.
    """
    net = PictureNetConfig(width=32, deep_width=32, blocks_in=2, blocks_deep=1, blocks_out=2, copies=True)
    return PictureRecipe(
        training=PictureTraining(
            dynamics=PictureDynamicsConfig(
                resolution=32, forecast=PictureForecastConfig(net=net, frames=1, action="numbers", action_dim=2)
            ),
            steps=3_000,
            crops=CropConfig(
                pixels=16 * 32 * 32,
                sides=(32,),
                side_shares=(1.0,),
                place_shares=(1.0,),
                jitter=0.0,
                symmetry="none",
            ),
            weights=PictureWeights(shown=8.0, marked=0.0),
            history_noise=0.03,
            unroll=1,
            unroll_after=1_800,
            learning_rate=2e-3,
            save_every=500,
        ),
        clip_frames=16,
    )
