"""Batches that do not fit into memory: done in pieces, nothing lost, nothing done twice in the result."""

from itertools import chain
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attacks import apgd
from attacks.auto_batch import AutoBatch


class Small:
    """Work that fits `room` samples at a time."""

    def __init__(self, room, error=None):
        self.room = room
        self.error = error or torch.OutOfMemoryError("CUDA out of memory")
        self.sizes = []

    def __call__(self, rows):
        count = rows.stop - rows.start
        self.sizes.append(count)
        if count > self.room:
            raise self.error
        return list(range(rows.start, rows.stop))


@given(count=st.integers(1, 70), room=st.integers(1, 70))
def test_every_sample_is_done_once_and_in_order(count, room):
    work = Small(room)
    pieces = AutoBatch()
    with mock.patch("gc.collect"):  # it takes long after a thousand other tests
        assert list(chain.from_iterable(pieces.run(work, count))) == list(range(count))
        before = len(work.sizes)
        assert list(chain.from_iterable(pieces.run(work, count))) == list(range(count))
    assert all(size <= room for size in work.sizes[before:])  # it has learned
    assert pieces.size is None if room >= count else pieces.size >= room // 2  # and not too much


def test_what_fits_is_one_piece():
    work = Small(8)
    assert AutoBatch().run(work, 8) == [list(range(8))]
    assert work.sizes == [8]


def test_a_cpus_words_are_understood_and_other_errors_raised():
    words = RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory")
    assert len(AutoBatch().run(Small(2, words), 4)) == 2
    with pytest.raises(RuntimeError, match="shapes"):
        AutoBatch().run(Small(2, RuntimeError("shapes do not match")), 4)


def test_one_sample_too_large_is_an_error():
    with pytest.raises(torch.OutOfMemoryError):
        AutoBatch().run(Small(0), 4)


def test_the_last_resort_is_asked_once_a_single_sample_is_too_large():
    work, asked = Small(0), []

    def last_resort():
        asked.append(work.sizes[-1])
        work.room = 1
        return len(asked) == 1

    pieces = AutoBatch(last_resort=last_resort)
    assert list(chain.from_iterable(pieces.run(work, 4))) == [0, 1, 2, 3]
    assert (asked, pieces.size) == ([1], 1)
    work.room = -1
    with pytest.raises(torch.OutOfMemoryError):
        AutoBatch(last_resort=lambda: False).run(work, 4)


@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_an_attack_loses_no_sample(phase):
    x = torch.rand(7, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    centre = torch.rand(7, 3, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    room = 2

    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            return z.clone()

        @staticmethod
        def backward(ctx, slope):
            if phase == "backward" and len(slope) > room:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return slope

    def loss_fn(z, index):
        if phase == "forward" and len(index) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return (Backward.apply(z) - centre[index]).square().flatten(1).sum(1)

    def whole(z, index):
        return (z - centre[index]).square().flatten(1).sum(1)

    found = apgd(loss_fn, x, eps=0.1, steps=10, seed=4)
    wanted = apgd(whole, x, eps=0.1, steps=10, seed=4)
    assert torch.equal(found.x_adv, wanted.x_adv)
    assert torch.equal(found.loss, wanted.loss)
    assert found.steps.tolist() == [10] * 7
