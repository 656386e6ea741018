"""The dataset table: for each dataset, which array is the camera and how far apart the used frames lie.

Source: the tables of the official loader, predict.py and converter. Their rows are kept as they are; where they
disagree, the row says so.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from ivideogpt.core.errors import UserError

# Strides are relative to fractal20220817_data, whose base stride is this many frames.
_REFERENCE_STRIDE = 3
_SUFFIX = "_converted_externally_to_rlds"
_OXE_BUCKET = "gs://gresearch/robotics"

# Of datasets in Open X-Embodiment, by their name there without _SUFFIX. Cameras: the observation keys that the loaders
# of Octo and OpenVLA name (and the rest of views that count up). Numbered views have none: each is a dataset here.
_FURTHER_CAMERAS: dict[str, tuple[str, ...]] = {
    "taco_play": ("rgb_gripper",),
    "jaco_play": ("image_wrist",),
    "berkeley_cable_routing": ("top_image", "wrist45_image", "wrist225_image"),
    "viola": ("eye_in_hand_rgb",),
    "berkeley_autolab_ur5": ("hand_image",),
    "columbia_cairlab_pusht_real": ("wrist_image",),
    "stanford_hydra_dataset": ("wrist_image",),
    "austin_buds_dataset": ("wrist_image",),
    "nyu_franka_play_dataset": ("image_additional_view",),
    "maniskill_dataset": ("wrist_image",),
    "furniture_bench_dataset": ("wrist_image",),
    "cmu_franka_exploration_dataset": ("highres_image",),
    "austin_sailor_dataset": ("wrist_image",),
    "austin_sirius_dataset": ("wrist_image",),
    "utokyo_xarm_pick_and_place": ("image2", "hand_image"),
    "robo_net": ("image1", "image2"),
    "berkeley_mvp": ("hand_image",),
    "berkeley_rpt": ("hand_image",),
    "stanford_robocook": ("image_1", "image_2", "image_3", "image_4"),
    "imperialcollege_sawyer_wrist_cam": ("wrist_image",),
    "iamlab_cmu_pickup_insert": ("wrist_image",),
    "uiuc_d3field": ("image_1", "image_2", "image_3", "image_4"),
    "utaustin_mutex": ("wrist_image",),
    "berkeley_fanuc_manipulation": ("wrist_image",),
    "cmu_playing_with_food": ("finger_vision_1",),
}
# GiB that lie in the bucket.
_GIB: dict[str, float] = {
    "fractal20220817_data": 111.07,
    "kuka": 778.02,
    "bridge": 387.49,
    "taco_play": 47.77,
    "jaco_play": 9.24,
    "berkeley_cable_routing": 4.67,
    "roboturk": 45.39,
    "nyu_door_opening_surprising_effectiveness": 7.12,
    "viola": 10.40,
    "berkeley_autolab_ur5": 76.39,
    "toto": 127.66,
    "language_table": 399.23,
    "columbia_cairlab_pusht_real": 2.80,
    "stanford_kuka_multimodal_dataset": 31.98,
    "nyu_rot_dataset": 0.01,
    "stanford_hydra_dataset": 72.48,
    "austin_buds_dataset": 1.49,
    "nyu_franka_play_dataset": 5.18,
    "maniskill_dataset": 151.05,
    "cmu_franka_exploration_dataset": 0.59,
    "ucsd_kitchen_dataset": 1.33,
    "ucsd_pick_and_place_dataset": 3.53,
    "austin_sailor_dataset": 18.85,
    "austin_sirius_dataset": 6.55,
    "bc_z": 80.54,
    "utokyo_pr2_opening_fridge": 0.35,
    "utokyo_pr2_tabletop_manipulation": 0.81,
    "utokyo_xarm_pick_and_place": 1.29,
    "utokyo_xarm_bimanual": 0.14,
    "robo_net": 799.91,
    "berkeley_mvp": 12.34,
    "berkeley_rpt": 40.64,
    "kaist_nonprehensile": 11.71,
    "stanford_mask_vit": 76.17,
    "tokyo_u_lsmo": 0.33,
    "dlr_sara_pour": 2.92,
    "dlr_sara_grid_clamp": 1.65,
    "dlr_edan_shared_control": 3.09,
    "asu_table_top": 0.72,
    "stanford_robocook": 124.62,
    "imperialcollege_sawyer_wrist_cam": 0.08,
    "iamlab_cmu_pickup_insert": 50.29,
    "uiuc_d3field": 15.82,
    "utaustin_mutex": 20.79,
    "berkeley_fanuc_manipulation": 8.85,
    "cmu_play_fusion": 6.68,
    "cmu_stretch": 0.71,
    "berkeley_gnm_recon": 18.73,
    "berkeley_gnm_cory_hall": 1.39,
    "berkeley_gnm_sac_son": 7.00,
}
# Licence of the recordings (not of code about them) and the page that states it: the authors' own, or the iVideoGPT
# paper. Labels of copies are not taken, as they contradict each other.
_PAPER = "https://arxiv.org/abs/2405.15223"
_LICENCES: dict[str, tuple[str, str]] = {
    "bridge": ("CC-BY-4.0", "https://rail-berkeley.github.io/bridgedata/"),
    "jaco_play": ("CC-BY-4.0", "https://github.com/clvrai/clvr_jaco_play_dataset"),
    "roboturk": ("MIT", "https://github.com/RoboTurk-Platform/roboturk_real_dataset"),
    "utokyo_pr2_tabletop_manipulation": (
        "MIT",
        "https://github.com/ojh6404/rlds_dataset_builder/blob/HEAD/utokyo_pr2_tabletop_manipulation_dataset/LICENSE",
    ),
    "robo_net": ("CC-BY-4.0", _PAPER),
    "stanford_mask_vit": ("MIT", "https://github.com/s-tian/rlds_dataset_builder/blob/HEAD/stanford_mask_vit/LICENSE"),
    "berkeley_fanuc_manipulation": (
        "MIT",
        "https://github.com/thomasrantian/rlds_dataset_builder/blob/HEAD/fanuc_manipulation_v2/LICENSE",
    ),
    "bair_robot_pushing": ("CC-BY-4.0", _PAPER),
    "tfds_robonet": ("CC-BY-4.0", _PAPER),
    "vp2_robodesk": ("MIT", "https://huggingface.co/datasets/s-tian/VP2"),
    "vp2_robosuite": ("MIT", "https://huggingface.co/datasets/s-tian/VP2"),
    "sthsth": ("Data License Agreement", _PAPER),
}


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """One row of the table.

    Attributes:
        name: what the command line and the mixtures call it.
        camera_key: array of an official ``.npz`` that holds the frames, as predict.py reads it.
        loader_camera_key: the array the official training loader asks for. It differs from ``camera_key`` in
            three rows, where no converted file holds it (a bug of the official loader).
        converter_camera_key: observation key the official Open X-Embodiment converter reads and writes. For
            datasets with a converter of their own this is only the default.
        base_stride: frames at this dataset's rate that last as long as three of fractal20220817_data.
        source: name under which TensorFlow Datasets holds it; numbered views share one source.
        version: its version there.
        centre_crop: the official loader and evaluation crop the frames to a square before they resize (predict.py
            does not).
        action_limit: the environment clips each action to plus or minus this, but files may hold it unclipped.
        further_cameras: observation keys of other RGB cameras that the dataset has, stored beside the model's.
        url: where it can be downloaded; "" where we are not sure.
        licence: of the recordings, as an SPDX name where there is one; "" where we found none stated.
        licence_url: the page that states it; "" without a licence.
        gib: size of the download in GiB; None where we do not know it.
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
        """Frame stride: the distance between used frames, at least 1.

        Args:
            video_stepsize: the official flag of that name; 1 is the rate of fractal20220817_data (3 a second).

        Raises:
            UserError: ``video_stepsize`` is not above 0.
        """
        if not 0 < video_stepsize < float("inf"):
            raise UserError(f"video_stepsize is {video_stepsize}; expected a number above 0")
        return max(round(video_stepsize * self.base_stride / _REFERENCE_STRIDE), 1)


