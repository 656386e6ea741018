"""Which OpenGL draws, and what is said where there is none."""

import os
import subprocess
import sys

import pytest

from ivideogpt.core.errors import UserError
from ivideogpt.envs import mujoco_rendering

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is one OpenGL to choose")


@pytest.fixture
def there(monkeypatch):
    """``there(names)``: only these are installed, and MUJOCO_GL is not set."""
    monkeypatch.setenv("MUJOCO_GL", "")

    def install(*names):
        monkeypatch.setattr(mujoco_rendering, "_is_available", lambda name: name in names)

    return install


@pytest.mark.parametrize(
    ("names", "chosen"),
    [(("glfw", "osmesa", "egl"), "egl"), (("glfw", "osmesa"), "osmesa"), (("glfw",), "glfw")],
)
def test_the_first_that_is_there_is_chosen_and_told_to_mujoco(there, names, chosen):
    there(*names)
    assert mujoco_rendering.choose_gl() == chosen == os.environ["MUJOCO_GL"]


def test_what_the_user_set_is_respected(there, monkeypatch):
    there("egl", "osmesa")
    monkeypatch.setenv("MUJOCO_GL", "OSMesa")
    assert mujoco_rendering.choose_gl() == "osmesa"


def test_without_any_the_debian_packages_are_named(there):
    there()
    with pytest.raises(UserError, match=r"apt-get install libegl1 libegl-mesa0 libgl1 libgl1-mesa-dri.*libosmesa6"):
        mujoco_rendering.choose_gl()
    assert not os.environ["MUJOCO_GL"]


@pytest.mark.parametrize(
    ("said", "sentence"),
    [("osmesa", "MUJOCO_GL is 'osmesa', which needs OSMesa"), ("vulkan", "expected egl or osmesa or glfw")],
)
def test_a_setting_that_cannot_draw_is_refused_although_another_could(there, monkeypatch, said, sentence):
    there("egl")
    monkeypatch.setenv("MUJOCO_GL", said)
    with pytest.raises(UserError, match=sentence):
        mujoco_rendering.choose_gl()


def test_egl_without_a_driver_counts_as_missing(tmp_path):
    """In a fresh interpreter, for the library looks for its drivers once."""
    code = "from ivideogpt.envs.mujoco_rendering import _egl_devices as devices; print(devices())"
    environment = {**os.environ, "__EGL_VENDOR_LIBRARY_DIRS": str(tmp_path), "__EGL_VENDOR_LIBRARY_FILENAMES": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"


def test_glfw_needs_a_display(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert not mujoco_rendering._is_available("glfw")
    monkeypatch.setenv("DISPLAY", ":0")
    assert mujoco_rendering._is_available("glfw")
