"""The dataset table: one row for each dataset, with its cameras, frame stride, download and licence.

A new dataset of Open X-Embodiment is one ``oxe_row`` in ``_ROWS`` (and one in docs/data-sources.md).

Source: the tables of the official loader, predict.py and converter. Their values are kept as they are; where they
disagree, a row holds each value.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ivideogpt.core.errors import UserError

# Strides are relative to fractal20220817_data, whose base stride is this many frames.
_REFERENCE_STRIDE = 3
_SUFFIX = "_converted_externally_to_rlds"
_OXE_BUCKET = "gs://gresearch/robotics"
_PAPER = "https://arxiv.org/abs/2405.15223"


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """One row of the table.

    Attributes:
        name: in commands and mixtures.
        camera_key: array of an official ``.npz`` that holds the frames, as predict.py reads it.
        loader_camera_key: array that the official training loader reads. It differs from ``camera_key`` in three rows,
            where no converted file holds it (a bug of the official loader).
        converter_camera_key: observation key that the official Open X-Embodiment converter reads and writes. For
            datasets with an importer of their own this is only the default.
        base_stride: frames at this dataset's rate that last as long as three of fractal20220817_data.
        source: name in TensorFlow Datasets; numbered views share one source.
        version: its version there.
        centre_crop: the official loader and evaluation crop the frames to a square before they resize (predict.py
            does not).
        action_limit: the environment clips each action to plus or minus this, but files may hold unclipped actions.
        further_cameras: observation keys of other RGB cameras, stored beside the main camera: the keys that the
            loaders of Octo and OpenVLA use, and the rest of views that count up. Numbered views have none: each is a
            dataset here.
        url: of the download; "" where it is not certain.
        licence: of the recordings (not of code about them), as an SPDX name where there is one; "" where none is
            stated. Labels of copies are not used, because they contradict each other.
        licence_url: page of the authors, or the iVideoGPT paper, that states it; "" without a licence.
        gib: size of the download in GiB; None where it is unknown.
    """

    name: str
    camera_key: str = "image"
    loader_camera_key: str = "image"
    converter_camera_key: str = "image"
    base_stride: float = 1
    source: str = ""
    version: str = "0.1.0"
    centre_crop: bool = False
    action_limit: float | None = None
    further_cameras: tuple[str, ...] = ()
    url: str = ""
    licence: str = ""
    licence_url: str = ""
    gib: float | None = None

    def stride(self, video_stepsize: float = 1) -> int:
        """Return the frame stride: the distance between used frames, at least 1.

        Args:
            video_stepsize: the official option of that name; 1 is the rate of fractal20220817_data (3 a second).

        Raises:
            UserError: ``video_stepsize`` is not above 0.
        """
        if not 0 < video_stepsize < float("inf"):
            raise UserError(f"video_stepsize is {video_stepsize}; expected a number above 0")
        return max(round(video_stepsize * self.base_stride / _REFERENCE_STRIDE), 1)


def dataset_info(name: str) -> DatasetInfo:
    """Return the row of ``name``.

    Raises:
        UserError: no such dataset; the message names the closest one.
    """
    if name in DATASETS:
        return DATASETS[name]
    longer = [dataset for dataset in DATASETS if dataset.startswith(name)]
    closest = (longer or difflib.get_close_matches(name, DATASETS, n=1, cutoff=0.0))[0]
    raise UserError(f"there is no dataset named {name!r}; did you mean {closest!r}? Files of your own need no name")


def oxe_row(name: str, *, camera: str = "image", **fields: Any) -> DatasetInfo:
    """Return the row of a dataset of Open X-Embodiment.

    Args:
        name: in TensorFlow Datasets.
        camera: observation key of the main camera.
        fields: other fields of ``DatasetInfo``, where they differ from the default.
    """
    url = f"{_OXE_BUCKET}/{name}/{fields.get('version', DatasetInfo.version)}"
    return _row(name, camera, {"source": name, "url": url} | fields)


def importer_row(name: str, *, camera: str = "image", **fields: Any) -> DatasetInfo:
    """Return the row of a dataset that is not in TensorFlow Datasets and has an importer of its own."""
    return _row(name, camera, {"version": ""} | fields)


def _row(name: str, camera: str, fields: dict[str, Any]) -> DatasetInfo:
    cameras: dict[str, Any] = {"camera_key": camera, "loader_camera_key": camera, "converter_camera_key": camera}
    return DatasetInfo(name=name, **(cameras | fields))


def _with_views(row: DatasetInfo, count: int) -> Iterator[DatasetInfo]:
    """Yield a row, and one for each of its numbered views: <name>1 with the camera "image_1" and so on."""
    yield row
    for view in range(1, count + 1):
        fields = {name: getattr(row, name) for name in ("source", "url", "licence", "licence_url", "gib")}
        yield _row(f"{row.name}{view}", f"image_{view}", fields)


_ROWS = (
    # Open X-Embodiment
    oxe_row("fractal20220817_data", base_stride=3, gib=111.07),
    oxe_row("kuka", base_stride=10, gib=778.02),
    oxe_row(
        "bridge",
        base_stride=5,
        gib=387.49,
        licence="CC-BY-4.0",
        licence_url="https://rail-berkeley.github.io/bridgedata/",
    ),
    oxe_row("taco_play", base_stride=15, camera="rgb_static", further_cameras=("rgb_gripper",), gib=47.77),
    oxe_row(
        "jaco_play",
        base_stride=10,
        further_cameras=("image_wrist",),
        gib=9.24,
        licence="CC-BY-4.0",
        licence_url="https://github.com/clvrai/clvr_jaco_play_dataset",
    ),
    oxe_row(
        "berkeley_cable_routing",
        base_stride=10,
        further_cameras=("top_image", "wrist45_image", "wrist225_image"),
        gib=4.67,
    ),
    oxe_row(
        "roboturk",
        base_stride=10,
        camera="front_rgb",
        gib=45.39,
        licence="MIT",
        licence_url="https://github.com/RoboTurk-Platform/roboturk_real_dataset",
    ),
    oxe_row("nyu_door_opening_surprising_effectiveness", gib=7.12),
    oxe_row("viola", base_stride=20, camera="agentview_rgb", further_cameras=("eye_in_hand_rgb",), gib=10.40),
    oxe_row("berkeley_autolab_ur5", loader_camera_key="hand_image", further_cameras=("hand_image",), gib=76.39),
    oxe_row("toto", base_stride=30, gib=127.66),
    oxe_row("language_table", base_stride=10, camera="rgb", version="0.0.1", gib=399.23),
    oxe_row("columbia_cairlab_pusht_real", base_stride=10, further_cameras=("wrist_image",), gib=2.80),
    oxe_row("stanford_kuka_multimodal_dataset" + _SUFFIX, base_stride=20, gib=31.98),
    oxe_row("nyu_rot_dataset" + _SUFFIX, gib=0.01),
    oxe_row("stanford_hydra_dataset" + _SUFFIX, base_stride=10, further_cameras=("wrist_image",), gib=72.48),
    oxe_row("austin_buds_dataset" + _SUFFIX, base_stride=20, further_cameras=("wrist_image",), gib=1.49),
    oxe_row("nyu_franka_play_dataset" + _SUFFIX, base_stride=3, further_cameras=("image_additional_view",), gib=5.18),
    oxe_row("maniskill_dataset" + _SUFFIX, base_stride=20, further_cameras=("wrist_image",), gib=151.05),
    oxe_row("furniture_bench_dataset" + _SUFFIX, base_stride=10, further_cameras=("wrist_image",)),
    oxe_row("cmu_franka_exploration_dataset" + _SUFFIX, further_cameras=("highres_image",), gib=0.59),
    oxe_row("ucsd_kitchen_dataset" + _SUFFIX, base_stride=2, gib=1.33),
    oxe_row("ucsd_pick_and_place_dataset" + _SUFFIX, base_stride=3, gib=3.53),
    oxe_row("austin_sailor_dataset" + _SUFFIX, base_stride=20, further_cameras=("wrist_image",), gib=18.85),
    oxe_row("austin_sirius_dataset" + _SUFFIX, further_cameras=("wrist_image",), gib=6.55),
    oxe_row("bc_z", base_stride=10, gib=80.54),
    oxe_row("utokyo_pr2_opening_fridge" + _SUFFIX, base_stride=10, gib=0.35),
    oxe_row(
        "utokyo_pr2_tabletop_manipulation" + _SUFFIX,
        base_stride=10,
        gib=0.81,
        licence="MIT",
        licence_url="https://github.com/ojh6404/rlds_dataset_builder/blob/HEAD/utokyo_pr2_tabletop_manipulation_dataset/LICENSE",
    ),
    oxe_row("utokyo_xarm_pick_and_place" + _SUFFIX, base_stride=10, further_cameras=("image2", "hand_image"), gib=1.29),
    oxe_row("utokyo_xarm_bimanual" + _SUFFIX, base_stride=10, gib=0.14),
    oxe_row(
        "robo_net",
        version="1.0.0",
        further_cameras=("image1", "image2"),
        gib=799.91,
        licence="CC-BY-4.0",
        licence_url=_PAPER,
    ),
    oxe_row("berkeley_mvp" + _SUFFIX, loader_camera_key="hand_image", further_cameras=("hand_image",), gib=12.34),
    oxe_row("berkeley_rpt" + _SUFFIX, loader_camera_key="hand_image", further_cameras=("hand_image",), gib=40.64),
    oxe_row("kaist_nonprehensile" + _SUFFIX, base_stride=10, gib=11.71),
    oxe_row(
        "stanford_mask_vit" + _SUFFIX,
        gib=76.17,
        licence="MIT",
        licence_url="https://github.com/s-tian/rlds_dataset_builder/blob/HEAD/stanford_mask_vit/LICENSE",
    ),
    oxe_row("tokyo_u_lsmo" + _SUFFIX, gib=0.33),
    oxe_row("dlr_sara_pour" + _SUFFIX, base_stride=10, gib=2.92),
    oxe_row("dlr_sara_grid_clamp" + _SUFFIX, base_stride=10, gib=1.65),
    oxe_row("dlr_edan_shared_control" + _SUFFIX, base_stride=5, gib=3.09),
    oxe_row("asu_table_top" + _SUFFIX, base_stride=12.5, gib=0.72),
    *_with_views(
        oxe_row(
            "stanford_robocook" + _SUFFIX, further_cameras=("image_1", "image_2", "image_3", "image_4"), gib=124.62
        ),
        count=4,
    ),
    oxe_row("imperialcollege_sawyer_wrist_cam", further_cameras=("wrist_image",), gib=0.08),
    oxe_row("iamlab_cmu_pickup_insert" + _SUFFIX, base_stride=20, further_cameras=("wrist_image",), gib=50.29),
    *_with_views(
        oxe_row("uiuc_d3field", further_cameras=("image_1", "image_2", "image_3", "image_4"), gib=15.82),
        count=4,
    ),
    oxe_row("utaustin_mutex", base_stride=20, further_cameras=("wrist_image",), gib=20.79),
    oxe_row(
        "berkeley_fanuc_manipulation",
        base_stride=10,
        further_cameras=("wrist_image",),
        gib=8.85,
        licence="MIT",
        licence_url="https://github.com/thomasrantian/rlds_dataset_builder/blob/HEAD/fanuc_manipulation_v2/LICENSE",
    ),
    oxe_row("cmu_playing_with_food", base_stride=10, version="1.0.0", further_cameras=("finger_vision_1",)),
    oxe_row("cmu_play_fusion", base_stride=5, gib=6.68),
    oxe_row("cmu_stretch", base_stride=10, gib=0.71),
    oxe_row("berkeley_gnm_recon", gib=18.73),
    oxe_row("berkeley_gnm_cory_hall", gib=1.39),
    oxe_row("berkeley_gnm_sac_son", gib=7.00),
    # Not in TensorFlow Datasets: each has an importer of its own
    importer_row(
        "bair_robot_pushing",
        camera="aux1_image",
        converter_camera_key="image",
        further_cameras=("image",),
        url="http://rail.eecs.berkeley.edu/datasets/bair_robot_pushing_dataset_v0.tar",
        gib=30.06,
        licence="CC-BY-4.0",
        licence_url=_PAPER,
    ),
    importer_row(
        "tfds_robonet",
        centre_crop=True,
        url="https://github.com/SudeepDasari/RoboNet/wiki/Getting-Started",
        gib=36.20,
        licence="CC-BY-4.0",
        licence_url=_PAPER,
    ),
    importer_row(
        "vp2_robodesk",
        url="https://purl.stanford.edu/cw843qn4148",
        licence="MIT",
        licence_url="https://huggingface.co/datasets/s-tian/VP2",
    ),
    importer_row(
        "vp2_robosuite",
        url="https://purl.stanford.edu/cw843qn4148",
        licence="MIT",
        licence_url="https://huggingface.co/datasets/s-tian/VP2",
    ),
    importer_row(
        "sthsth",
        url="https://www.qualcomm.com/developer/software/something-something-v-2-dataset",
        licence="Data License Agreement",
        licence_url=_PAPER,
    ),
    # Ours, as replay files: 3 stacked frames [t 9 h w], newest 3 channels last; row t of the actions leads into frame t
    importer_row("pusht", camera="observation"),
    importer_row("metaworld", camera="observation", action_limit=1.0),
)

#: Every dataset of the table by name.
DATASETS: dict[str, DatasetInfo] = {row.name: row for row in _ROWS}
