"""Evictable weights (ComfyUI's dynamic VRAM): what proves that they are resident, and what shows that they
are not.
"""

from contextlib import contextmanager

import comfy.ops
import pytest
import torch
from ras_pack.ras_core.errors import NotResident
from ras_pack.ras_core.graphs.network_identity import inspect
from ras_pack.ras_core.graphs.residency import EvictableWeights, Residency, is_evictable, same_contents
from ras_pack.ras_core.host.graphs_of_model import resident_weights
from support.pages import PAGE, FakePages, layer_on, prefetch, use
from torch import nn

CPU = torch.device("cpu")


@pytest.fixture
def pages():
    return FakePages()


@pytest.fixture
def layers(pages):
    """Three layers on two pages; the second one is on both."""
    return [layer_on(pages, 0), layer_on(pages, PAGE - 512), layer_on(pages, PAGE + 4096)]


def used(layers) -> Residency:
    for layer in layers:
        use(layer)
    return Residency.of(layers, CPU, prefetch)


def pinned(pages) -> bool:
    return any(pages.pins) or pages.limit != 0


def test_all_weights_in_place_are_proved_by_their_pages(pages, layers):
    weights = Residency.of(layers, CPU, prefetch)
    assert not weights.prove() and weights.resident == 0
    weights = used(layers)
    assert weights.prove() and weights.is_proved and weights.resident == len(weights) == 3
    assert not pinned(pages)


def test_a_layer_that_forgot_is_not_in_place_though_its_page_is_the_same(layers):
    weights = used(layers)
    layers[1]._v_signature = None  # ComfyUI does so where a LoRA has changed
    assert not weights.prove() and weights.resident == 2


def test_a_layer_on_an_evicted_page_is_not_in_place_though_the_page_is_back(pages, layers):
    weights = used(layers)
    assert weights.prove()
    pages.evict(1)
    pages.prioritize()
    pages.fault(pages.base_addr + PAGE, 1)  # remapped, but empty
    pages.unpin(pages.base_addr + PAGE, 1)
    assert not weights.prove() and weights.resident == 1


def test_a_hold_sees_an_eviction_since_the_proof_and_the_next_use_heals_it(pages, layers):
    weights = used(layers)
    assert weights.prove()
    with weights.held() as whole:
        assert whole and all(pages.pins[:2])
        assert not pages.evict(0), "pinned pages stay"
    assert not pinned(pages) and pages.evict(0)
    with weights.held() as whole:
        assert not whole
    assert weights.misses == 1 and not weights.is_proved and not pinned(pages)
    pages.prioritize()  # as when ComfyUI loads the model for the next run
    for layer in layers:
        use(layer)
    assert weights.prove()
    with weights.held() as whole:
        assert whole


def test_a_hold_where_memory_is_short_is_a_miss(pages, layers):
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


def test_a_capture_pins_its_weights_keeps_them_and_takes_them_at_once(pages, layers):
    weights = used(layers)
    with weights.captured():
        assert all(pages.pins[:2]) and all(hasattr(layer, "_prefetch") for layer in layers)
        pins, pages.pins = pages.pins, [0] * len(pages.pins)
        assert not pages.evict(0) and not pages.evict(1), "the limit keeps them though nothing is pinned"
        pages.pins = pins
    assert not pinned(pages) and not any(hasattr(layer, "_prefetch") for layer in layers)


@pytest.mark.parametrize("when", ["before", "in"])
def test_a_capture_is_refused_where_weights_are_evicted(pages, layers, when):
    weights = used(layers)
    if when == "before":
        pages.evict(0)
    with pytest.raises(NotResident), weights.captured():
        assert when == "in"
        pages.serials[1] = 99  # evicted and mapped anew, against all pins
    assert not pinned(pages) and not any(hasattr(layer, "_prefetch") for layer in layers)


def test_an_error_in_a_capture_leaves_nothing_pinned(pages, layers):
    with pytest.raises(ValueError), used(layers).captured():
        raise ValueError
    assert not pinned(pages) and not any(hasattr(layer, "_prefetch") for layer in layers)


def test_layers_in_two_ranges_or_in_an_unknown_one_cannot_be_held(pages):
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


def test_a_layer_takes_its_weight_from_the_range_only_where_it_is_not_on_the_device_anyway(pages):
    layer = layer_on(pages, 0)
    assert is_evictable(layer, CPU)
    layer.weight = nn.Parameter(torch.zeros(4, 4))
    assert not is_evictable(layer, CPU)
    assert not is_evictable(nn.Linear(4, 4, device="meta"), CPU)


def look_at(network):
    return inspect(network, CPU, residency=EvictableWeights(prefetch).of(network, CPU))


def network_on(pages: FakePages) -> nn.Sequential:
    """An evictable layer, and small tensors that are new in each run."""
    return nn.Sequential(layer_on(pages, 0), nn.LayerNorm(4)).requires_grad_(False)


def test_a_network_stands_as_where_its_small_tensors_hold_the_same(pages):
    network = network_on(pages)
    first = look_at(network)
    assert first.obstacle is None and first.residency is not None
    network[1].weight = nn.Parameter(network[1].weight.clone(), requires_grad=False)
    assert first.matches(look_at(network))
    network[1].weight[2] += 1
    assert not first.matches(look_at(network))


