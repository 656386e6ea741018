"""Actors of a Ray cluster for reinforcement learning: its environments, and the imagination in its world model.

workers = RayActors(RayPool("auto"))
environments = workers.environments([make_row] * 4)           # a VectorEnv whose rows step together
wait = workers.begin(partial(imagine_episodes, model), [rollout])
results = wait()

An actor that dies is started again. An environment then repeats its episode, which is a function of seed and actions;
other calls are simply repeated.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter, methodcaller
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import iterate
from tqdm import tqdm

from ivideogpt.core.errors import UserError
from ivideogpt.scaling.ray_pool import RETRIES, RayPool, WorkerDeathError, missing_here


class RayActors:
    """The actors of one command."""

    def __init__(self, pool: RayPool) -> None:
        """Take the cluster; actors start when they are needed."""
        self._pool = pool
        resources = pool.ray.cluster_resources()
        self._processors, self._graphics = (int(resources.get(name, 0)) for name in ("CPU", "GPU"))
        self._reserved = 0
        self._callers: list[_Actor] = []

    def environments(self, rows: Sequence[Callable[[], gymnasium.Env]]) -> VectorEnv:
        """Start an actor for each environment; return them as one vector with autoreset disabled.

        Raises:
            UserError: an environment cannot be made on a worker.
        """
        actors = [self._start(make) for make in rows]
        return _RayVectorEnv([partial(_RayEnvironment, actor, row) for row, actor in enumerate(actors)])

    def begin(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Callable[[], list[Any]]:
        """Begin to call ``function`` with each of ``items``, as many at once as there are processors left, or GPUs.

        Args:
            function: can be pickled; it goes through the object store once, as it is now.
            items: can be pickled.

        Returns:
            A function that waits for the results, in order.
        """
        on_gpus = self._pool.device == "cuda"
        left = (self._graphics - len(self._callers)) if on_gpus else self._processors - self._reserved
        for _ in range(min(len(items) - len(self._callers), left if self._callers else max(left, 1))):
            self._callers.append(self._start(list, gpus=int(on_gpus)))
        shared = self._pool.ray.put(self._pool.ray.cloudpickle.dumps(function))
        actors = [self._callers[position % len(self._callers)] for position in range(len(items))]
        calls = [partial(_call_shared, item) for item in items]
        sent = [actor.send(call, shared) for actor, call in zip(actors, calls, strict=True)]

        def wait() -> list[Any]:
            return [_repeated(*parts, shared) for parts in zip(actors, sent, calls, strict=True)]

        return wait

    def close(self) -> None:
        """End the actors of ``begin``."""
        for actor in self._callers:
            actor.end()

    def _start(self, make: Callable[[], Any], gpus: int = 0) -> _Actor:
        """Start an actor with a processor of its own; on a small cluster the last ones share those of the others."""
        processors = int(self._reserved < self._processors)
        self._reserved += processors
        return _Actor(self._pool, make, num_cpus=processors, num_gpus=gpus, scheduling_strategy="SPREAD")


class _Sent(NamedTuple):
    """A call on its way: the handle of the actor and the reference of the result."""

    handle: Any
    reference: Any


class _Actor:
    """An object in a process of the cluster."""

    def __init__(self, pool: RayPool, make: Callable[[], Any], **options: Any) -> None:
        self._pool, self._dumps = pool, pool.ray.cloudpickle.dumps
        pool.ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # as in ``RayPool.context``
        context, packed = pool.context(), self._dumps(make)
        self._new = lambda **other: pool.ray.remote(_Holder).options(**options | other).remote(context, packed)
        self._handle = self._new()

    def send(self, call: Callable[..., Any], *shared: Any) -> _Sent:
        """Begin ``call(object, *shared)``; ``shared`` are references of the object store."""
        return _Sent(self._handle, self._handle.call.remote(self._dumps(call), list(shared)))

    def receive(self, sent: _Sent) -> Any:
        """Wait for a result.

        Raises:
            WorkerDeathError: the actor died; the next call goes to a new one.
            UserError: that of the call.
        """
        try:
            return self._pool.result(sent.reference)
        except WorkerDeathError:
            if sent.handle is self._handle:
                self._handle = self._new(num_cpus=0)  # after the death of a machine no processor may be free
            raise

    def end(self) -> None:
        self._pool.ray.kill(self._handle)


def _repeated(actor: _Actor, sent: _Sent, call: Callable[..., Any], *shared: Any) -> Any:
    """Return the result of a call that may be repeated where the actor dies."""
    for _ in range(RETRIES):
        try:
            return actor.receive(sent)
        except WorkerDeathError:
            sent = actor.send(call, *shared)
    try:
        return actor.receive(sent)
    except WorkerDeathError as error:
        raise _died(f"an actor of the Ray cluster died {RETRIES + 1} times ({error})") from None


def _died(what: str) -> UserError:
    return UserError(f"{what}, perhaps because memory ran out; the same command resumes the run")


def _call_shared(item: Any, _: Any, function: Any) -> Any:
    from ivideogpt.scaling.ray_pool import load_function

    return load_function(function)(item)


class _Holder:
    """The actor's side. It is sent by value, as ``ray_pool.missing_here`` is."""

    def __init__(self, context: tuple[str, str, list[str]], make: bytes) -> None:
        self.missing, self.make, self.values = missing_here(context), make, []

    def call(self, packed: bytes, shared: list[Any]) -> tuple[str, Any]:
        """Return ("result", packed), or ("error", message of a ``UserError``)."""
        from ray import cloudpickle

        if self.missing:
            return "error", self.missing
        from ivideogpt.core.errors import UserError

        try:
            if not self.values:
                self.values.append(cloudpickle.loads(self.make)())
            result = cloudpickle.loads(packed)(self.values[0], *shared)
            return "result", cloudpickle.dumps(result)  # pyright: ignore[reportPrivateImportUsage]
        except UserError as error:
            return "error", str(error)


