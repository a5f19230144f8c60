"""Grouped attention: cached K/V heads that several query heads share.

The pack does not repeat these heads if ComfyUI's attention function supports grouped heads."""

import comfy.ldm.lumina.model
import comfy.ldm.modules.attention as host_attention
import pytest
import ras_pack.lumina_next.network
import torch
import torch.nn.functional as F
from ras_pack.ras_core.config import RASConfig
from ras_pack.ras_core.host import attention, wrappers
from ras_pack.ras_core.host.names import ATTENTION
from ras_pack.ras_core.run.grouped_attention import GroupedAttention, _same_kernel
from support.families import FAMILIES
from support.sampling import FAST, distance, sample_ras
from support.tape import AgainTape, capture_on

GROUPED = [name for name in ("lumina2", "lumina_next") if name in FAMILIES]
FLOAT = 2e-5
PLAIN = host_attention.attention_pytorch.__wrapped__


def _calls(family) -> int:
    """The number of attentions with grouped heads in a run: seven regional steps with one call each, since
    both prompts share a call, and one attention per block.
    """
    return 7 * len(family.block_attentions)


class Offered(list):
    """A list that says for each attention whether it ran with grouped heads. Attentions with a mask, which an
    older ComfyUI passes to refiners, are only counted, in `masked`.
    """

    masked = 0


@pytest.fixture
def count(monkeypatch) -> Offered:
    """Make the networks use ComfyUI's PyTorch attention, and log whether each call had grouped heads."""
    function = host_attention.attention_pytorch
    monkeypatch.setattr(comfy.ldm.lumina.model, "optimized_attention_masked", function)
    monkeypatch.setattr(ras_pack.lumina_next.network, "optimized_attention", function)
    offered, call = Offered(), GroupedAttention.__call__

    def counted(self, *args, **kwargs):
        output = call(self, *args, **kwargs)
        if len(args) > 4 and args[4] is not None or kwargs.get("mask") is not None:
            assert output is None
            offered.masked += 1
        else:
            offered.append(output is not None)
        return output

    monkeypatch.setattr(GroupedAttention, "__call__", counted)
    return offered


def _repeating(family, monkeypatch, **settings):
    """The latent of a run in which the pack repeats the shared K/V heads."""
    with monkeypatch.context() as patch:
        patch.setattr(wrappers, "grouped_attention", lambda: None)
        return sample_ras(family.build(), family, family.noise(13, 19, batch=2), **settings)[0]


def _run(family, **settings):
    latent, trace = sample_ras(family.build(), family, family.noise(13, 19, batch=2), **settings)
    assert trace.regional_steps == 7 and not trace.notes
    return latent


@pytest.mark.parametrize("name", GROUPED)
def test_every_regional_attention_is_grouped_with_the_same_result(name, count, monkeypatch):
    family = FAMILIES[name]
    latent = _run(family)
    assert count == [True] * (_calls(family) - count.masked)
    assert distance(latent, _repeating(family, monkeypatch)) < FLOAT
    assert len(count) == _calls(family) - count.masked  # the other run really repeated


@pytest.mark.parametrize("format_name", ["fp8", "cpu"])
def test_formats_that_return_buffers(format_name, count, monkeypatch):
    family = FAMILIES["lumina2"]
    config = RASConfig(**{**vars(FAST), "kv_cache": format_name})
    latent = _run(family, config=config)
    assert count == [True] * (_calls(family) - count.masked)
    assert distance(latent, _repeating(family, monkeypatch, config=config)) < FLOAT


@pytest.mark.parametrize("name", [name for name in ("z_image", "sd3") if name in FAMILIES])
def test_families_without_shared_heads_are_not_changed(name, count):
    _run(FAMILIES[name])
    assert count == []


@pytest.mark.parametrize("name", GROUPED)
def test_captured_calls_are_grouped_too(name, count):
    family = FAMILIES[name]
    plain = _run(family)
    count.clear()
    model = family.build()
    capture_on(model, AgainTape())
    latent, trace = sample_ras(model, family, family.noise(13, 19, batch=2))
    # A capture runs its step twice: to capture it, and as a replay.
    assert not trace.notes and len(count) + count.masked >= _calls(family) and all(count)
    assert distance(latent, plain) < FLOAT


