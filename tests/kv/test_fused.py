"""The pack's Triton kernels give the same results as PyTorch's operations.

The kernels run on a GPU, or in Triton's interpreter if there is none."""

import sys
import types

import pytest
import torch
from ras_pack.ras_core import kv
from ras_pack.ras_core.config import RASConfig
from ras_pack.ras_core.kv import triton_check
from ras_pack.ras_core.kv.extrapolation import Extrapolation
from ras_pack.ras_core.kv.float8 import Float8Rows, from_float8, to_float8
from ras_pack.ras_core.kv.forecast import ForecastRows
from ras_pack.ras_core.kv.triton_check import gives_known_numbers, kernels_for
from ras_pack.ras_core.kv.triton_launch import RowKernels
from ras_pack.ras_core.rows import RowIndex
from support.interpreter import compiled, without_repeated_patches
from support.sampling import FAST, distance, sample_ras

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
B, N, PREFIX, SUFFIX, KEPT = 2, 9, 2, 1, 4
ROWS = PREFIX + N + SUFFIX
ACTIVE = torch.tensor([[0, 3, 4, 8], [1, 2, 5, 6]], device=DEVICE)
DTYPES = [torch.float16, torch.bfloat16, torch.float32]
LAYOUTS = [((24,), "rows"), ((2, 16), "rows"), ((2, 16), "heads"), ((3, 5), "heads")]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    without_repeated_patches(monkeypatch)


def _rows(n: int, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Random rows (B, n, *shape), whose magnitudes differ between rows by factors of up to 2^17."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randn(B, n, *shape, generator=draw)
    sizes = torch.exp2(torch.randint(-9, 9, (B, n), generator=draw).float())
    return (rows * sizes.view(B, n, *[1] * len(shape))).to(DEVICE, dtype)


def _places() -> RowIndex:
    return RowIndex.of(ACTIVE, N, PREFIX, SUFFIX)


def _by_heads(rows: torch.Tensor) -> torch.Tensor:
    """The same numbers in another memory layout that networks use: the head axis precedes the row axis, and
    every head is repeated.
    """
    first = rows.movedim(2, 1).repeat_interleave(2, dim=1).contiguous()
    return first.movedim(2, 1)[:, :, ::2]


def test_places_map_positions_to_rows():
    inverse = _places().inverse.view(B, ROWS).tolist()
    assert inverse[0] == [0, 1, 2, -1, -1, 3, 4, -1, -1, -1, 5, 6]
    assert inverse[1] == [7, 8, -1, 9, 10, -1, -1, 11, 12, -1, -1, 13]


def test_the_check_before_use_passes_here_and_detects_wrong_numbers(kernels, monkeypatch):
    assert all(gives_known_numbers(kernels, DEVICE, dtype) for dtype in DTYPES)
    faults = {
        "encode_float8": lambda right: lambda kernels, rows, *kept: right(kernels, rows + 1, *kept),
        "update_float8": lambda right: lambda *args: tuple(t + 1 for t in right(*args)),
        "extrapolate_rows": lambda right: lambda *args: tuple(t + 1 for t in right(*args)),
        "weigh": lambda right: lambda *args: torch.ones_like(right(*args)),
    }
    for name, fault in faults.items():
        with monkeypatch.context() as patch:
            patch.setattr(RowKernels, name, fault(getattr(RowKernels, name)))
            assert not gives_known_numbers(kernels, DEVICE, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_number_becomes_the_float8_that_pytorch_makes_of_it(use, dtype):
    draw = torch.Generator().manual_seed(5)
    sizes = torch.exp2(torch.linspace(-24, 15, 48))  # of whole rows; numbers in them go down to 0
    rows = sizes[:, None] * torch.exp2(-24 * torch.rand(48, 40, generator=draw))
    rows = (rows * torch.randn(48, 40, generator=draw).sign())[None].to(DEVICE, dtype)
    rows[0, 5] = 0
    use(False)
    expected, scales = to_float8(rows)
    use(True)
    codes, found = to_float8(rows)
    assert torch.equal(found, scales) and torch.equal(codes, expected)


def test_numbers_between_two_codes_go_to_the_even_one(use):
    between = torch.arange(256, dtype=torch.uint8, device=DEVICE).view(torch.float8_e4m3fn).float()
    steps = between[:120]  # all codes up to 256, then halfway from each to the next
    rows = torch.cat([steps, (steps[1:] + steps[:-1]) / 2, -steps])[None, None]
    use(False)
    expected = to_float8(rows)
    use(True)
    assert all(torch.equal(a, b) for a, b in zip(to_float8(rows), expected, strict=True))


def test_nan_stays_nan(use):
    use(True)
    rows = torch.ones(1, 3, 8, device=DEVICE, dtype=torch.float16)
    rows[0, 1, 3], rows[0, 2, 5] = torch.nan, torch.inf
    back = from_float8(*to_float8(rows))
    assert torch.equal(back[0, 0], rows[0, 0]) and back[0, 1, 3].isnan() and not back[0, 2, 5].isfinite()


@pytest.mark.parametrize("on", [False, True], ids=["torch", "triton"])
def test_the_largest_float16_numbers_stay_finite(use, on):
    """float8 rounds numbers from 63,488 up to 65,536, which float16 does not have."""
    use(on)
    top = torch.tensor([63_456.0, 63_488.0, 63_520.0, 65_504.0], device=DEVICE)
    rows = torch.cat([top, -top]).half().expand(B, ROWS, 8).contiguous()
    fresh = tuple(torch.ones(B, PREFIX + KEPT + SUFFIX, 8, device=DEVICE).half() for _ in range(2))
    sequence = Float8Rows.of(rows, -rows, PREFIX, SUFFIX)
    kept = sequence.read()[0]
    whole, _ = sequence.update(_places(), fresh)
    assert torch.equal(kept[0, 0, :4], torch.tensor([61_440.0, *[65_504.0] * 3], device=DEVICE).half())
    assert torch.equal(whole[0, 3], kept[0, 3]) and torch.equal(kept[..., 4:], -kept[..., :4])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "form"), LAYOUTS, ids=str)
