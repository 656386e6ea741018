"""The models that come inside the package."""

from __future__ import annotations

from pathlib import Path

ASSETS = Path(__file__).parents[1] / "assets"

#: Folder of each shipped model, by the name that the command line and ``from_pretrained`` take.
SHIPPED = {name: ASSETS / name for name in ("pusht-64", "pusht-64-tokens", "metaworld-64")}
#: Held-out episodes that lie in a checkpoint's folder, where there are some.
EPISODES_FILE = "episodes.safetensors"
