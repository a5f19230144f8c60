"""Evictable weights (ComfyUI's dynamic VRAM): detecting whether they are resident."""

from contextlib import contextmanager

import comfy.ops
import pytest
import torch
from ras_pack.ras_core.errors import NotResident
from ras_pack.ras_core.graphs.eligibility import GraphReport
from ras_pack.ras_core.graphs.network_identity import inspect
from ras_pack.ras_core.graphs.preset import EvictableWeights, PresetWeights
from ras_pack.ras_core.graphs.residency import Residency, is_evictable
from ras_pack.ras_core.graphs.session import GraphSession
from ras_pack.ras_core.graphs.store import GraphEnvironment, GraphStore
from ras_pack.ras_core.graphs.tensors import same_contents
from ras_pack.ras_core.host.graphs_of_model import resident_weights
from support.pages import PAGE, FakePages, layer_on, prefetch, use
from support.tape import FrozenTape, Tapes
from torch import nn

CPU = torch.device("cpu")


@pytest.fixture
def pages():
    return FakePages()


@pytest.fixture
def layers(pages):
    """Three layers with weights on two memory pages; the weight of the second layer extends over both."""
    return [layer_on(pages, 0), layer_on(pages, PAGE - 512), layer_on(pages, PAGE + 4096)]


def used(layers) -> Residency:
    for layer in layers:
        use(layer)
    return Residency.of(layers, CPU, prefetch)


def pinned(pages) -> bool:
    return any(pages.pins) or pages.limit != 0


def test_resident_weights_are_proved_by_their_pages(pages, layers):
    weights = Residency.of(layers, CPU, prefetch)
    assert not weights.prove() and weights.resident == 0
    weights = used(layers)
    assert weights.prove() and weights.is_proved and weights.resident == len(weights) == 3
    assert not pinned(pages)


def test_a_layer_that_forgot_its_serials_is_not_resident_on_the_same_page(layers):
    weights = used(layers)
    layers[1]._v_signature = None  # ComfyUI does this when a LoRA changes
    assert not weights.prove() and weights.resident == 2


def test_a_layer_on_a_remapped_page_is_not_resident(pages, layers):
    weights = used(layers)
    assert weights.prove()
    pages.evict(1)
    pages.prioritize()
    pages.fault(pages.base_addr + PAGE, 1)  # remapped, but empty
    pages.unpin(pages.base_addr + PAGE, 1)
    assert not weights.prove() and weights.resident == 1


@pytest.mark.parametrize("is_proved", [True, False])
def test_counting_resident_layers_maps_no_pages(pages, layers, is_proved):
    weights = used(layers)
    if is_proved:
        assert weights.prove()
    assert weights.resident == 3
    assert pages.evict(1)
    pages.prioritize()
    assert weights.resident == 1 and pages.serials[1] == 0 and not pinned(pages)


def test_if_the_driver_refuses_only_the_count_is_lost(pages, layers, monkeypatch):
    weights = used(layers)

    def refuse(*_):
        raise RuntimeError("Fault failed: 2")

    monkeypatch.setattr(pages, "fault", refuse)
    assert not weights.prove() and weights.resident == 0


def test_a_layer_that_comfyui_loaded_for_good_is_not_counted(pages, layers):
    weights = used(layers)
    del layers[0]._v
    assert weights.resident == 2 and not pinned(pages)


def test_an_older_comfy_aimdo_counts_resident_layers_too(pages, layers, monkeypatch):
    monkeypatch.delattr(FakePages, "get_residency")
    weights = used(layers)
    assert weights.resident == 3
    pages.evict(1)
    pages.prioritize()
    assert weights.resident == 1 and not pinned(pages)


def test_the_report_of_a_run_counts_layers_with_evictable_weights(pages, layers):
    network, model = nn.Sequential(*layers), object()
    session = GraphSession(GraphEnvironment(lambda _: GraphStore(Tapes(FrozenTape))))
    part = session.of(model)
    assert session.report == GraphReport(0, 0) and session.report.details == ""
    for layer in layers:
        use(layer)
    part.prepare(look_at(network))
    assert session.report == GraphReport(0, 0, None, 3, 3) and session.report.details == ""
    pages.evict(1)
    assert session.report == GraphReport(0, 0, None, 1, 3)
    session.refuse("no memory")
    assert session.report.details == "no memory, 1 of 3 layers resident"


def test_a_hold_detects_an_eviction_after_the_proof_and_the_next_use_loads_the_weight(pages, layers):
    weights = used(layers)
    assert weights.prove()
    with weights.held() as whole:
        assert whole and all(pages.pins[:2])
        assert not pages.evict(0), "pinned pages stay"
    assert not pinned(pages) and pages.evict(0)
    with weights.held() as whole:
        assert not whole
    assert weights.misses == 1 and not weights.is_proved and not pinned(pages)
    pages.prioritize()  # ComfyUI does this when it loads the model for the next run
    for layer in layers:
        use(layer)
    assert weights.prove()
    with weights.held() as whole:
        assert whole