@pytest.mark.parametrize("name", GROUPED)
def test_another_attention_function_of_comfyui_gets_repeated_heads(name, count, monkeypatch):
    family, function = FAMILIES[name], host_attention.attention_sub_quad
    grouped = _run(family)
    count.clear()
    monkeypatch.setattr(comfy.ldm.lumina.model, "optimized_attention_masked", function)
    monkeypatch.setattr(ras_pack.lumina_next.network, "optimized_attention", function)
    assert distance(_run(family), grouped) < FLOAT
    assert count and not any(count)


@pytest.mark.parametrize("name", GROUPED)
def test_another_override_gets_repeated_heads(name, count):
    family = FAMILIES[name]
    grouped, heads = _run(family), set()
    count.clear()

    def other(func, q, k, v, *args, **kwargs):
        heads.add((q.shape[1] == k.shape[1], q.shape[1] == v.shape[1]))
        return func(q, k, v, *args, **kwargs)

    model = family.build()
    model.model_options["transformer_options"][ATTENTION] = other
    latent, trace = sample_ras(model, family, family.noise(13, 19, batch=2))
    assert trace.regional_steps == 7 and count == [] and heads == {(True, True)}
    assert distance(latent, grouped) < FLOAT


class TestOneCall:
    q, k = torch.randn(2, 4, 5, 8), torch.randn(2, 9, 2, 8).movedim(1, 2)
    v = torch.randn(2, 9, 2, 8).movedim(1, 2)

    @pytest.fixture
    def grouped(self) -> GroupedAttention:
        return attention.grouped_attention()

    @pytest.mark.parametrize("layout", [{}, {"skip_output_reshape": True}], ids=["rows", "heads"])
    @pytest.mark.parametrize("args", [(), (None,), (None, None)])
    def test_the_layout_is_comfyuis(self, grouped, layout, args):
        kwargs = {"skip_reshape": True, "transformer_options": {}, "_inside_attn_wrapper": True, **layout}
        k, v = (t.repeat_interleave(2, dim=1) for t in (self.k, self.v))
        expected = PLAIN(self.q, k, v, 4, *args, **kwargs)
        given = grouped(PLAIN, self.q, self.k, self.v, *args, **kwargs)
        assert given.shape == expected.shape
        assert distance(given, expected) < 1e-6

    @pytest.mark.parametrize(
        ("args", "kwargs"),
        [
            ((torch.zeros(5, 9),), {}),
            ((None, torch.float32), {}),
            ((None, None, True), {}),
            ((), {"mask": torch.zeros(5, 9)}),
            ((), {"attn_precision": torch.float32}),
            ((), {"skip_reshape": False}),
            ((), {"scale": 0.5}),
        ],
    )
    def test_special_calls_are_left_to_comfyui(self, grouped, args, kwargs):
        assert grouped(PLAIN, self.q, self.k, self.v, *args, **{"skip_reshape": True, **kwargs}) is None

    def test_other_functions_and_devices_are_left_to_comfyui(self, grouped):
        assert grouped(lambda *_: None, self.q, self.k, self.v, skip_reshape=True) is None
        away = (t.to("meta") for t in (self.q, self.k, self.v))
        assert grouped(PLAIN, *away, skip_reshape=True) is None

    def test_no_slower_kernel_is_used_if_one_does_not_support_grouped_heads(self, grouped, monkeypatch):
        """In float32 on a GPU, PyTorch uses its memory-efficient kernel for repeated heads, but computes the
        full score matrix for grouped heads. In such a case the heads must be repeated.
        """
        assert _same_kernel(self.q, self.k, self.v)
        monkeypatch.setattr(
            torch, "_fused_sdp_choice", lambda q, k, v, enable_gqa=False: 0 if enable_gqa else 2
        )
        assert grouped(PLAIN, self.q, self.k, self.v, skip_reshape=True) is None

    def test_a_torch_without_grouped_heads_or_with_a_replaced_attention(self, monkeypatch):
        assert GroupedAttention.of(PLAIN, lambda q, k, v: q, attention.output_form) is None
        own = F.scaled_dot_product_attention
        monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *args, **kwargs: own(*args, **kwargs))
        assert attention.grouped_attention() is None