def dataset_info(name: str) -> DatasetInfo:
    """The row of ``name``.

    Raises:
        UserError: no such dataset; the message names the closest one.
    """
    if name in DATASETS:
        return DATASETS[name]
    longer = [known for known in DATASETS if known.startswith(name)]
    closest = (longer or difflib.get_close_matches(name, DATASETS, n=1, cutoff=0.0))[0]
    raise UserError(f"there is no dataset named {name!r}; did you mean {closest!r}? Files of your own need no name")


def _row(name: str, base_stride: float = 1, camera: str = "image", **differences: Any) -> DatasetInfo:
    cameras = {"camera_key": camera, "loader_camera_key": camera, "converter_camera_key": camera}
    fields: dict[str, Any] = {"name": name, "base_stride": base_stride, "source": name} | cameras | differences
    short = (fields["source"] or name).removesuffix(_SUFFIX)
    fields["licence"], fields["licence_url"] = _LICENCES.get(short, ("", ""))
    if source := fields["source"]:
        fields["url"] = f"{_OXE_BUCKET}/{source}/{fields.get('version', DatasetInfo.version)}"
        fields["gib"] = _GIB.get(short)
        fields["further_cameras"] = _FURTHER_CAMERAS.get(short, ()) if source == name else ()
    return DatasetInfo(**fields)


