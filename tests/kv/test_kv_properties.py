"""Any sequence of fills, updates and regroupings of the K/V cache equals a plain dictionary of rows, in every
registered format within its tolerance.
"""

from collections import defaultdict
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ras_pack.ras_core.kv import update as kv
from ras_pack.ras_core.kv.float8 import has_float8
from ras_pack.ras_core.kv.formats import FORMATS
from ras_pack.ras_core.kv.store import KVStore
from ras_pack.ras_core.rows import RowIndex
from support.properties import examples
from torch import Tensor

N, HEADS, WIDTH = 5, 2, 8
BRANCHES = ("a", "b", "c")
SLOTS = ((0, 0), (0, 1))

TOLERANCE = defaultdict(float, fp8=2**-3)
"""Largest relative difference of a kept row from the one that was written, by format; 0: none."""

KEPT = [name for name, each in FORMATS.items() if each.rows is not None]


@dataclass
class Rows:
    """A plain dictionary of rows.

    Attributes:
        last: (2, images, N, HEADS, WIDTH) key and value of every token, by branch and attention.
    """

    last: dict[tuple[str, tuple[int, int]], Tensor] = field(default_factory=dict)

    def joined(self, branches: tuple[str, ...], slot: tuple[int, int]) -> Tensor:
        return torch.cat([self.last[branch, slot] for branch in branches], dim=1)

    def keep(self, branches: tuple[str, ...], slot: tuple[int, int], rows: Tensor) -> None:
        for branch, part in zip(branches, rows.chunk(len(branches), dim=1), strict=True):
            self.last[branch, slot] = part.clone()

    def drop(self, branches: tuple[str, ...]) -> None:
        self.last = {key: rows for key, rows in self.last.items() if key[0] not in branches}


class Both:
    """A K/V store and the plain dictionary, to which the same is done."""

    def __init__(self, format_name: str, images: int):
        self.images = images
        self.store, self.rows = KVStore(N, format_name, branch_nbytes=100), Rows()
        self._limit = TOLERANCE[format_name]
        self._generator = torch.Generator().manual_seed(0)

    def fill(self, branches: tuple[str, ...], borders: tuple[int, int]) -> None:
        """A dense call."""
        slots, keep = self.store.begin_fill(branches), self.store.keep_for(branches)
        for slot in SLOTS:
            pair = self._drawn(branches, N + sum(borders))
            kv.fill(slots, slot, tuple(pair), borders, keep)
            self.rows.keep(branches, slot, pair[:, :, borders[0] : borders[0] + N])
        self.store.end_fill(branches, slots)

    def update(self, branches: tuple[str, ...], borders: tuple[int, int], count: int) -> None:
        """A regional call of `count` tokens, others in each image."""
        prefix, suffix = borders
        images = len(branches) * self.images
        active = torch.stack([torch.randperm(N, generator=self._generator)[:count] for _ in range(images)])
        index = RowIndex.of(active, N, prefix, suffix)
        slots = self.store.slots_for(branches)
        for slot in SLOTS:
            fresh = self._drawn(branches, prefix + count + suffix)
            whole = torch.stack(kv.update(slots, slot, tuple(fresh), borders, index))
            expected = self.rows.joined(branches, slot)
            self.check(whole[:, :, prefix : prefix + N], expected, exact=active, fresh=fresh[:, :, prefix:])
            assert torch.equal(whole[:, :, :prefix], fresh[:, :, :prefix])
            assert torch.equal(whole[:, :, prefix + N :], fresh[:, :, prefix + count :])
            self.rows.keep(branches, slot, expected)

    def check(self, found: Tensor, expected: Tensor, exact: Tensor, fresh: Tensor) -> None:
        """Whether the rows that attention reads are the expected ones, and fresh rows unrounded; writes the
        fresh rows into `expected`.
        """
        for image, tokens in enumerate(exact):
            expected[:, image, tokens] = fresh[:, image, : len(tokens)]
            assert torch.equal(found[:, image, tokens], expected[:, image, tokens])
        self._near(found, expected)

    def read(self, branches: tuple[str, ...]) -> None:
        """Compare all rows of these branches."""
        slots = self.store.slots_for(branches)
        for slot in SLOTS:
            kept = torch.stack(slots[slot].image_only().read())
            self._near(kept, self.rows.joined(branches, slot))

    def _near(self, found: Tensor, expected: Tensor) -> None:
        assert found.shape == expected.shape
        largest = expected.abs().amax(dim=(-2, -1), keepdim=True)
        assert bool(((found - expected).abs() <= self._limit * largest).all())

    def _drawn(self, branches: tuple[str, ...], rows: int) -> Tensor:
        shape = (2, len(branches) * self.images, rows, HEADS, WIDTH)
        return torch.randn(shape, generator=self._generator)


