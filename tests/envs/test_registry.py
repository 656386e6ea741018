"""One registry of environments: every name resolves in one place, and what cannot be is one sentence."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium")

from ivideogpt.core.errors import UserError  # noqa: E402
from ivideogpt.envs import registry  # noqa: E402
from ivideogpt.envs.registry import EnvironmentSpec, canonical_name, find_environment, make  # noqa: E402
from ivideogpt.envs.vector import make_vector  # noqa: E402

DUMMY = """
import gymnasium
import numpy as np


class Dummy(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0, 255, (16, 16, 3), np.uint8)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros((16, 16, 3), np.uint8), {}

    def step(self, action):
        return np.zeros((16, 16, 3), np.uint8), 1.0, False, False, {}


gymnasium.register("dummy/Dummy-v0", entry_point=Dummy, max_episode_steps=4)
"""


@pytest.fixture
def dummy(tmp_path, monkeypatch) -> str:
    """The name of a module of a user's own with one environment."""
    (tmp_path / "dummy_environment.py").write_text(DUMMY)
    monkeypatch.syspath_prepend(tmp_path)
    yield "dummy_environment"
    sys.modules.pop("dummy_environment", None)
    gymnasium.registry.pop("dummy/Dummy-v0", None)


def test_a_new_environment_is_one_file_and_one_row(dummy, monkeypatch) -> None:
    row = EnvironmentSpec(id="ivideogpt/Dummy-v0", entry_point=f"{dummy}:Dummy", extra="rl", max_steps=3)
    monkeypatch.setitem(registry.ENVIRONMENTS, "dummy", row)
    assert canonical_name("Dummy") == "dummy"
    environments = make_vector("dummy", 2, frame_stack=2)
    environments.reset(seed=[0, 1])
    for step in range(3):
        _, rewards, _, truncated, _ = environments.step(np.zeros((2, 2), np.float32))
        assert rewards.tolist() == [1, 1] and truncated.all() == (step == 2)
    gymnasium.registry.pop("ivideogpt/Dummy-v0")


def test_names_of_tasks_are_understood_as_people_write_them() -> None:
    spellings = ("plate_slide", "plate-slide", "plate-slide-v3", "Plate_Slide", "metaworld/plate-slide")
    assert {canonical_name(name) for name in spellings} == {"metaworld/plate-slide"}
    assert canonical_name("metaworld/hammer") == "metaworld/hammer"
    for name in ("pusht", "reacher", "CartPole-v1"):
        assert canonical_name(name) == name
    assert canonical_name("PushT") == "pusht" and find_environment("CartPole-v1") is None


def test_tasks_of_maniskill_and_libero_are_understood_as_people_write_them() -> None:
    spellings = ("maniskill/pick_cube", "maniskill/pick-cube", "pick_cube", "PickCube-v1", "maniskill/PickCube-v1")
    assert {canonical_name(name) for name in spellings} == {"maniskill/pick-cube"}
    assert canonical_name("PushT-v1") == "maniskill/push-t"
    assert {canonical_name(name) for name in ("libero_spatial", "libero-spatial")} == {"libero_spatial"}
    assert {canonical_name(name) for name in ("libero_90/89", "LIBERO-90/89")} == {"libero_90/89"}
    with pytest.raises(UserError, match="libero_spatial has the tasks libero_spatial/0 to libero_spatial/9"):
        canonical_name("libero_spatial/10")


@pytest.mark.parametrize(("package", "name"), [("mani_skill", "pick_cube"), ("libero", "libero_spatial")])
def test_a_simulator_that_is_not_installed_is_one_sentence(package: str, name: str, monkeypatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None if module == package else find(module))
    match = find_environment(name)
    assert match is not None
    sys.modules.pop(module := match[1].entry_point.partition(":")[0], None)
    with pytest.raises(UserError, match=rf"is not installed; run: pip install 'ivideogpt\[{match[1].extra}\]'"):
        make(name)
    sys.modules.pop(module, None)


def test_an_environment_of_a_users_own_is_found_by_module_and_id_or_class(dummy) -> None:
    for name in (f"{dummy}:dummy/Dummy-v0", f"{dummy}:Dummy", "dummy/Dummy-v0"):
        assert canonical_name(name) == name
        environment = make(name, max_episode_steps=2)
        environment.reset(seed=0)
        assert [environment.step(np.zeros(2, np.float32))[3] for _ in range(2)] == [False, True]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("no_such_module:Env-v0", "'no_such_module', which cannot be imported .*ModuleNotFoundError"),
        ("json:Env-v0", "module 'json' registers no environment 'Env-v0'"),
        ("reachr", "did you mean 'reacher'"),
        ("plate-slid", "did you mean 'metaworld/plate-slide'"),
        ("Ant", "did you mean 'Ant-v"),
        ("zzzzzz", "expected pusht, reacher, toy-push, a task of Meta-World such as plate-slide"),
    ],
)
def test_a_name_of_nothing_is_one_sentence(name: str, sentence: str) -> None:
    for ask in (canonical_name, make):
        with pytest.raises(UserError, match=sentence) as error:
            ask(name)
        assert "\n" not in str(error.value)


def test_a_module_that_fails_while_it_is_imported_is_one_sentence(tmp_path, monkeypatch) -> None:
    (tmp_path / "broken_environment.py").write_text("import gymnasium\n1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="cannot be imported .ZeroDivisionError: division by zero"):
        make("broken_environment:Env-v0")


def test_options_that_an_environment_does_not_take_are_one_sentence(dummy) -> None:
    for name in ("reacher", f"{dummy}:Dummy"):
        with pytest.raises(UserError, match=r"does not take the options \['colour'\]"):
            make(name, colour=3)


@pytest.mark.parametrize("order", ["import ivideogpt, gymnasium", "import gymnasium, ivideogpt"])
def test_importing_the_package_registers_its_ids_in_any_order_and_imports_nothing_heavy(order: str) -> None:
    code = (
        "import sys\nimport ivideogpt\nassert not {'gymnasium', 'torch', 'numpy'} & set(sys.modules)\n"
        if order.startswith("import ivideogpt")
        else ""
    )
    code += f"{order}\nenvironment = gymnasium.make('ivideogpt/Reacher-v0', size=16)\n"
    code += "print(environment.reset(seed=0)[0].shape)"
    source = str(Path(registry.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={"PYTHONPATH": source}
    )
    assert done.stdout.strip() == "(16, 16, 3)", done.stderr