def test_a_hold_with_too_little_memory_is_a_miss(pages, layers):
    weights = used(layers)
    assert weights.prove()
    pages.evict(0)
    pages.is_full = True
    with weights.held() as whole:
        assert not whole
    assert not weights.prove() and weights.resident == 0 and not pinned(pages)


def test_nothing_is_held_without_a_proof(layers):
    with used(layers).held() as whole:
        assert not whole


def test_a_hold_ends_with_an_error_in_its_body(pages, layers):
    weights = used(layers)
    assert weights.prove()
    with pytest.raises(KeyboardInterrupt), weights.held():
        raise KeyboardInterrupt
    assert not pinned(pages)


def test_a_capture_pins_prefetches_and_keeps_its_weights(pages, layers):
    weights = used(layers)
    with weights.captured():
        assert all(pages.pins[:2]) and all(hasattr(layer, "_prefetch") for layer in layers)
        pins, pages.pins = pages.pins, [0] * len(pages.pins)
        assert not pages.evict(0) and not pages.evict(1), "the limit keeps them although nothing is pinned"
        pages.pins = pins
    assert not pinned(pages) and not any(hasattr(layer, "_prefetch") for layer in layers)


@pytest.mark.parametrize("when", ["before", "in"])
def test_a_capture_is_refused_if_weights_are_evicted(pages, layers, when):
    weights = used(layers)
    if when == "before":
        pages.evict(0)
    with pytest.raises(NotResident), weights.captured():
        assert when == "in"
        pages.serials[1] = 99  # evicted and remapped, against all pins
    assert not pinned(pages) and not any(hasattr(layer, "_prefetch") for layer in layers)


def test_an_error_in_a_capture_leaves_nothing_pinned(pages, layers):
    with pytest.raises(ValueError), used(layers).captured():
        raise ValueError
    assert not pinned(pages) and not any(hasattr(layer, "_prefetch") for layer in layers)


def test_layers_in_two_ranges_or_an_unknown_one_cannot_be_pinned(pages):
    assert Residency.of([layer_on(pages, 0), layer_on(FakePages(base_addr=0), 0)], CPU, prefetch) is None
    assert Residency.of([layer_on(pages, 0)], CPU, prefetch) is not None
    unknown = layer_on(pages, 0)
    unknown._v = (object(), 0, 1)
    assert Residency.of([unknown], CPU, prefetch) is None
    assert Residency.of([], CPU, prefetch) is None


def test_scales_in_main_memory_are_an_obstacle(layers):
    weights = used(layers)
    assert weights.prove() and weights.obstacle is None
    layers[0]._v_weight = torch.zeros(1, device="meta")
    assert "main memory" in weights.obstacle


def test_a_weight_on_the_device_is_not_evictable(pages):
    layer = layer_on(pages, 0)
    assert is_evictable(layer, CPU)
    layer.weight = nn.Parameter(torch.zeros(4, 4))
    assert not is_evictable(layer, CPU)
    assert not is_evictable(nn.Linear(4, 4, device="meta"), CPU)


def look_at(network):
    return inspect(network, CPU, residency=EvictableWeights(prefetch).of(network, CPU))


def network_on(pages: FakePages) -> nn.Sequential:
    """A network of a layer with an evictable weight, and a norm whose small tensors are not evictable."""
    return nn.Sequential(layer_on(pages, 0), nn.LayerNorm(4)).requires_grad_(False)


def test_a_network_matches_if_its_small_tensors_have_the_same_contents(pages):
    network = network_on(pages)
    first = look_at(network)
    assert first.obstacle is None and first.residency is not None
    network[1].weight = nn.Parameter(network[1].weight.clone(), requires_grad=False)
    assert first.matches(look_at(network))
    network[1].weight[2] += 1
    assert not first.matches(look_at(network))


def test_a_network_does_not_match_at_other_addresses_or_without_dynamic_vram(pages):
    network = network_on(pages)
    first = look_at(network)
    network[0]._v = (pages, pages.base_addr + 512, 1024)
    assert not first.matches(look_at(network))
    network[0].weight = nn.Parameter(torch.zeros(4, 4))
    assert not first.matches(look_at(network))


def test_evictable_weights_of_an_unknown_kind_are_low_memory(pages):
    network = network_on(pages)
    network[0]._v = (object(), 0, 1)
    assert "low memory" in look_at(network).obstacle


@pytest.mark.parametrize("size", [8, 2**20])
def test_contents_of_any_size_and_type_are_compared(size):
    known = [torch.arange(size, dtype=dtype) for dtype in (torch.float32, torch.int64)] + [torch.tensor(1.0)]
    assert same_contents(known, known) and same_contents(known, [t.clone() for t in known])
    for i, last in enumerate(known):
        given = [t.clone() for t in known]
        given[i].view(-1)[-1] += 1
        assert not same_contents(known, given), last.dtype
    assert not same_contents(known, known[:-1])
    assert not same_contents(known, [known[0].half(), *known[1:]])
    nan = torch.full((size,), float("nan"))
    assert same_contents([nan], [nan.clone()]), "bytes are compared, not numbers"


