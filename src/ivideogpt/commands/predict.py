"""``ivideogpt predict``: imagine the future of a video or a recorded episode."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ivideogpt.commands.inputs import check_is_store, check_numbers, choose_sampling
from ivideogpt.commands.output import check_folder, print_json, print_table, write_pictures
from ivideogpt.core.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from ivideogpt.core.episode import Episode
    from ivideogpt.worldmodel.world_model import WorldModel

#: Futures and frames that are imagined at most: what one batch and one video can hold.
_MOST_FUTURES, _MOST_FRAMES = 1024, 100_000


def predict(
    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")],
    *,
    input: Path,
    context_frames: int | None = None,
    horizon: int | None = None,
    repeat: int = 1,
    seed: int = 0,
    dataset_name: str | None = None,
    camera_key: str | None = None,
    stride: int | None = None,
    start: int = 0,
    episode: int = 0,
    temperature: float | None = None,
    top_k: int | None = None,
    greedy: bool = False,
    reanchor_every: int | None = None,
    output: Path | None = None,
    fps: float = 4.0,
    device: str = "auto",
    int8: bool = False,
) -> None:
    """Imagine the future of a video or an episode, beside the recording.

    Args:
        checkpoint: a folder, a Hub id (thuml/ivideogpt-oxe-64-act-free), the name of a shipped model, or a run folder.
        input: .npz, .mp4 (or another video), .gif, a folder of images, .safetensors episodes or an episode store.
        context_frames: frames to start from; default: what the checkpoint was trained with.
        horizon: frames to imagine; default: what the model was trained on, or as many as there are.
        repeat: how many futures to imagine.
        seed: of the first future; the others follow from it.
        dataset_name: sets camera and frame stride, for example fractal20220817_data or bair_robot_pushing.
        camera_key: the array of an .npz that holds the frames.
        stride: recorded frames from one frame of the clip to the next; default: the dataset's, else the checkpoint's.
        start: first recorded frame of the clip.
        episode: which episode of a store or a .safetensors file.
        temperature: of sampling; default: the checkpoint's.
        top_k: sample from this many likeliest tokens only; 0: all; default: the checkpoint's.
        greedy: take the likeliest token instead of sampling.
        reanchor_every: imagined frames between two encodings of the context.
        output: folder for the results; default: outputs/predict/NAME.
        fps: frames a second of the videos.
        device: auto, cpu or cuda.
        int8: on a CPU, imagine with weights of 8 bits: faster, a little less exact.
    """
    from ivideogpt.data.catalog import dataset_info
    from ivideogpt.evaluation.rollouts import imagine_with_progress
    from ivideogpt.worldmodel.session import DEFAULT_HORIZON
    from ivideogpt.worldmodel.world_model import WorldModel

    # options
    check_numbers(repeat=(repeat, 1, _MOST_FUTURES), horizon=(horizon, 1, _MOST_FRAMES))
    if not 0.01 <= fps <= 1000:
        raise UserError(f"fps is {fps}; expected 0.01 to 1000 frames a second")
    folder = output or Path("outputs") / "predict" / input.stem
    check_folder(folder)
    check_is_store(input)
    if stride is None and dataset_name is not None:
        stride = dataset_info(dataset_name).stride()

    # model and clip
    model = WorldModel.from_pretrained(checkpoint, device=device, context_frames=context_frames, int8=int8)
    sampling = choose_sampling(model, temperature=temperature, top_k=top_k, greedy=greedy)
    recorded = _read(input, episode, dataset_name, camera_key, model.frame_size)
    stride = model.config.frame_stride if stride is None else stride
    clip = _clip(model, _strided(recorded, start, stride), horizon)
    context, future = clip.frames[: model.context_frames], clip.frames[model.context_frames :]
    steps = horizon or len(future) or DEFAULT_HORIZON
    past, actions = model.split_actions(_actions(model, clip, steps, repeat))

    # imagination
    imagined, seconds = imagine_with_progress(
        model,
        _pixels(context)[None].expand(repeat, -1, -1, -1, -1),
        actions,
        steps,
        past_actions=past,
        sampling=sampling,
        seed=seed,
        reanchor_every=reanchor_every,
    )

    # pictures and figures
    futures, true = imagined.frames.cpu(), _pixels(future)[:steps]
    strip = _strip(_pixels(context), true if len(true) == steps else None, futures)
    paths = write_pictures(folder, "imagined", strip, model.context_frames, fps)
    figures = _figures(futures, true, _pixels(context)[-1])
    _print(figures, repeat, steps, steps * repeat / seconds, paths)
    print_json({**figures["best"], "frames_per_second": steps * repeat / seconds, "output": folder})


def _strip(context: torch.Tensor, true: torch.Tensor | None, futures: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the whole clips ``[t c h w]`` by label: the true one, if it is long enough, and each imagined one."""
    import torch

    strip = {} if true is None else {"true": torch.cat([context, true])}
    for index, frames in enumerate(futures, 1):
        strip["imagined" if len(futures) == 1 else f"imagined {index}"] = torch.cat([context, frames])
    return strip


def _pixels(frames: np.ndarray) -> torch.Tensor:
    """Return uint8 frames ``[t h w c]`` as floats ``[t c h w]`` in [0, 1]."""
    import torch

    return torch.from_numpy(frames.copy()).permute(0, 3, 1, 2).float() / 255