class _RayEnvironment(gymnasium.Env):
    """An environment in an actor; ``begin`` sends a call, and ``reset`` or ``step`` takes its result."""

    def __init__(self, actor: _Actor, row: int) -> None:
        self._actor, self._row = actor, row
        spaces = attrgetter("observation_space", "action_space")
        self.observation_space, self.action_space = _repeated(actor, actor.send(spaces), spaces)
        self._sent: _Sent | None = None
        self._episode: list[methodcaller] = []  # the calls since the last reset, which lead to the same state again
        self._observation: np.ndarray | None = None

    def begin(self, call: methodcaller, *, is_reset: bool = False) -> None:
        self._episode = [call] if is_reset else [*self._episode, call]
        self._observation = None if is_reset else self._observation
        self._sent = self._actor.send(call)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        if self._sent is None:
            self.begin(methodcaller("reset", seed=seed, options=options), is_reset=True)
        return self._result()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        if self._sent is None:
            self.begin(methodcaller("step", np.array(action)))
        return self._result()

    def close(self) -> None:
        self._actor.end()

    def _result(self) -> Any:
        assert self._sent is not None
        for _ in range(RETRIES + 1):
            try:
                result = self._actor.receive(self._sent)
                self._sent, self._observation = None, result[0]
                return result
            except WorkerDeathError:
                tqdm.write(
                    f"environment {self._row} died on the Ray cluster; it is started again and repeats its "
                    f"{len(self._episode) - 1} steps"
                )
            self._sent = self._replayed()
        raise _died(f"environment {self._row} died {RETRIES + 1} times on the Ray cluster")

    def _replayed(self) -> _Sent:
        """Repeat the episode in a new actor up to the call that failed; return that call, on its way."""
        sent = [self._actor.send(call) for call in self._episode]
        for number, call in enumerate(sent[:-1], 1):
            try:
                observation = self._actor.receive(call)[0]
            except WorkerDeathError:
                return call  # its death is seen again by the caller
            before = self._observation
            if number == len(sent) - 1 and before is not None and not np.array_equal(observation, before):
                raise UserError(
                    f"environment {self._row} died, and shows another picture after the same seed and actions: it has "
                    "randomness of its own, so this run cannot go on exactly; start a new one"
                )
        return sent[-1]


class _RayVectorEnv(SyncVectorEnv):
    """Environments in actors: all begin a call, then gymnasium's vector takes the results one by one."""

    envs: list[_RayEnvironment]

    def __init__(self, rows: list[Callable[[], _RayEnvironment]]) -> None:
        super().__init__(rows, autoreset_mode=AutoresetMode.DISABLED)  # type: ignore[arg-type]

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        rows = range(self.num_envs)
        seeds = list(seed) if isinstance(seed, Sequence) else [None if seed is None else seed + row for row in rows]
        rest = None if options is None else {name: value for name, value in options.items() if name != "reset_mask"}
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        for environment, row_seed, begins in zip(self.envs, seeds, mask, strict=True):
            if begins:
                environment.begin(methodcaller("reset", seed=row_seed, options=rest), is_reset=True)
        return super().reset(seed=seeds, options=options)

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        for environment, action in zip(self.envs, iterate(self.action_space, actions), strict=True):
            environment.begin(methodcaller("step", np.array(action)))
        return super().step(actions)
