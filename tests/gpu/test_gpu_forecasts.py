"""The Triton kernels for extrapolated rows, on a GPU: their results, and their time per layer.

    COMFYUI_PATH=~/ComfyUI python3 -m pytest tests/gpu/test_gpu_forecasts.py -s

For each form of the cache, this prints the time for the key and value of one layer of SD3-medium at 1024 px
with half of the tokens active: with the kernels, with PyTorch's operations, and for a plain copy that reads
and writes as many bytes as the kernels must. Calls are captured as CUDA graphs, as in a run.
"""

from collections.abc import Callable

import pytest
import torch
from ras_pack.ras_core.kv import triton_check
from ras_pack.ras_core.kv.extrapolation import Extrapolation, Times
from ras_pack.ras_core.kv.forecast import ForecastRows
from ras_pack.ras_core.kv.quadratic import QuadraticRows
from ras_pack.ras_core.kv.spread import Spread
from ras_pack.ras_core.rows import RowIndex

IMAGES, SIDE, TEXT, WIDTH = 2, 64, 154, 1536
TOKENS = SIDE * SIDE
TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 4e-2}
LAYERS, REPLAYS = 8, 10
FORMS = {
    "forecast": (ForecastRows, False, 4.0),
    "forecast2": (QuadraticRows, False, 5.5),
    "forecast, spread": (ForecastRows, True, 7.0),
    "forecast2, spread": (QuadraticRows, True, 8.5),
}
"""Class of the rows, whether errors are spread, and how many times the kernels must read or write the bytes
of a key and a value (ras_core/kv/triton_forecasts.py, triton_spread.py)."""


class Layer:
    """The rows of one layer after three dense calls, and a regional call that computes half of the tokens."""

    def __init__(self, name: str, dtype: torch.dtype, device: torch.device):
        rows_class, has_spread, _ = FORMS[name]
        draw = torch.Generator(device).manual_seed(3)
        shape = (2, IMAGES, TOKENS + TEXT, WIDTH)
        base, slope, bend, noise = (
            torch.randn(shape, device=device, generator=draw, dtype=dtype) for _ in range(4)
        )
        chosen = torch.rand(IMAGES, TOKENS, device=device, generator=draw).argsort(1)
        active = chosen[:, : TOKENS // 2].sort(1).values
        self.index = RowIndex.of(active, TOKENS, TEXT, 0)
        times = rows_class.times.start(torch.ones(IMAGES, device=device), TOKENS)
        for sigma in (1.0, 0.9, 0.75):
            pair = base + slope * sigma + bend * sigma**2
            times.update_all(torch.full((IMAGES,), sigma, device=device))
            if sigma == 1.0:
                self.rows = rows_class.of(*pair, TEXT, 0)
            else:
                self.rows.write(*pair)
        fresh = (base + 0.6 * slope + 0.36 * bend + 0.1 * noise).flatten(1, 2)[:, self.index.flat]
        self.fresh = tuple(fresh.unflatten(1, (IMAGES, -1)))
        self.extrapolation = self._extrapolation(times, active, has_spread)

    def _extrapolation(self, times: Times, active: torch.Tensor, has_spread: bool) -> Extrapolation:
        now = torch.full((IMAGES,), 0.6, device=active.device)
        spread = Spread((SIDE, SIDE), active, times.ages(now)) if has_spread else None
        return times.extrapolation(*times.update_active(now, active), TEXT, 0, spread)

    def update(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.rows.update_extrapolated(self.index, self.fresh, self.extrapolation)


def _microseconds(work: Callable[[], object]) -> float:
    """Time of one call of `work`, captured; the mean over many calls."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(LAYERS):
            work()
    graph.replay()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(REPLAYS):
        graph.replay()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) * 1e3 / (LAYERS * REPLAYS)


def _without_kernels(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(triton_check, "DEVICE_TYPE", "none")


@pytest.mark.gpu
@torch.inference_mode()
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("name", list(FORMS))
def test_the_kernels_give_the_numbers_of_pytorch(name, dtype, cuda, monkeypatch):
    outcomes = []
    for on in (True, False):
        with monkeypatch.context() as patch:
            if not on:
                _without_kernels(patch)
            layer = Layer(name, dtype, cuda)
            whole = layer.update()
            used = triton_check.kernels_for(*layer.fresh, triton_check.SPREAD) is not None
            assert used == on  # if not, the log has the reason
            outcomes.append((*(t.clone() for t in whole), *layer.rows.tensors))
    for found, plain in zip(outcomes[0][:2], outcomes[1][:2], strict=True):
        torch.testing.assert_close(found, plain, rtol=TOLERANCE[dtype], atol=4 * TOLERANCE[dtype])
    for found, plain in zip(outcomes[0][2:], outcomes[1][2:], strict=True):
        assert torch.equal(found, plain)


@pytest.mark.gpu
@torch.inference_mode()
@pytest.mark.parametrize("name", list(FORMS))
def test_the_kernels_are_faster(name, cuda, monkeypatch, record_property):
    layer = Layer(name, torch.float16, cuda)
    kernels = _microseconds(layer.update)
    with monkeypatch.context() as patch:
        _without_kernels(patch)
        plain = _microseconds(layer.update)
    nbytes = FORMS[name][2] * 2 * layer.rows.key.nbytes
    source = torch.zeros(int(nbytes) // 2, dtype=torch.uint8, device=cuda)
    target = torch.empty_like(source)
    copy = _microseconds(lambda: target.copy_(source))
    detail = (
        f"{name}: kernels {kernels:.0f} us, PyTorch {plain:.0f} us, copy of as many bytes {copy:.0f} us"
        f" ({nbytes / 1e6:.0f} MB), {torch.cuda.get_device_name(cuda)}"
    )
    record_property("detail", detail)
    print(f"\n{detail}")  # noqa: T201
    assert kernels < plain, detail
