"""Offscreen rendering of MuJoCo scenes, and the choice of OpenGL.

MuJoCo reads the environment variable MUJOCO_GL when it is first imported, so ``choose_gl`` comes before that.
"""

from __future__ import annotations

import atexit
import ctypes
import ctypes.util
import importlib
import os
import platform
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ivideogpt.core.errors import UserError

_SUPPORTED = {"Darwin": ("cgl",), "Windows": ("glfw",)}
_ON_LINUX = ("egl", "osmesa", "glfw")
_NEEDED = {
    "egl": "an EGL device (on Debian: apt-get install libegl1 libegl-mesa0 libgl1 libgl1-mesa-dri)",
    "osmesa": "OSMesa (on Debian: apt-get install libosmesa6)",
    "glfw": "a display",
}
# Shapes in a picture at most; those of Meta-World hold up to 44.
_MOST_SHAPES = 1000


def choose_gl() -> str:
    """Choose the OpenGL that MuJoCo draws with; write it to MUJOCO_GL where that is not set.

    Returns:
        On Linux "egl", else "osmesa", else, with a display, "glfw"; or what MUJOCO_GL says.

    Raises:
        UserError: none of them is available, or the one that MUJOCO_GL names is not.
    """
    supported = _SUPPORTED.get(platform.system(), _ON_LINUX)
    requested = os.environ.get("MUJOCO_GL", "").strip().lower()
    if requested and requested not in supported:
        raise UserError(f"MUJOCO_GL is {requested!r}; expected {' or '.join(supported)}, or leave it unset")
    if requested:
        if not _is_available(requested):
            needed = _NEEDED[requested]
            raise UserError(f"MUJOCO_GL is {requested!r}, which needs {needed}; provide it or leave MUJOCO_GL unset")
        return requested
    available = next((name for name in supported if _is_available(name)), None)
    if available is None:
        raise UserError(
            f"there is no OpenGL to draw with; expected {', or '.join(_NEEDED[name] for name in supported)}"
        )
    os.environ["MUJOCO_GL"] = available
    return available


def _is_available(name: str) -> bool:
    if platform.system() in _SUPPORTED:
        return True
    if name == "egl":
        return _egl_devices() > 0
    if name == "osmesa":
        return ctypes.util.find_library("OSMesa") is not None
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _egl_devices() -> int:
    """Count EGL's devices; the library alone, without a driver, has none."""
    try:
        library = ctypes.CDLL(ctypes.util.find_library("EGL") or "libEGL.so.1")
        find = library.eglGetProcAddress
    except (OSError, AttributeError):
        return 0
    find.restype, find.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    address = find(b"eglQueryDevicesEXT")
    if not address:
        return 0
    count = ctypes.c_int(0)
    query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int))(address)
    return count.value if query(0, None, ctypes.byref(count)) else 0


@dataclass(frozen=True)
class FreeView:
    """A camera that is no part of the scene.

    Attributes:
        lookat: the point that it looks at, x, y and z in m.
        distance: from that point, in m.
        azimuth: of the line of sight about the vertical axis, in degrees.
        elevation: of the line of sight above the horizontal plane, in degrees; negative: it looks down.
    """

    lookat: tuple[float, float, float]
    distance: float
    azimuth: float
    elevation: float


