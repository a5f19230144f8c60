"""The Triton kernels for forecasts along two changes, and those that spread forecast errors, give the same
results as PyTorch's operations.

The kernels run on a GPU, or in Triton's interpreter if there is none."""

import importlib

import pytest
import torch
from ras_pack.ras_core.config import RASConfig
from ras_pack.ras_core.kv import triton_check
from ras_pack.ras_core.kv.extrapolation import Times
from ras_pack.ras_core.kv.forecast import ForecastRows
from ras_pack.ras_core.kv.quadratic import QuadraticRows, QuadraticTimes
from ras_pack.ras_core.kv.spread import Spread
from ras_pack.ras_core.kv.triton_check import FORECAST2, SPREAD, kernels_for
from ras_pack.ras_core.kv.triton_launch import RowKernels
from ras_pack.ras_core.kv.triton_spread_launch import SpreadKernels
from ras_pack.ras_core.rows import RowIndex
from support.interpreter import compiled, without_repeated_patches
from support.sampling import FAST, distance, sample_ras

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 1e-5}
LAYOUTS = [
    (torch.float16, (24,), "rows", 1),
    (torch.bfloat16, (2, 16), "heads", 2),
    (torch.float32, (3, 5), "heads", 1),
]
"""Dtype and shape of the rows, their layout in memory, and number of images."""


CLASSES = [ForecastRows, QuadraticRows, ForecastRows]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    without_repeated_patches(monkeypatch)


@pytest.fixture
def use(use, monkeypatch):
    """The fixture of this name, without the check of the kernels, which another test runs."""
    monkeypatch.setattr(triton_check, "_are_right", lambda *_: True)
    return use


def _by_heads(rows: torch.Tensor) -> torch.Tensor:
    """The same numbers in another memory layout that networks use: the head axis precedes the row axis, and
    every head is repeated.
    """
    first = rows.movedim(2, 1).repeat_interleave(2, dim=1).contiguous()
    return first.movedim(2, 1)[:, :, ::2]


class Scene:
    """One attention after two or three dense calls, and a regional call that computes the tokens `active`.

    Args:
        shape: number of tokens along each axis of the image.
        borders: number of text rows before and of padding rows after the image rows.
        images: number of images in the call.
        frozen: number of rows of reference images, which follow the image rows.
    """

    def __init__(self, active, shape=(2, 3), borders=(1, 0), images=1, frozen=0):
        self.active = torch.tensor([active] * images, device=DEVICE)
        self.images = images
        self.shape, self.borders = shape, borders
        self.n_image = torch.Size(shape).numel()
        self.n = self.n_image + frozen
        self.index = RowIndex.of(self.active, self.n, *borders)

    def at(self, sigma: float) -> torch.Tensor:
        return torch.full((self.images,), sigma, device=DEVICE)

    def draw(self, shape, dtype, form):
        """Keys and values of dense calls, most recent last, and the fresh rows of the regional call."""
        draw = torch.Generator().manual_seed(7)
        rows = sum(self.borders) + self.n
        base, slope, bend = torch.randn(3, 2, self.images, rows, *shape, generator=draw)
        common = torch.randn(2, self.images, 1, *shape, generator=draw)
        at = [base + slope * s + bend * s**2 for s in (1.0, 0.9, 0.75)]
        now = base + 0.6 * slope + 0.36 * bend + 0.05 * torch.randn(base.shape, generator=draw)
        fresh = (now + 0.1 * common).to(DEVICE, dtype)
        pairs = [tuple(each.to(DEVICE, dtype)) for each in at]
        kept = tuple(t.flatten(0, 1)[self.index.flat].unflatten(0, (self.images, -1)) for t in fresh)
        return pairs, tuple(map(_by_heads, kept)) if form == "heads" else kept

    def outcome(self, rows_class, spread, dtype, shape, form="rows"):
        """The whole K and V, the weights, and all that is kept."""
        times_class = QuadraticTimes if rows_class is QuadraticRows else Times
        times = times_class.start(self.at(1.0), self.n)
        pairs, fresh = self.draw(shape, dtype, form)
        kept = rows_class.of(*pairs[0], *self.borders)
        for sigma, pair in zip((1.0, 0.9, 0.75), pairs, strict=True):
            times.update_all(self.at(sigma))
            kept.write(*pair)
        now = self.at(0.6)
        ages = times.ages(now)[:, : self.n_image].contiguous()
        spreading = Spread(self.shape, self.active, ages) if spread else None
        extrapolation = times.extrapolation(*times.update_active(now, self.active), *self.borders, spreading)
        whole = kept.update_extrapolated(self.index, fresh, extrapolation)
        return *(t.clone() for t in whole), extrapolation.weights, *kept.tensors