class TestAgreement:
    def _fresh(self, shape, dtype, form, seed):
        fresh = tuple(_rows(PREFIX + KEPT + SUFFIX, shape, dtype, seed + each) for each in (0, 1))
        return tuple(map(_by_heads, fresh)) if form == "heads" else fresh

    def test_float8_rows(self, use, shape, dtype, form):
        outcomes = []
        for on in (False, True):
            use(on)
            key, value = (_rows(ROWS, shape, dtype, seed) for seed in (1, 2))
            sequence = Float8Rows.of(2 * key, value, PREFIX, SUFFIX)
            sequence.write(key, 3 * value)
            whole = [sequence.update(_places(), self._fresh(shape, dtype, form, seed)) for seed in (3, 5)]
            outcomes.append((*whole[0], *whole[1], *sequence.tensors))
        for plain, found in zip(*outcomes, strict=True):
            assert found.dtype == plain.dtype and torch.equal(found, plain)

    def test_extrapolated_rows(self, use, shape, dtype, form):
        outcomes = []
        weight = torch.rand(B, N, device=DEVICE, generator=torch.Generator(DEVICE).manual_seed(9))
        before = weight.gather(1, ACTIVE)
        weight = weight.scatter(1, ACTIVE, 0.0)
        for on in (False, True):
            use(on)
            key, value = (_rows(ROWS, shape, dtype, seed) for seed in (1, 2))
            sequence = ForecastRows.of(key, value, PREFIX, SUFFIX)
            sequence.write(1.5 * key, 0.75 * value)
            whole = []
            for seed in (1, 2):  # fresh rows partly as forecast, partly not
                fresh = [
                    0.5 * rows + (1.6 * t.flatten(0, 1)[_places().flat]).view(rows.shape)
                    for rows, t in zip(self._fresh(shape, dtype, form, seed), (key, value), strict=True)
                ]
                extrapolation = Extrapolation(weight, before, PREFIX, SUFFIX)
                whole += sequence.update_extrapolated(_places(), tuple(fresh), extrapolation)
                whole.append(extrapolation.weights)
            outcomes.append((*whole, *sequence.tensors))
        tolerance = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 1e-5}[dtype]
        for plain, found in zip(*outcomes, strict=True):
            assert found.dtype == plain.dtype
            mean = float(plain.abs().mean())
            torch.testing.assert_close(found, plain, rtol=tolerance, atol=tolerance * mean)
        for plain, found in zip(outcomes[0][-4:], outcomes[1][-4:], strict=True):
            assert torch.equal(found, plain)  # forecasts are not kept
        assert outcomes[0][2].max() > 1  # something was confirmed


@pytest.mark.parametrize("format_name", ["fp8", "forecast"])
def test_a_whole_run_is_the_same(sd3, use, kernels, format_name, monkeypatch):
    calls = []
    for name in ("update_float8", "extrapolate_rows"):
        right = getattr(RowKernels, name)
        monkeypatch.setattr(
            RowKernels, name, lambda *args, right=right: calls.append(args[2].flat.numel()) or right(*args)
        )
    latents = []
    config = RASConfig(**{**vars(FAST), "kv_cache": format_name})
    for on in (False, True):
        use(on)
        latent, trace = sample_ras(sd3.build(), sd3, sd3.noise(8, 6), config, steps=5)
        assert trace.regional_steps == 3 and not trace.notes
        latents.append(latent)
        assert bool(calls) == on
    assert distance(*latents) < 1e-4