def test_a_network_is_not_read_alike_on_other_addresses_or_without_dynamic_vram(pages):
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
def test_contents_are_compared_whatever_their_size_and_type(size):
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


def test_an_eager_call_finds_all_weights_preset_and_nothing_stays(pages, layers):
    weights = used(layers)
    layers[0]._v_signature = None
    with weights.preset():
        assert not any(hasattr(layer, "_prefetch") for layer in layers), "nothing is preset without a proof"
    use(layers[0])
    with weights.preset():
        assert all(pages.pins[:2])
        for layer in layers:
            assert layer._prefetch["resident"] and layer._prefetch["signature"] is layer._v_signature
    assert not pinned(pages) and not any(hasattr(layer, "_prefetch") for layer in layers)
    with pytest.raises(KeyboardInterrupt), weights.preset():
        raise KeyboardInterrupt
    assert not pinned(pages) and not any(hasattr(layer, "_prefetch") for layer in layers)


def test_a_layer_that_casts_nothing_runs_on_its_resident_weight_as_on_its_own(pages):
    layer = layer_on(pages, 0, kind=comfy.ops.disable_weight_init.Linear)
    layer.comfy_cast_weights = True  # as ComfyUI marks the layers of dynamic VRAM
    use(layer)
    layer._v_weight, layer._v_bias = torch.randn(4, 4), torch.randn(4)
    own, x = dict(layer._parameters), torch.randn(2, 4)
    weights = Residency.of([layer], CPU, prefetch)
    with weights.preset():
        assert torch.equal(layer(x), torch.nn.functional.linear(x, layer._v_weight, layer._v_bias))
    assert layer.comfy_cast_weights and layer._parameters == own and not hasattr(layer, "_prefetch")


@pytest.mark.parametrize("kind", [comfy.ops.manual_cast.Linear, nn.Linear])
def test_a_layer_that_casts_or_is_not_comfyuis_keeps_its_own_way(pages, kind):
    layer = layer_on(pages, 0, kind=kind)
    use(layer)
    own = dict(layer._parameters)
    with Residency.of([layer], CPU, prefetch).preset():
        assert layer._parameters == own and layer._prefetch["resident"]


def test_an_eager_call_gives_nothing_after_an_eviction(pages, layers):
    weights = used(layers)
    assert weights.prove() and pages.evict(0)
    with weights.preset():
        assert not any(hasattr(layer, "_prefetch") for layer in layers)
        assert not pinned(pages), "this call has to load weights, and may need what is pinned"
    assert not weights.is_proved and not pinned(pages)


def test_memory_that_is_needed_in_an_eager_call_ends_such_calls(pages, layers):
    weights = used(layers)
    assert weights.prove()
    with weights.preset():
        assert not pages.evict(0) and pages.watermark == 0
    assert pages.watermark == len(pages.serials), "ComfyUI means to keep these weights again"
    assert weights.prove()
    with weights.preset():
        assert not any(hasattr(layer, "_prefetch") for layer in layers)


def test_a_form_of_giving_weights_that_is_not_known_is_left_to_comfyui(layers):
    @contextmanager
    def newer(given, device):
        with prefetch(given, device) as resident:
            for layer in given:
                layer._prefetch["buffer"] = None
            yield resident

    for layer in layers:
        use(layer)
    weights = Residency.of(layers, CPU, newer)
    with weights.preset():
        assert not any(hasattr(layer, "_prefetch") for layer in layers)


def test_the_watermark_is_restored_before_pages_above_it_are_unpinned_also_after_an_error(pages, layers):
    """Unpinning a page above the watermark frees it: the whole model would have to be loaded again."""
    weights = used(layers)
    assert weights.prove()
    with pytest.raises(torch.cuda.OutOfMemoryError), weights.preset():
        assert not pages.evict(0)
        raise torch.cuda.OutOfMemoryError("planted")
    assert weights.prove() and not pinned(pages)


def test_a_range_that_the_driver_refuses_is_not_whole(pages, layers, monkeypatch):
    weights = used(layers)
    assert weights.prove()

    def fault(address, nbytes):
        raise RuntimeError("Fault failed: 2")

    monkeypatch.setattr(pages, "fault", fault)
    with weights.held() as whole:
        assert not whole


@pytest.mark.parametrize("whole", [True, False])
def test_what_comfyui_prefetches_is_taken_back_whatever_its_own_function_expects(
    pages, layers, monkeypatch, whole
):
    """`cleanup_prefetched_modules` has other arguments from 0.33.1 on."""

    def cast(modules, dtype, device, bias_dtype, non_blocking):
        for layer in modules:
            serials = pages.fault(*layer._v[1:])
            layer._prefetch = {"signature": serials, "resident": whole}

    used(layers)
    monkeypatch.setattr(comfy.ops, "cast_modules_with_vbar", cast, raising=False)
    with resident_weights(layers, CPU) as resident:
        assert resident is whole and any(pages.pins)
    assert not pinned(pages) and not any(hasattr(layer, "_prefetch") for layer in layers)