def _read(path: Path, index: int, dataset_name: str | None, camera_key: str | None, size: tuple[int, int]) -> Episode:
    from ivideogpt.data.episode_files import is_store, load_episodes, resized
    from ivideogpt.data.media import read_episode

    if is_store(path) and camera_key is None:
        from ivideogpt.data.store.reader import EpisodeStore  # needs the extra data

        store = EpisodeStore(path)
        if not 0 <= index < len(store):
            raise UserError(f"episode is {index}; {path} holds {len(store)}, so expected 0 to {len(store) - 1}")
        return resized(store[index], size)
    if path.suffix != ".safetensors":
        if index:
            raise UserError(f"episode is {index}, but {path} is one recording; give an episode store or .safetensors")
        return read_episode(path, dataset_name=dataset_name, camera_key=camera_key, size=size)
    if camera_key is not None:
        raise UserError(f"camera_key is {camera_key!r}, but {path} is no .npz and has no named arrays; leave it out")
    episodes = load_episodes(path)
    if not 0 <= index < len(episodes):
        raise UserError(f"episode is {index}; {path} holds {len(episodes)}, so expected 0 to {len(episodes) - 1}")
    return episodes[index]


def _strided(episode: Episode, start: int, stride: int) -> Episode:
    from ivideogpt.core.episode import Episode

    if stride < 1:
        raise UserError(f"stride is {stride}; expected at least 1")
    if not 0 <= start < len(episode):
        raise UserError(f"start is {start}; the input has {len(episode)} frames, so expected 0 to {len(episode) - 1}")
    # Source: thuml/iVideoGPT, which also takes every n-th action without adding them up; same.
    actions = None if episode.actions is None else episode.actions[start::stride]
    return Episode(frames=episode.frames[start::stride], actions=actions, key=episode.key)


def _clip(model: WorldModel, episode: Episode, horizon: int | None) -> Episode:
    """Return context and recorded future; for a goal-conditioned model the goal comes first."""
    import numpy as np

    from ivideogpt.core.episode import Episode

    count = model.context_frames
    given = count - 1 if model.config.goal_conditioned else count
    length = given + (horizon or model.segment_frames())
    window = episode.window(0, min(length, len(episode)))
    needed = given + 1 if model.config.goal_conditioned else given
    if len(window) < needed:
        raise UserError(
            f"the input has {len(window)} frames after start and stride; expected at least {needed}: "
            "use an earlier start, a smaller stride or fewer context frames"
        )
    if not model.config.goal_conditioned:
        return window
    frames = np.concatenate([window.frames[-1:], window.frames])
    actions = None if window.actions is None else np.concatenate([np.zeros_like(window.actions[:1]), window.actions])
    return Episode(frames=frames, actions=actions)


def _actions(model: WorldModel, clip: Episode, horizon: int, rows: int) -> torch.Tensor | None:
    """Return actions ``[rows p+horizon a]`` in model units, the same in all rows; past ones first."""
    import torch

    if not model.action_dim:
        return None
    if clip.actions is None:
        raise UserError(
            f"this model needs actions of {model.action_dim} numbers, and the input has none; "
            "give an episode with actions"
        )
    if clip.actions.shape[1] != model.action_dim:
        raise UserError(
            f"the input's actions have {clip.actions.shape[1]} numbers; this model was trained with {model.action_dim}"
        )
    first = model.context_frames - 1
    usable = clip.actions[first:-1]
    if len(usable) < horizon:
        raise UserError(
            f"horizon is {horizon}, but the input has actions for {len(usable)} future frames; use at most that"
        )
    actions = torch.from_numpy(clip.actions[first - model.past_actions : first + horizon]).float()
    return model.normalize_actions(actions).expand(rows, -1, -1)


def _figures(futures: torch.Tensor, true: torch.Tensor, last: torch.Tensor) -> dict[str, dict[str, float]]:
    """Return the mean over recorded frames of each future; "best" is the best of the futures by PSNR."""
    from ivideogpt.metrics.image import psnr, ssim

    if not len(true):
        nothing = {name: float("nan") for name in ("psnr", "psnr_copy_last", "ssim")}
        return {"best": nothing, "mean": nothing, "copy_last": nothing}
    truth = true[None].expand(len(futures), *true.shape)
    ratios = psnr(futures[:, : len(true)], truth).mean(dim=1)
    similar = ssim(futures[:, : len(true)], truth).mean(dim=1)
    copy = last.expand_as(true)[None]
    copied = float(psnr(copy, true[None]).mean())
    best = int(ratios.argmax())
    return {
        "best": {"psnr": float(ratios[best]), "psnr_copy_last": copied, "ssim": float(similar[best])},
        "mean": {"psnr": float(ratios.mean()), "psnr_copy_last": copied, "ssim": float(similar.mean())},
        "copy_last": {"psnr": copied, "psnr_copy_last": copied, "ssim": float(ssim(copy, true[None]).mean())},
    }


def _print(figures: dict[str, dict[str, float]], repeat: int, steps: int, speed: float, paths: list[Path]) -> None:
    lines = [
        ["imagined" if repeat == 1 else f"imagined, best of {repeat}", figures["best"]["psnr"], figures["best"]["ssim"]]
    ]
    if repeat > 1:
        lines.append([f"imagined, mean of {repeat}", figures["mean"]["psnr"], figures["mean"]["ssim"]])
    lines.append(["copy of the last frame", figures["copy_last"]["psnr"], figures["copy_last"]["ssim"]])
    print_table([f"{steps} frames", "PSNR (dB)", "SSIM"], lines)
    print(f"{speed:.1f} frames/s")
    for path in paths:
        print(path)