def _groups(draw, known: list[str]) -> list[tuple[str, ...]]:
    """The branches of one evaluation, in one call or in several."""
    order = draw(st.permutations(known))
    cuts = sorted(draw(st.sets(st.integers(1, len(order) - 1)))) if len(order) > 1 else []
    return [tuple(order[a:b]) for a, b in zip([0, *cuts], [*cuts, len(order)], strict=True)]


borders = st.tuples(st.integers(0, 3), st.integers(0, 2))


@pytest.mark.parametrize("format_name", KEPT)
@examples(30)
@given(data=st.data())
def test_any_sequence_of_calls_equals_a_dictionary_of_rows(format_name, data):
    if FORMATS[format_name].needs_float8 and not has_float8(torch.device("cpu")):
        pytest.skip("PyTorch cannot convert to float8 here")
    draw, both = data.draw, Both(format_name, data.draw(st.integers(1, 2)))
    for _ in range(draw(st.integers(1, 8))):
        known = [branch for branch in BRANCHES if branch in both.store]
        work = draw(st.sampled_from(["fill", "update", "update", "drop"])) if known else "fill"
        if work == "drop":
            gone = tuple(draw(st.lists(st.sampled_from(BRANCHES), unique=True, max_size=2)))
            both.store.drop(gone)
            both.rows.drop(gone)
            assert not any(branch in both.store for branch in gone)
            continue
        several = known if work == "update" else list(draw(st.sets(st.sampled_from(BRANCHES), min_size=1)))
        for group in _groups(draw, sorted(several)):
            if work == "fill":
                both.fill(group, draw(borders))
            else:
                both.update(group, draw(borders), draw(st.integers(1, N)))
            both.read(group)
    known = tuple(branch for branch in BRANCHES if branch in both.store)
    if known:
        both.read(known)
    assert both.store.nbytes() >= sum(rows.nbytes for rows in both.rows.last.values()) // 4


@pytest.mark.parametrize("format_name", [name for name, each in FORMATS.items() if each.advances])
@examples(30)
@given(data=st.data())
def test_earlier_evaluations_of_a_row_survive_any_regrouping(format_name, data):
    """A format that extrapolates keeps each row's values at its last evaluations, whatever calls its branch
    shared with others.
    """
    draw, both = data.draw, Both(format_name, 1)
    depth, text = FORMATS[format_name].rows.evaluations, (1, 0)
    both.fill(BRANCHES, text)
    history = {key: [rows.clone()] * depth for key, rows in both.rows.last.items()}
    for work in draw(st.lists(st.sampled_from(["fill", "update"]), min_size=1, max_size=6)):
        before = {key: rows.clone() for key, rows in both.rows.last.items()}
        for group in _groups(draw, list(BRANCHES)):
            if work == "fill":
                both.fill(group, text)
            else:
                both.update(group, text, draw(st.integers(1, N)))
        for key, rows in both.rows.last.items():
            moved = (rows != before[key]).any(dim=(0, 3, 4))[None, :, :, None, None]
            newer = [rows, *history[key]]
            earlier = [torch.where(moved, a, b) for a, b in zip(newer, history[key], strict=False)]
            history[key] = [rows.clone(), *earlier[1:]]
    slots = both.store.slots_for(BRANCHES)
    for slot in SLOTS:
        tensors = slots[slot].image_only().tensors
        for age in range(depth):
            kept = torch.stack(tensors[2 * age : 2 * age + 2])
            expected = torch.cat([history[branch, slot][age] for branch in BRANCHES], dim=1)
            assert torch.equal(kept, expected), f"evaluation {age} before the last"
