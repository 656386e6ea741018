"""Registry of importers: a new kind of source is one module in this package and one line here."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Importer:
    """A kind of source.

    Attributes:
        module: name of a module of ``ivideogpt.data.convert`` (or a full module name) with the function
            ``tasks(source, **options) -> ShardTasks``, and either ``facts(source, **options) -> StoreFacts`` or the
            constant ``FACTS`` (a ``StoreFacts``, or one by the value of ``positional``).
        summary: the source in a few words, for the help text.
        positional: option of ``tasks`` that stands before SRC on the command line; "": none.
        from_hub: SRC may also be the id of a dataset on the Hugging Face Hub.
    """

    module: str
    summary: str = ""
    positional: str = ""
    from_hub: bool = False

    def load(self) -> Any:
        """Import the module."""
        return importlib.import_module(self.module if "." in self.module else f"ivideogpt.data.convert.{self.module}")


#: Every importer by its name on the command line.
IMPORTERS: dict[str, Importer] = {
    "lerobot": Importer("lerobot", "LeRobot dataset, versions 2.0, 2.1 and 3.0", from_hub=True),
    "video": Importer("video", "folder of videos, GIFs, .npz files or image folders, with tables of actions"),
    "oxe": Importer("oxe", "dataset of Open X-Embodiment, by its name", positional="name"),
    "rlds": Importer("rlds_folder", "RLDS dataset of any name, in a folder of TensorFlow Datasets"),
    "robomimic": Importer("robomimic", "HDF5 file or folder of files in the layout of robomimic"),
    "libero": Importer("libero", "HDF5 demonstrations of LIBERO"),
    "minari": Importer("minari", "Minari dataset with observations of pictures"),
    "metaworld-npz": Importer("metaworld_npz", "official demonstrations of Meta-World"),
    "bair": Importer("bair", "BAIR robot pushing"),
    "robonet": Importer("robonet", "RoboNet"),
    "vp2": Importer("vp2", "VP2 benchmark, robodesk or robosuite", positional="benchmark"),
    "ssv2": Importer("ssv2", "Something-Something V2"),
}


def command_options(importer: Importer, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that shape the content of a store, without those that only select available files."""
    return {name: value for name, value in options.items() if name not in ("partial", importer.positional)}
