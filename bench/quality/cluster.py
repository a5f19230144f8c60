"""A sweep on a Ray cluster. Each cell is one task, and each worker is a process with its own model.

Reference trajectories are sampled once, by the workers, and shared through Ray's object store. Ray copies the
repository to the workers as their working directory. Each worker finds ComfyUI through the environment
variable COMFYUI_PATH, as a local run does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...ras_core.errors import RASError
from ..common.paths import ROOT
from . import references as refs
from .cells import Cell, cell_from
from .options import Options
from .sweep import Measured, Runner

EXCLUDES = [
    ".git",
    ".host",
    ".dev",
    ".venv",
    "__pycache__",
    "bench/output",
    "training/data",
    "demo/output",
]


def ray_runner(address: str, options: Options, workers: int) -> Runner:
    """A runner that measures the cells of `sweep` on the Ray cluster at `address`; "local" starts one here.

    Raises:
        RASError: Ray is not installed.
    """
    ray = _import_ray()

    def run(cells: Sequence[Cell]) -> Measured:
        variables = {k: os.environ[k] for k in ("COMFYUI_PATH", "OMP_WAIT_POLICY") if k in os.environ}
        ray.init(
            address=address,
            runtime_env={"working_dir": str(ROOT), "excludes": EXCLUDES, "env_vars": variables},
            log_to_driver=False,
        )
        try:
            yield from _spread(ray, cells, options, workers)
        finally:
            ray.shutdown()

    return run


def _spread(ray: Any, cells: Sequence[Cell], options: Options, workers: int) -> Measured:
    kind, need = ("GPU", 1.0) if options.device == "cuda" else ("CPU", float(max(options.threads, 1)))
    available = ray.cluster_resources().get(kind, 1.0)
    count = min(workers or max(int(available / need), 1), len(cells))
    # Workers beyond the capacity of the cluster would wait forever, so workers get equal shares of it.
    share = min(need, available / count)
    share = float(int(share)) if share > 1 else share  # Ray refuses 1.5 GPUs, but accepts 0.5
    remote = ray.remote(**{f"num_{kind.lower()}s": share})(_worker_class())
    pool = [remote.remote(options.as_dict()) for _ in range(count)]
    made = _references(ray, pool, cells, options)
    tasks = [_cell_task(cell, options, made) for cell in cells]
    for number, row in _in_turn(ray, pool, tasks):
        yield cells[number], row


def _references(
    ray: Any, pool: Sequence[Any], cells: Sequence[Cell], options: Options
) -> dict[refs.Reference, Any]:
    """The references that the cells need, sampled by the workers: Ray handles of their latents."""
    wanted = refs.needed(list(cells), options)
    tasks = [_reference_task(reference) for reference in wanted]
    return {wanted[number]: ray.put(latents) for number, latents in _in_turn(ray, pool, tasks)}


def _reference_task(reference: refs.Reference) -> Callable[[Any], Any]:
    return lambda worker: worker.reference.remote(vars(reference))


def _cell_task(cell: Cell, options: Options, made: dict[refs.Reference, Any]) -> Callable[[Any], Any]:
    own = refs.needed([cell], options)
    return lambda worker: worker.row.remote(
        vars(cell), [vars(reference) for reference in own], *(made[reference] for reference in own)
    )


def _in_turn(ray: Any, pool: Sequence[Any], tasks: Sequence[Callable[[Any], Any]]) -> Any:
    """Give each free worker the next task; yields (index of the task, its result) as tasks finish."""
    waiting, running = list(enumerate(tasks)), {}
    free = list(pool)
    while waiting or running:
        while waiting and free:
            number, task = waiting.pop(0)
            worker = free.pop()
            running[task(worker)] = (number, worker)
        (finished, *_), _ = ray.wait(list(running))
        number, worker = running.pop(finished)
        free.append(worker)
        yield number, ray.get(finished)


def _worker_class() -> type:
    """The class of the Ray workers.

    The class is defined inside a function, so that Ray sends its code to the workers. A worker could not
    import the class by name: this repository can be imported in the worker only after `register_pack`, which
    the class itself calls.
    """

    class Worker:
        """A Ray actor: one process, which holds one model at a time."""

        def __init__(self, options: dict[str, Any]):
            import importlib.util
            import os

            path = os.path.join(os.getcwd(), "dev", "pack.py")
            spec = importlib.util.spec_from_file_location("multirate_pack", path)
            pack = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(pack)
            pack.register_pack()
            self._side = pack.import_from_pack("bench.quality.cli").remote_side(options)

        def reference(self, reference: dict[str, Any]) -> Any:
            return self._side.reference(reference)

        def row(self, cell: dict[str, Any], names: list[dict[str, Any]], *latents: Any) -> dict[str, Any]:
            return self._side.row(cell, names, latents)

    return Worker


class RemoteSide:
    """The engine in a worker process, with methods that Ray can call.

    The methods take and return only numbers, dictionaries and arrays, which can be sent between processes.
    """

    def __init__(self, options: Options):
        from .engine import Engine

        self._engine = Engine(options)

    def reference(self, reference: dict[str, Any]) -> Any:
        return self._engine.reference(refs.Reference(**reference)).numpy()

    def row(
        self, cell: dict[str, Any], names: Sequence[dict[str, Any]], latents: Sequence[Any]
    ) -> dict[str, Any]:
        for name, array in zip(names, latents, strict=True):
            self._engine.give(refs.Reference(**name), torch.tensor(array))
        return self._engine.row(cell_from(cell))


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise RASError(
            f"--ray is given, but Ray cannot be imported ({error}).",
            "the Python package ray, in the same version on this machine and on the cluster's nodes.",
            "run `pip install ray`, or leave out --ray.",
        ) from error
    return ray