class OffscreenCamera:
    """A camera of a MuJoCo scene; to be used by the thread that made it."""

    def __init__(
        self,
        model: Any,
        name: str | FreeView,
        *,
        size: int,
        shadow_size: int,
        samples: int,
        hidden_groups: Sequence[int] = (),
    ) -> None:
        """Make an OpenGL context.

        Args:
            model: ``mujoco.MjModel``; its settings of quality and picture size are changed.
            name: of a camera of the scene, or the view of another one.
            size: side of the square picture in pixels.
            shadow_size: side of the shadow map in pixels; 0: no shadows.
            samples: for each pixel, against jagged edges; 0: one.
            hidden_groups: groups of shapes that are not drawn, such as those of the collision meshes.

        Raises:
            UserError: there is no OpenGL, or it cannot draw such pictures.
        """
        gl = choose_gl()
        _free_dropped()
        import mujoco

        self._mujoco: Any = mujoco
        self._model, self._name, self._size = model, name, size
        model.vis.quality.shadowsize, model.vis.quality.offsamples = shadow_size, samples
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        self._scene = self._mujoco.MjvScene(model, _MOST_SHAPES)
        self._option = self._mujoco.MjvOption()
        for group in hidden_groups:
            self._option.geomgroup[group] = 0
        self._rectangle = self._mujoco.MjrRect(0, 0, size, size)
        self._camera = self._mujoco.MjvCamera()
        self._gl: Any = None
        self._renderer: Any = None
        try:
            self._gl = importlib.import_module(f"mujoco.{gl}").GLContext(size, size)
            self._gl.make_current()
            self._renderer = self._mujoco.MjrContext(model, self._mujoco.mjtFontScale.mjFONTSCALE_100)
        except Exception as error:  # each OpenGL has errors of its own, and some of PyOpenGL's cannot be printed
            self.close()
            raise UserError(
                f"MUJOCO_GL is {gl!r}, and {size} x {size} pixels with {samples} samples and shadows of {shadow_size} "
                f"cannot be drawn with it ({type(error).__name__}); choose less, or another MUJOCO_GL"
            ) from error
        self._mujoco.mjr_setBuffer(self._mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._renderer)
        # Registered after mujoco's own, so it runs before that one takes EGL down.
        atexit.unregister(_close_all)
        atexit.register(_close_all)
        _OPEN.add(self)

    def draw(self, data: Any, camera: str | None = None) -> np.ndarray:
        """Return the picture, uint8 ``[size size 3]``, in OpenGL's order of rows: the lowest first.

        Args:
            data: ``mujoco.MjData`` of the scene.
            camera: name of another camera of the scene to draw from; None: the view of the constructor.
        """
        library = self._mujoco
        view = camera or self._name
        if isinstance(view, FreeView):
            self._camera.type = library.mjtCamera.mjCAMERA_FREE
            self._camera.lookat[:] = view.lookat
            self._camera.distance, self._camera.azimuth, self._camera.elevation = (
                view.distance,
                view.azimuth,
                view.elevation,
            )
        else:
            self._camera.type, self._camera.fixedcamid = library.mjtCamera.mjCAMERA_FIXED, self._model.camera(view).id
        _free_dropped()
        self._gl.make_current()
        everything = library.mjtCatBit.mjCAT_ALL
        library.mjv_updateScene(self._model, data, self._option, None, self._camera, everything, self._scene)
        library.mjr_render(self._rectangle, self._scene, self._renderer)
        picture = np.empty((self._size, self._size, 3), np.uint8)
        library.mjr_readPixels(picture, None, self._rectangle, self._renderer)
        return picture

    def close(self) -> None:
        """Free the context; closing twice does nothing."""
        _OPEN.discard(self)
        gl, self._gl = self._gl, None
        renderer, self._renderer = self._renderer, None
        _free(gl, renderer)

    def __del__(self) -> None:
        # May run at any moment, also while another camera draws: freeing now would take its context away.
        if getattr(self, "_gl", None) is not None:
            _DROPPED.append((self._gl, self._renderer))


_OPEN: weakref.WeakSet[OffscreenCamera] = weakref.WeakSet()
_DROPPED: list[tuple[Any, Any]] = []


def _free(gl: Any, renderer: Any) -> None:
    if renderer is not None:
        gl.make_current()
        renderer.free()
    if gl is not None:
        gl.free()


def _free_dropped() -> None:
    while _DROPPED:
        _free(*_DROPPED.pop())


def _close_all() -> None:
    for camera in list(_OPEN):
        camera.close()
    _free_dropped()