_ROWS = (
    # Open X-Embodiment
    _row("fractal20220817_data", 3),
    _row("kuka", 10),
    _row("bridge", 5),
    _row("taco_play", 15, "rgb_static"),
    _row("jaco_play", 10),
    _row("berkeley_cable_routing", 10),
    _row("roboturk", 10, "front_rgb"),
    _row("nyu_door_opening_surprising_effectiveness"),
    _row("viola", 20, "agentview_rgb"),
    _row("berkeley_autolab_ur5", loader_camera_key="hand_image"),
    _row("toto", 30),
    _row("language_table", 10, "rgb", version="0.0.1"),
    _row("columbia_cairlab_pusht_real", 10),
    _row("stanford_kuka_multimodal_dataset" + _SUFFIX, 20),
    _row("nyu_rot_dataset" + _SUFFIX),
    _row("stanford_hydra_dataset" + _SUFFIX, 10),
    _row("austin_buds_dataset" + _SUFFIX, 20),
    _row("nyu_franka_play_dataset" + _SUFFIX, 3),
    _row("maniskill_dataset" + _SUFFIX, 20),
    _row("furniture_bench_dataset" + _SUFFIX, 10),
    _row("cmu_franka_exploration_dataset" + _SUFFIX),
    _row("ucsd_kitchen_dataset" + _SUFFIX, 2),
    _row("ucsd_pick_and_place_dataset" + _SUFFIX, 3),
    _row("austin_sailor_dataset" + _SUFFIX, 20),
    _row("austin_sirius_dataset" + _SUFFIX),
    _row("bc_z", 10),
    _row("utokyo_pr2_opening_fridge" + _SUFFIX, 10),
    _row("utokyo_pr2_tabletop_manipulation" + _SUFFIX, 10),
    _row("utokyo_xarm_pick_and_place" + _SUFFIX, 10),
    _row("utokyo_xarm_bimanual" + _SUFFIX, 10),
    _row("robo_net", 1, version="1.0.0"),
    _row("berkeley_mvp" + _SUFFIX, loader_camera_key="hand_image"),
    _row("berkeley_rpt" + _SUFFIX, loader_camera_key="hand_image"),
    _row("kaist_nonprehensile" + _SUFFIX, 10),
    _row("stanford_mask_vit" + _SUFFIX, 1),
    _row("tokyo_u_lsmo" + _SUFFIX),
    _row("dlr_sara_pour" + _SUFFIX, 10),
    _row("dlr_sara_grid_clamp" + _SUFFIX, 10),
    _row("dlr_edan_shared_control" + _SUFFIX, 5),
    _row("asu_table_top" + _SUFFIX, 12.5),
    _row("stanford_robocook" + _SUFFIX),
    *(
        _row(f"stanford_robocook{_SUFFIX}{view}", 1, f"image_{view}", source="stanford_robocook" + _SUFFIX)
        for view in (1, 2, 3, 4)
    ),
    _row("imperialcollege_sawyer_wrist_cam"),
    _row("iamlab_cmu_pickup_insert" + _SUFFIX, 20),
    _row("uiuc_d3field"),
    *(_row(f"uiuc_d3field{view}", 1, f"image_{view}", source="uiuc_d3field") for view in (1, 2, 3, 4)),
    _row("utaustin_mutex", 20),
    _row("berkeley_fanuc_manipulation", 10),
    _row("cmu_playing_with_food", 10, version="1.0.0"),
    _row("cmu_play_fusion", 5),
    _row("cmu_stretch", 10),
    _row("berkeley_gnm_recon"),
    _row("berkeley_gnm_cory_hall"),
    _row("berkeley_gnm_sac_son"),
    # Not in TensorFlow Datasets: each has a converter of its own
    _row(
        "bair_robot_pushing",
        1,
        "aux1_image",
        converter_camera_key="image",
        source="",
        version="",
        further_cameras=("image",),
        url="http://rail.eecs.berkeley.edu/datasets/bair_robot_pushing_dataset_v0.tar",
        gib=30.06,
    ),
    _row(
        "tfds_robonet",
        1,
        centre_crop=True,
        source="",
        version="",
        url="https://github.com/SudeepDasari/RoboNet/wiki/Getting-Started",
        gib=36.20,
    ),
    _row("vp2_robodesk", 1, source="", version="", url="https://purl.stanford.edu/cw843qn4148"),
    _row("vp2_robosuite", 1, source="", version="", url="https://purl.stanford.edu/cw843qn4148"),
    _row(
        "sthsth",
        source="",
        version="",
        url="https://www.qualcomm.com/developer/software/something-something-v-2-dataset",
    ),
    # Ours, as replay files: 3 stacked frames [t 9 h w], newest 3 channels last, row t of the actions leads into frame t
    _row("pusht", camera="observation", source="", version=""),
    _row("metaworld", camera="observation", source="", version="", action_limit=1.0),
)

#: Every known dataset by name.
DATASETS: dict[str, DatasetInfo] = {row.name: row for row in _ROWS}
