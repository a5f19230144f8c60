"""The frozen tape, a stand-in for CUDA graphs: it repeats tensor operations without running Python again."""

import pytest
import torch
from support.tape import FrozenTape


def captured(work):
    return FrozenTape().capture(work)


def test_values_are_read_again_and_results_keep_their_addresses():
    x, out = torch.ones(3), torch.empty(3)
    replay = captured(lambda: out.copy_(x * 2 + 1))
    assert out.eq(3).all()
    x.fill_(5)
    replay()
    assert out.eq(11).all()


def test_python_does_not_run_again():
    x, out, seen, scale = torch.ones(2), torch.empty(2), [], [2.0]

    def work():
        seen.append(1)
        out.copy_(x * scale[0])

    replay = captured(work)
    scale[0] = 7.0
    replay()
    assert seen == [1] and out.eq(2).all()


def test_views_see_writes_to_their_memory():
    x, out = torch.arange(6.0), torch.empty(2, 3)

    def work():
        rows = (x + 0).view(2, 3)  # of a result
        rows[0] += 10  # in place, through another view
        out.copy_(rows.transpose(0, 1).reshape(3, 2).reshape(2, 3))

    def expected():
        rows = x.clone().view(2, 3)
        rows[0] += 10
        return rows.transpose(0, 1).reshape(2, 3)

    replay = captured(work)
    assert torch.equal(out, expected())
    x.mul_(3)
    replay()
    assert torch.equal(out, expected())


def test_outside_state_advances_with_each_replay():
    count = torch.zeros(1)
    replay = captured(lambda: count.add_(1))
    replay()
    replay()
    assert float(count) == 3


def test_functions_with_several_results_and_out_arguments():
    x, out, indices = torch.tensor([3.0, 1.0, 2.0]), torch.empty(3), torch.empty(3, dtype=torch.long)

    def work():
        values, order = x.sort()
        torch.add(values, 1, out=out)
        indices.copy_(order)

    replay = captured(work)
    x.copy_(torch.tensor([1.0, 2.0, 0.0]))
    replay()
    assert out.tolist() == [1, 2, 3] and indices.tolist() == [2, 0, 1]


@pytest.mark.parametrize("exchange", ["parameter", "data"])
def test_weights_at_another_address_are_not_seen(exchange):
    layer, x, out = torch.nn.Linear(2, 2, bias=False), torch.ones(1, 2), torch.empty(1, 2)
    with torch.no_grad():
        layer.weight.fill_(1)
        replay = captured(lambda: out.copy_(layer(x)))
        if exchange == "parameter":
            layer.weight = torch.nn.Parameter(torch.zeros(2, 2))
        else:
            layer.weight.data = torch.zeros(2, 2)
    replay()
    assert out.eq(2).all()


def test_weights_that_change_in_place_are_seen():
    layer, x, out = torch.nn.Linear(2, 2, bias=False), torch.ones(1, 2), torch.empty(1, 2)
    with torch.no_grad():
        replay = captured(lambda: out.copy_(layer(x)))
        layer.weight.fill_(3)
    replay()
    assert out.eq(6).all()


def test_another_layer_or_forward_is_not_seen():
    network, x, out = torch.nn.Sequential(torch.nn.Identity()), torch.ones(2), torch.empty(2)
    replay = captured(lambda: out.copy_(network(x)))
    network[0].forward = lambda value: value * 5
    replay()
    network[0] = torch.nn.Tanh()
    replay()
    assert out.eq(1).all()


@pytest.mark.parametrize("read", [float, bool, lambda x: x.nonzero(), lambda x: torch.equal(x, x)])
def test_a_value_cannot_be_read(read):
    with pytest.raises(RuntimeError, match="reads a value"):
        captured(lambda: read(torch.ones(1)))


@pytest.mark.parametrize("inference", [True, False])
def test_under_inference_mode_and_outside(inference):
    x, out = torch.ones(2, 2), torch.zeros(2, 2)
    with torch.inference_mode(inference):
        replay = captured(lambda: out.copy_(torch.nn.functional.linear(x, x).contiguous().reshape(2, 2)))
    x.fill_(2)
    replay()
    assert out.eq(8).all()
