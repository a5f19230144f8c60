"""Which code of other packs may keep results of a call."""

from functools import partial

import pytest
import torch
from ras_pack.ras_core.models import adapter_for
from ras_pack.ras_core.run.foreign import holds_results, may_keep, other_cache
from support.families import FAMILIES

STORE = {}
LIMIT = 0.5


class Owner:
    def patch(self, given, more):
        return more["original_block"](given)


class OwnLayer(torch.nn.Module):
    pass


def skips(given, more):
    return given


def reads_a_constant(given, more):
    return given if LIMIT > 1 else more["original_block"](given)


def writes_a_global(given, more):
    global LIMIT
    LIMIT = 1
    return given


def reads_a_store(given, more):
    return STORE.get("last", given)


def calls_another(given, more):
    return reads_a_store(given, more)


def writes_an_attribute(given, more):
    given.last = more
    return given


def keeps_by_default(given, more, known=[]):  # noqa: B006 - this is the case
    return given


def adds(value):
    """A patch that adds something constant to a block's result, as image prompts do."""

    def patch(given, more):
        return {"img": more["original_block"](given)["img"] + value}

    return patch


def counts():
    number = 0

    def patch(given, more):
        nonlocal number
        number += 1
        return given

    return patch


FREE = {
    "skips": skips,
    "constant": reads_a_constant,
    "tensor": adds(torch.ones(1)),
    "layer": adds(torch.nn.Sequential(torch.nn.Linear(2, 2))),
    "tuple": adds((1, "a", torch.ones(1))),
    "partial": partial(adds(2), more=3),
    "function": adds(skips),
    "class": adds(Owner),
}
KEEPS = {
    "global": writes_a_global,
    "store": reads_a_store,
    "another": calls_another,
    "attribute": writes_an_attribute,
    "default": keeps_by_default,
    "dict": adds({}),
    "nested": adds((1, [])),
    "method": Owner().patch,
    "object": adds(Owner()),
    "own layer": adds(OwnLayer()),
    "layer in a layer": adds(torch.nn.Sequential(OwnLayer())),
    "counter": counts(),
    "partial": partial(adds({}), more=3),
}


@pytest.mark.parametrize("name", FREE)
def test_code_that_keeps_nothing(name):
    assert not may_keep(FREE[name])


@pytest.mark.parametrize("name", KEEPS)
def test_code_that_may_keep_something(name):
    assert may_keep(KEEPS[name])


@pytest.mark.parametrize("name", FAMILIES)
def test_comfyuis_own_network_has_no_other_cache(name):
    network = FAMILIES[name].build().model.diffusion_model
    blocks = adapter_for(network).blocks(network)
    assert other_cache(network, blocks, [skips]) is None
    assert "cache of its own" in other_cache(network, blocks, [skips, reads_a_store])


@pytest.mark.parametrize("value", [{"a": {1: [(0.5, torch.ones(1))]}}, [torch.ones(1)]], ids=["deep", "list"])
def test_a_kept_result_is_found(value):
    owner = Owner()
    owner.value = value
    assert holds_results(adds(value)) and holds_results(owner.patch) and holds_results(partial(skips, value))


def test_numbers_and_constant_tensors_are_no_results():
    rows = [(3, 4), {"rows": 5}]
    rows.append(rows)  # endless
    for value in (rows, torch.ones(1), (torch.ones(1), 2), torch.nn.Linear(1, 1)):
        assert not holds_results(adds(value))
