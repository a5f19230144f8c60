"""Layers that do not run in a sampling step: their evictable weights need not be resident for captures."""

import comfy.ops
import pytest
import torch
from ras_pack.ras_core.errors import NotResident
from ras_pack.ras_core.graphs.layer_uses import loads_noted, reads_noted
from ras_pack.ras_core.graphs.network_graphs import NetworkGraphs
from ras_pack.ras_core.graphs.network_identity import inspect
from ras_pack.ras_core.graphs.preset import EvictableWeights, PresetWeights
from ras_pack.ras_core.graphs.residency import MAX_MISSES
from ras_pack.ras_core.graphs.store import GraphStore
from ras_pack.ras_core.host.graphs_of_model import resident_weights
from ras_pack.ras_core.kv.store import KVRows
from support.pages import PAGE, FakePages, layer_on, prefetch, use
from support.tape import AgainTape, Tapes
from torch import Tensor, nn

CPU = torch.device("cpu")
TOO_LITTLE = "there is too little GPU memory"


class Layer(nn.Linear):
    """A layer that fetches its weights at each use, as ComfyUI's layers do under dynamic VRAM."""

    def forward(self, x: Tensor) -> Tensor:
        prefetched = self.__dict__.get("_prefetch")
        if prefetched is None:
            use(self)
        elif not prefetched["resident"]:
            raise AssertionError("not resident, although it was prefetched")
        return x + 1


class Network(nn.Module):
    """Two blocks, and a layer between them in memory that processes the text before sampling.

    Attributes:
        steps: the layers that a call runs.
    """

    def __init__(self, pages: FakePages):
        super().__init__()
        self.first = layer_on(pages, 0, kind=Layer)
        self.text = layer_on(pages, PAGE, kind=Layer)
        self.last = layer_on(pages, 2 * PAGE, kind=Layer)
        self.steps = [self.first, self.last]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.steps:
            x = layer(x)
        return x


class Run:
    """The captured calls of one network in one run. Like a run of ComfyUI, it begins with a dense call, and
    makes an eager call with preset weights if a call is not captured.
    """

    def __init__(self, network: Network, store: GraphStore):
        self.network, self.graphs = network, NetworkGraphs(store)
        self.weights = EvictableWeights(prefetch)
        self.graphs.prepare(inspect(network, CPU, residency=self.weights.of(network, CPU)))
        rows = torch.zeros(1, 2, 3)
        inputs = {"x": torch.zeros(1, 1, 2, 2)}
        self.slots = self.graphs.lend(("a",), inputs) or {(0, 0): KVRows.of(rows, rows, 0, 0)}
        network(inputs["x"])

    def call(self, n_active: int = 2) -> str:
        """Make one call. Returns how it ran."""
        inputs = {"x": torch.zeros(1, 1, 2, 2)}
        idx = torch.zeros(1, n_active, dtype=torch.long)
        captured, replayed = self.graphs.captured, self.graphs.replayed
        self.graphs.begin_evaluation(True)
        self.graphs.begin_call()
        output = self.graphs.run(("a",), inputs, idx, self.slots, lambda now, *_: self.network(now["x"]))
        if output is None:
            with self.weights.preset(self.network, CPU):
                self.network(inputs["x"])
            return "eager"
        if self.graphs.captured > captured:
            return "captured"
        assert self.graphs.replayed > replayed
        return "replayed"

    @property
    def resident(self) -> tuple[int, int]:
        return self.graphs.residency.resident, len(self.graphs.residency)


@pytest.fixture
def pages() -> FakePages:
    return FakePages()


@pytest.fixture
def network(pages) -> Network:
    return Network(pages)


@pytest.fixture
def store() -> GraphStore:
    return GraphStore(Tapes(AgainTape))


def evict(pages: FakePages, page: int) -> None:
    assert pages.evict(page)
    pages.prioritize()


def test_a_layer_that_never_runs_does_not_prevent_captures(network, pages, store):
    """The first call finds out that the layer does not run."""
    run = Run(network, store)
    assert [run.call() for _ in range(4)] == ["eager", "eager", "captured", "replayed"]
    assert run.graphs.reason is None and run.resident == (2, 2)
    assert network.text._v_signature is None and network.text._v[0] is pages and not any(pages.pins)


def test_its_memory_is_not_mapped_from_the_second_call_on(network, pages, store):
    run = Run(network, store)
    run.call()
    evict(pages, 1)
    assert [run.call() for _ in range(3)] == ["eager", "captured", "replayed"] and pages.serials[1] == 0


def test_the_next_run_replays_at_once(network, store):
    run = Run(network, store)
    for _ in range(3):
        run.call()
    run.graphs.close()
    assert Run(network, store).call() == "replayed"


def test_weights_that_only_conditionings_needed_may_be_evicted_in_the_run(network, pages, store):
    """The layer ran before sampling, so its weights are resident at first."""
    use(network.text)
    run = Run(network, store)
    assert [run.call() for _ in range(3)] == ["eager", "captured", "replayed"] and run.resident == (3, 3)
    evict(pages, 1)
    assert [run.call() for _ in range(3)] == ["eager", "replayed", "replayed"] and run.resident == (2, 2)