@pytest.mark.parametrize("rows_class", [Float8Rows, ForecastRows])
@pytest.mark.parametrize("shapes", [((32,), (2, 16)), ((4, 8), (2, 16))], ids=str)
def test_keys_and_values_with_different_layouts(use, rows_class, shapes):
    """In ComfyUI's SD3, values are split into heads and keys are not."""
    outcomes = []
    for on in (False, True):
        use(on)
        key, value = _rows(ROWS, shapes[0], torch.float16, 1), _rows(ROWS, shapes[1], torch.float16, 2)
        fresh = tuple(t[:, : PREFIX + KEPT + SUFFIX].contiguous() for t in (key * 2, value * 3))
        assert triton_check.are_fit(*fresh)
        sequence = rows_class.of(key, value, PREFIX, SUFFIX)
        if rows_class is Float8Rows:
            outcomes.append(sequence.update(_places(), fresh))
        else:
            nothing = torch.zeros(B, N, device=DEVICE)
            extrapolation = Extrapolation(nothing, nothing[:, :KEPT].contiguous(), PREFIX, SUFFIX)
            outcomes.append(sequence.update_extrapolated(_places(), fresh, extrapolation))
    for plain, found in zip(*outcomes, strict=True):
        assert found.shape == plain.shape and torch.equal(found, plain)


def test_inputs_that_the_kernels_do_not_support():
    rows = torch.zeros(1, 2, 4)
    assert triton_check.are_fit(rows, rows) and triton_check.are_fit(rows, rows.view(1, 2, 2, 2))
    assert not triton_check.are_fit(rows, rows.half())
    assert not triton_check.are_fit(rows, torch.zeros(1, 2, 6))
    assert not triton_check.are_fit(rows, torch.zeros(1, 4, 2))
    assert kernels_for(rows, rows) is None  # on the CPU


def test_only_kernels_that_work_are_used(use):
    rows = torch.zeros(1, 2, 4, device=DEVICE)
    use(True)
    assert isinstance(kernels_for(rows, rows), RowKernels)
    assert kernels_for(rows, rows.half()) is None
    use(False)
    assert kernels_for(rows, rows) is None


FORMS = [("float16", 8), ("float16", 1), ("bfloat16", 8), ("float32", 4)]


@pytest.mark.parametrize(("dtype", "unit"), FORMS)
def test_kernels_compile_for_gpus_that_this_machine_lacks(kernels, dtype, unit):
    """Triton's interpreter does not check types, so it accepts code that does not compile for a GPU. So this
    test compiles the kernels, for rows that can be read 16 bytes at a time and for rows that cannot.
    """
    names = ["encode_float8", "update_float8", "extrapolate_rows,EVALUATIONS=2,SPREAD=0"]
    lines = compiled(dtype, unit, 2048, *names, "compare,EVALUATIONS=2", "weigh")
    assert len(lines) == 5 * 3
    for name, wide, narrow in lines:
        if unit > 1 and name != "weigh":
            assert wide > 1 and narrow <= 1, name  # one for a scale or a weight


class TestWithoutTriton:
    @pytest.fixture(autouse=True)
    def _fresh_decision(self):
        triton_check._on.cache_clear()
        yield
        triton_check._on.cache_clear()

    def test_the_reason_is_logged_once(self, monkeypatch, caplog):
        monkeypatch.delattr(kv, "triton_kernels", raising=False)
        monkeypatch.setitem(sys.modules, "ras_pack.ras_core.kv.triton_kernels", None)
        with caplog.at_level("INFO"):
            assert (
                triton_check._on(DEVICE, torch.half) is None and triton_check._on(DEVICE, torch.half) is None
            )
        assert sum("Triton is not installed" in record.message for record in caplog.records) == 1

    def test_kernels_that_do_not_compile_are_not_used(self, kernels, monkeypatch, caplog):
        monkeypatch.setattr(
            triton_check, "gives_known_numbers", lambda *_: (_ for _ in ()).throw(RuntimeError("no compiler"))
        )
        with caplog.at_level("INFO"):
            assert triton_check._on(DEVICE, torch.half) is None
        assert "RuntimeError: no compiler" in caplog.text

    def test_a_broken_triton_is_not_used(self, monkeypatch, caplog):
        monkeypatch.delattr(kv, "triton_kernels", raising=False)
        for name in ("kernels", "float8", "forecasts", "rows", "spread"):
            monkeypatch.delitem(sys.modules, f"ras_pack.ras_core.kv.triton_{name}", raising=False)
        monkeypatch.setitem(sys.modules, "triton", types.ModuleType("triton"))
        with caplog.at_level("INFO"):
            assert triton_check._on(DEVICE, torch.half) is None
        assert "no Triton kernels for" in caplog.text

    def test_too_little_memory_does_not_disable_the_kernels(self, kernels, monkeypatch):
        def full(*_):
            raise torch.cuda.OutOfMemoryError

        with monkeypatch.context() as patch:
            patch.setattr(triton_check, "gives_known_numbers", full)
            with pytest.raises(torch.cuda.OutOfMemoryError):
                triton_check._on(DEVICE, torch.half)
        assert triton_check._on(DEVICE, torch.half) is not None

    def test_kernels_that_give_wrong_numbers_are_not_used(self, kernels, monkeypatch, caplog):
        monkeypatch.setattr(triton_check, "gives_known_numbers", lambda *_: False)
        with caplog.at_level("INFO"):
            assert triton_check._on(DEVICE, torch.half) is None
        assert "wrong results" in caplog.text