def test_an_eager_call_finds_all_weights_preset_and_leaves_none(pages, layers):
    weights = PresetWeights(used(layers))
    layers[0]._v_signature = None
    with weights.applied():
        assert not any(hasattr(layer, "_prefetch") for layer in layers), "nothing is preset without a proof"
    use(layers[0])
    with weights.applied():
        assert all(pages.pins[:2])
        for layer in layers:
            assert layer._prefetch["resident"] and layer._prefetch["signature"] is layer._v_signature
    assert not pinned(pages) and not any(hasattr(layer, "_prefetch") for layer in layers)
    with pytest.raises(KeyboardInterrupt), weights.applied():
        raise KeyboardInterrupt
    assert not pinned(pages) and not any(hasattr(layer, "_prefetch") for layer in layers)


def test_a_layer_that_casts_nothing_gets_its_resident_weight_as_its_own(pages):
    layer = layer_on(pages, 0, kind=comfy.ops.disable_weight_init.Linear)
    layer.comfy_cast_weights = True  # ComfyUI marks the layers of dynamic VRAM like this
    use(layer)
    layer._v_weight, layer._v_bias = torch.randn(4, 4), torch.randn(4)
    own, x = dict(layer._parameters), torch.randn(2, 4)
    weights = PresetWeights(Residency.of([layer], CPU, prefetch))
    with weights.applied():
        assert torch.equal(layer(x), torch.nn.functional.linear(x, layer._v_weight, layer._v_bias))
    assert layer.comfy_cast_weights and layer._parameters == own and not hasattr(layer, "_prefetch")


@pytest.mark.parametrize("kind", [comfy.ops.manual_cast.Linear, nn.Linear])
def test_a_layer_that_casts_or_is_not_comfyuis_gets_a_prefetch(pages, kind):
    layer = layer_on(pages, 0, kind=kind)
    use(layer)
    own = dict(layer._parameters)
    with PresetWeights(Residency.of([layer], CPU, prefetch)).applied():
        assert layer._parameters == own and layer._prefetch["resident"]


def test_nothing_is_preset_after_an_eviction(pages, layers):
    weights = used(layers)
    assert weights.prove() and pages.evict(0)
    with PresetWeights(weights).applied():
        assert not any(hasattr(layer, "_prefetch") for layer in layers)
        assert not pinned(pages), "this call has to load weights, and may need what is pinned"
    assert not weights.is_proved and not pinned(pages)


def test_memory_pressure_in_an_eager_call_ends_presets(pages, layers):
    weights = used(layers)
    presets = PresetWeights(weights)
    assert weights.prove()
    with presets.applied():
        assert not pages.evict(0) and pages.watermark == 0
    assert pages.watermark == len(pages.serials), "ComfyUI intends to keep these weights again"
    assert weights.prove()
    with presets.applied():
        assert not any(hasattr(layer, "_prefetch") for layer in layers)


def test_an_unknown_form_of_prefetch_is_left_to_comfyui(layers):
    @contextmanager
    def newer(given, device):
        with prefetch(given, device) as resident:
            for layer in given:
                layer._prefetch["buffer"] = None
            yield resident

    for layer in layers:
        use(layer)
    weights = PresetWeights(Residency.of(layers, CPU, newer))
    with weights.applied():
        assert not any(hasattr(layer, "_prefetch") for layer in layers)


def test_the_watermark_is_restored_before_pages_above_it_are_unpinned_also_after_an_error(pages, layers):
    """If a page above the watermark is unpinned, it is freed. So the watermark must be restored first, or
    the whole model would have to be loaded again.
    """
    weights = used(layers)
    assert weights.prove()
    with pytest.raises(torch.cuda.OutOfMemoryError), PresetWeights(weights).applied():
        assert not pages.evict(0)
        raise torch.cuda.OutOfMemoryError("planted")
    assert weights.prove() and not pinned(pages)


def test_a_range_that_the_driver_refuses_is_not_held(pages, layers, monkeypatch):
    weights = used(layers)
    assert weights.prove()

    def fault(address, nbytes):
        raise RuntimeError("Fault failed: 2")

    monkeypatch.setattr(pages, "fault", fault)
    with weights.held() as whole:
        assert not whole


@pytest.mark.parametrize("whole", [True, False])
def test_prefetched_weights_are_removed_whatever_comfyuis_function_expects(pages, layers, monkeypatch, whole):
    """ComfyUI's function `cleanup_prefetched_modules` takes different arguments from version 0.33.1 on."""

    def cast(modules, dtype, device, bias_dtype, non_blocking):
        for layer in modules:
            serials = pages.fault(*layer._v[1:])
            layer._prefetch = {"signature": serials, "resident": whole}

    used(layers)
    monkeypatch.setattr(comfy.ops, "cast_modules_with_vbar", cast, raising=False)
    with resident_weights(layers, CPU) as resident:
        assert resident is whole and any(pages.pins)
    assert not pinned(pages) and not any(hasattr(layer, "_prefetch") for layer in layers)