def _assert_same(plain, found):
    rounds = 2 if len(plain) == 9 else 1  # PyTorch rounds more often to compute forecasts along two changes
    for before, after in zip(plain, found, strict=True):
        assert after.dtype == before.dtype and after.shape == before.shape
        tolerance = rounds * TOLERANCE[before.dtype]
        torch.testing.assert_close(
            after, before, rtol=tolerance, atol=tolerance * max(float(before.abs().mean()), 0.1)
        )
    for before, after in zip(plain[3:], found[3:], strict=True):
        assert torch.equal(after, before)  # what is kept are the network's rows


class TestAgreement:
    @pytest.mark.parametrize(("dtype", "shape", "form", "images"), LAYOUTS, ids=str)
    def test_rows_extrapolated_along_two_changes(self, use, dtype, shape, form, images):
        scene, outcomes = Scene([0, 3, 4], borders=(2, 1), images=images), []
        for on in (False, True):
            use(on)
            outcomes.append(scene.outcome(QuadraticRows, False, dtype, shape, form))
        _assert_same(*outcomes)
        assert outcomes[0][2][:, 0].max() > 0.1 and outcomes[0][2][:, 1].min() < -0.01  # both are confirmed

    @pytest.mark.parametrize(
        ("rows_class", "dtype", "shape", "form", "images"),
        [(rows, *layout) for rows, layout in zip(CLASSES, LAYOUTS, strict=True)],
        ids=str,
    )
    def test_spread_errors(self, use, rows_class, dtype, shape, form, images):
        scene, outcomes = Scene([0, 3], borders=(1, 1), images=images), []  # 2 and 5 have no active neighbour
        for on in (False, True):
            use(on)
            outcomes.append(scene.outcome(rows_class, True, dtype, shape, form))
        _assert_same(*outcomes)
        use(False)
        without = scene.outcome(rows_class, False, dtype, shape, form)
        assert (outcomes[0][0] - without[0]).abs().max() > 0.02  # there is something to spread

    @pytest.mark.parametrize("rows_class", [ForecastRows, QuadraticRows])
    def test_spread_errors_beside_reference_images(self, use, rows_class):
        scene, outcomes = Scene([0, 3], borders=(1, 1), images=2, frozen=4), []
        for on in (False, True):
            use(on)
            outcomes.append(scene.outcome(rows_class, True, torch.float32, (2, 8)))
        _assert_same(*outcomes)
        without = scene.outcome(rows_class, False, torch.float32, (2, 8))
        assert torch.allclose(without[0][:, 7:11], outcomes[1][0][:, 7:11])
        assert (outcomes[1][0] - without[0]).abs().max() > 0.02

    @pytest.mark.parametrize(
        ("active", "shape", "borders"),
        [
            ([4], (2, 3), (1, 0)),
            (list(range(4)), (2, 2), (1, 0)),
            ([0, 1, 3, 6], (2, 2, 2), (0, 0)),
            ([0, 2, 3], (1, 5), (0, 1)),
        ],
        ids=["one token", "all tokens", "video", "one line"],
    )
    def test_any_set_of_active_tokens(self, use, active, shape, borders):
        scene, outcomes = Scene(active, shape, borders), []
        for on in (False, True):
            use(on)
            outcomes.append(scene.outcome(ForecastRows, True, torch.float32, (3, 4)))
        _assert_same(*outcomes)

    def test_many_tokens_are_summed_in_parts(self, use, monkeypatch):
        """With small tiles, `sum_rates` needs several parts, tiles and blocks, `scale_rows` several blocks,
        and only every second token is sampled.
        """
        launch = importlib.import_module("ras_pack.ras_core.kv.triton_spread_launch")
        for name, value in (("TILE", (2, 16)), ("PARTS", 2), ("SCALES_BLOCK", 4)):
            monkeypatch.setattr(launch, name, value)
        monkeypatch.setattr(importlib.import_module("ras_pack.ras_core.kv.spread"), "SAMPLE", 3)
        scene, outcomes = Scene([0, 1, 2, 4, 5, 7, 8], (3, 3)), []
        for on in (False, True):
            use(on)
            outcomes.append(scene.outcome(ForecastRows, True, torch.float32, (24,)))
        _assert_same(*outcomes)

    def test_rows_that_have_not_changed_yet(self, use):
        """After one dense call, all scales are 0, and the forecasts are the rows themselves."""
        use(True)
        scene = Scene([0, 1, 3])
        (first, *_), fresh = scene.draw((24,), torch.float16, "rows")
        kept = ForecastRows.of(*first, *scene.borders)
        times, now = Times.start(scene.at(1.0), scene.n), scene.at(0.9)
        times.update_all(scene.at(1.0))
        spread = Spread(scene.shape, scene.active, times.ages(now))
        extrapolation = times.extrapolation(*times.update_active(now, scene.active), *scene.borders, spread)
        for rows, new, before in zip(
            kept.update_extrapolated(scene.index, fresh, extrapolation), fresh, first, strict=True
        ):
            expected = before.clone()
            expected.view(-1, 24)[scene.index.flat] = new.flatten(0, 1)
            assert torch.equal(rows, expected)