def test_a_layer_that_runs_later_is_checked_from_then_on(network, pages, store):
    run = Run(network, store)
    for _ in range(3):
        run.call()
    network.steps.insert(1, network.text)
    assert [run.call(1) for _ in range(2)] == ["eager", "captured"] and run.resident == (3, 3)
    read = [each.layers for b in store.buffers for each in b.calls.values()]
    assert read == [{0, 2}, {0, 1, 2}]
    evict(pages, 1)
    assert [run.call(1) for _ in range(2)] == ["eager", "replayed"], "the eager call loads the layer"


def test_no_capture_reads_a_layer_that_was_not_checked(network, pages, store):
    """The eager calls do not run the layer, but the capture does."""
    run = Run(network, store)
    assert [run.call() for _ in range(2)] == ["eager", "eager"]
    network.steps.append(network.text)
    assert run.call() == "eager" and store.count == 0, "the capture was ended"
    assert run.graphs.obstacle is None and not any(pages.pins) and network.text._v[0] is pages
    assert run.call() == "captured" and run.resident == (3, 3)


def test_no_graph_of_an_earlier_run_reads_a_layer_that_was_not_checked(network, pages, store):
    """The graph reads a layer that no other call of the run runs, and that was evicted between the runs."""
    network.steps.append(network.text)
    run = Run(network, store)
    assert [run.call(), run.call()] == ["eager", "captured"]
    run.graphs.close()
    evict(pages, 1)
    network.steps.remove(network.text)
    run = Run(network, store)
    assert run.call(1) == "eager" and run.graphs.residency.prove() and run.resident == (2, 2)
    network.steps.append(network.text)
    assert run.call() == "eager", "this call loads the layer"
    assert run.call() == "replayed" and run.resident == (3, 3)


def test_too_little_memory_is_the_reason_only_if_layers_that_run_are_not_resident(network, pages, store):
    pages.is_full = True
    run = Run(network, store)
    assert {run.call() for _ in range(MAX_MISSES + 1)} == {"eager"}
    assert TOO_LITTLE in run.graphs.reason


def test_layers_that_nothing_loads_are_named(network, pages, store):
    """A captured call reads the layer, so it must be resident; but no call runs it any more."""
    network.steps.append(network.text)
    run = Run(network, store)
    assert [run.call(), run.call()] == ["eager", "captured"]
    network.steps.remove(network.text)
    evict(pages, 1)
    assert {run.call() for _ in range(MAX_MISSES + 1)} == {"eager"}
    assert run.graphs.reason == "no call has loaded the weights of text"


def test_an_error_in_an_observed_call_restores_the_layers(network, pages):
    weights = PresetWeights(EvictableWeights(prefetch).of(network, CPU))
    with pytest.raises(KeyboardInterrupt), weights.applied():
        raise KeyboardInterrupt
    assert all(layer._v[0] is pages for layer in (network.first, network.text, network.last))
    with weights.applied():
        network(torch.zeros(1))
    residency = EvictableWeights(prefetch).of(network, CPU)
    assert len(residency) == 3 and not residency.prove(), "the next run knows nothing of this one"


def test_pages_between_those_of_layers_are_not_pinned(pages, network):
    residency = EvictableWeights(prefetch).of(network, CPU)
    with PresetWeights(residency).applied():
        network(torch.zeros(1))
    assert residency.prove() and len(residency) == 2
    with residency.held() as whole:
        assert whole and pages.pins == [1, 0, 1, 0]
    pages.is_full = True
    assert pages.evict(2)
    assert not residency.prove() and not any(pages.pins), "the first span is released"
    with pytest.raises(NotResident), residency.captured():
        raise AssertionError


@pytest.mark.skipif(not hasattr(comfy.ops, "resolve_cast_module_with_vbar"), reason="no such dynamic VRAM")
def test_comfyuis_own_functions_are_noticed(pages):
    """ComfyUI's layers fetch weights with these two functions, unless they run on the CPU."""
    layer = layer_on(pages, 0, kind=comfy.ops.disable_weight_init.Linear)
    use(layer)
    layers, read, loaded = {5: layer}, set(), []
    with resident_weights([layer], CPU) as resident, reads_noted(layers, read):
        assert resident and not read
        weight, _ = comfy.ops.resolve_cast_module_with_vbar(layer, torch.float32, CPU, None, None, False)
        assert weight is layer._v_weight and read == {5}
    assert not hasattr(layer, "_prefetch") and not any(pages.pins)
    with loads_noted(layers, loaded.append):
        comfy.ops.cast_modules_with_vbar([layer], None, CPU, None, True)
        pages.unpin(*layer._v[1:])
    assert loaded == [5] and layer._v[0] is pages

    def stop(number):
        raise NotResident

    with pytest.raises(NotResident), loads_noted(layers, stop):
        comfy.ops.cast_modules_with_vbar([layer], None, CPU, None, True)
    assert not any(pages.pins)