def test_errors_too_large_for_float16_stay_finite(use):
    use(True)
    scene = Scene([0, 1, 3, 4])
    (last, before, _), fresh = scene.draw((24,), torch.float16, "rows")
    kept = ForecastRows(tuple(torch.full_like(t, -40_000.0) for t in (*last, *before)), *scene.borders)
    for rows in kept.tensors[2:]:
        rows.add_(-32.0)
    ones = torch.ones(1, scene.n, device=DEVICE)
    spread = Spread(scene.shape, scene.active, ones)
    extrapolation = Times.extrapolation(
        ones.scatter(1, scene.active, 0.0), ones[:, :4].contiguous(), *scene.borders, spread
    )
    fresh = tuple(torch.full_like(t, 40_000.0) for t in fresh)
    assert all(t.isfinite().all() for t in kept.update_extrapolated(scene.index, fresh, extrapolation))


def test_a_whole_run_is_the_same(sd3, use, monkeypatch):
    calls, latents = [], []
    right = SpreadKernels.spread_rows
    monkeypatch.setattr(SpreadKernels, "spread_rows", lambda *args: calls.append(1) or right(*args))
    config = RASConfig(**{**vars(FAST), "kv_cache": "forecast2", "spread": True, "start_step": 2})
    for on in (False, True):
        use(on)
        latent, trace = sample_ras(sd3.build(), sd3, sd3.noise(4, 4), config, steps=3)
        assert trace.regional_steps == 1 and not trace.notes and bool(calls) == on
        latents.append(latent)
    assert distance(*latents) < 1e-4


class TestCheck:
    def test_it_passes_here(self, kernels):
        for dtype in TOLERANCE:
            assert triton_check.forecast2_gives_known_numbers(kernels, DEVICE, dtype)
        assert triton_check.spread_agrees_with_torch(kernels, DEVICE, torch.bfloat16)

    def test_it_detects_wrong_numbers(self, kernels, monkeypatch):
        faults = {
            "extrapolate_rows": lambda right: lambda *args: tuple(1.01 * t for t in right(*args)),
            "weigh": lambda right: lambda *args: torch.zeros_like(right(*args)),
        }
        for name, fault in faults.items():
            with monkeypatch.context() as patch:
                patch.setattr(RowKernels, name, fault(getattr(RowKernels, name)))
                assert not triton_check.forecast2_gives_known_numbers(kernels, DEVICE, torch.float16)
        monkeypatch.setattr(SpreadKernels, "_gains", lambda *args: torch.zeros(4, device=DEVICE))
        assert not triton_check.spread_agrees_with_torch(kernels, DEVICE, torch.float16)

    def test_a_group_that_fails_does_not_disable_the_others(self, kernels, monkeypatch, caplog):
        rows = torch.zeros(1, 2, 4, device=DEVICE)
        monkeypatch.setattr(triton_check, "DEVICE_TYPE", DEVICE.type)
        monkeypatch.setattr(triton_check, "_are_right", lambda group, *_: group != SPREAD)
        triton_check._on.cache_clear()
        with caplog.at_level("INFO"):
            found = [kernels_for(rows, rows, group) for group in (SPREAD, FORECAST2, SPREAD)]
        assert found[0] is found[2] is None and isinstance(found[1], SpreadKernels)
        assert [r.getMessage().rpartition("; ")[2] for r in caplog.records] == [
            "spreading the errors of forecasts is slower."
        ]
        triton_check._on.cache_clear()

    def test_without_triton_the_log_says_so_once(self, monkeypatch, caplog):
        rows = torch.zeros(1, 2, 4, device=DEVICE)
        monkeypatch.setattr(triton_check, "DEVICE_TYPE", DEVICE.type)
        monkeypatch.setattr(
            triton_check, "_are_right", lambda *_: (_ for _ in ()).throw(ImportError("no Triton"))
        )
        triton_check._on.cache_clear()
        with caplog.at_level("INFO"):
            assert not any(kernels_for(rows, rows, group) for group in (SPREAD, FORECAST2, SPREAD))
        assert len(caplog.records) == 1
        triton_check._on.cache_clear()


WIDE_LOADS = {
    "extrapolate_rows,EVALUATIONS=3,SPREAD=1,WARPS=2": 4,
    "compare,EVALUATIONS=3,WARPS=2": 4,
    "sum_rates": 4,
    "compare_errors,WARPS=2": 10,
    "correct_rows,WARPS=2": 10,
    "weigh_both": 0,
    "scale_rows": 0,
    "mean_rates": 0,
    "fit_gains": 0,
}
"""Kernels, and how many instructions of each load 16 bytes if a thread processes 8 numbers of a row. In
test_fused.py, `extrapolate_rows` is compiled with the other values of its two constants."""


def test_kernels_compile_for_gpus_that_this_machine_lacks(kernels):
    lines = compiled("float16", 8, 512, *WIDE_LOADS)
    expected = {name.partition(",")[0]: count for name, count in WIDE_LOADS.items()}
    assert len(lines) == 3 * len(expected)
    for name, wide, narrow in lines:
        assert wide == expected[name] and narrow <= 2, name  # two are for weights
