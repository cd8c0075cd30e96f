"""APGD against a hand computation (the official code: test_autoattack), and its docstring's promises."""

import math
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks import apgd, cpu_workers
from attacks.apgd_state import checkpoints
from attacks.norms import length
from attacks.success import check_on, geometric_schedule

SHAPE = (3, 4, 4)


def waves(count, *, seed=0, frequency=25.0, dtype=torch.float64):
    """Many local maxima, others for every sample: sum_i a_i sin(frequency z_i + b_i) + c_i z_i."""
    g = torch.Generator().manual_seed(seed)
    a, b, c = (torch.randn(count, *SHAPE, generator=g, dtype=torch.float64).to(dtype) for _ in range(3))

    def loss_fn(z, index):
        terms = a[index] * torch.sin(frequency * z + b[index]) + c[index] * z
        return terms.flatten(1).sum(1)

    return loss_fn


def images(count, *, seed=1, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(count, *SHAPE, generator=g, dtype=torch.float64).to(dtype)


class Spy:
    """Wraps a loss and keeps what it was asked."""

    def __init__(self, loss_fn):
        self.loss_fn = loss_fn
        self.points = []
        self.indices = []

    def __call__(self, z, index):
        self.points.append(z.detach().clone())
        self.indices.append(list(index))
        return self.loss_fn(z, index)


# --- the algorithm -----------------------------------------------------------------------------------------


def test_linf_sequence_computed_by_hand():
    # One pixel, f(z) = -(z - 0.54)^2, x = 0.5, eps = 0.1, clean start, first step 2 eps = 0.2, 10 steps.
    # Windows: int(2.2) = 2, then max(2 - 1, 1) = 1: checkpoints after the steps 2, 3, ..., 10.
    expected = [
        0.5,  # start, f = -0.0016, slope up
        0.6,  # 0.5 + 0.2 = 0.7, cut to 0.6, no momentum yet; f = -0.0036, slope down
        # ahead 0.6 - 0.2 = 0.4; 0.6 - 0.75 * 0.2 + 0.25 * (0.6 - 0.5); f = -0.004225.
        0.475,  # check: no rise in 2 steps -> step 0.1, back to 0.5
        # ahead 0.6; 0.5 + 0.75 * 0.1 + 0.25 * (0.5 - 0.6): the momentum spans the jump back; f = -0.0001.
        0.55,  # check: one rise in 1 step, best grew -> stays
        # ahead 0.45; 0.55 - 0.75 * 0.1 + 0.25 * (0.55 - 0.5); f = -0.00276.
        0.4875,  # check: no rise -> step 0.05, back to 0.55
        # ahead 0.5; 0.55 - 0.75 * 0.05 + 0.25 * (0.55 - 0.55); f = -0.00076.
        0.5125,  # check: a rise; the best did not grow, but the step was halved just before -> stays
        # ahead 0.5625; 0.5125 + 0.75 * 0.05 + 0.25 * (0.5125 - 0.55); f = -3.9e-7, the new best.
        0.540625,  # check: stays
        # ahead 0.490625; 0.540625 - 0.75 * 0.05 + 0.25 * (0.540625 - 0.5125).
        0.51015625,  # check: no rise -> step 0.025, back to 0.540625
        # ahead 0.515625; 0.540625 - 0.75 * 0.025 + 0.
        0.521875,  # check: a rise, halved just before -> stays
        # ahead 0.546875; 0.521875 + 0.75 * 0.025 + 0.25 * (0.521875 - 0.540625); f = -1.65e-5.
        0.5359375,  # check: a rise, but the best did not grow (condition 2) -> step 0.0125, back to 0.540625
        # ahead 0.528125; 0.540625 - 0.75 * 0.0125 + 0.25 * (0.540625 - 0.521875).
        0.5359375,
    ]
    spy = Spy(lambda z, index: -((z - 0.54) ** 2).flatten(1).sum(1))
    x = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
    result = apgd(spy, x, eps=0.1, steps=10, random_start=False)
    assert [p.item() for p in spy.points] == pytest.approx(expected, abs=1e-12)
    assert result.x_adv.item() == pytest.approx(0.540625, abs=1e-12)
    assert result.loss.item() == pytest.approx(-(0.000625**2), abs=1e-12)
    assert result.steps.tolist() == [10]


def test_the_first_of_equally_good_points_is_kept():
    # Flat from 0.55 on: a step of 0.06 arrives at 0.56, momentum drifts on to 0.575, 0.57875, ...
    spy = Spy(lambda z, index: z.clamp(max=0.55).flatten(1).sum(1))
    x = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
    result = apgd(spy, x, eps=0.1, steps=4, random_start=False, step_scale=0.6)
    assert spy.points[2].item() == pytest.approx(0.575, abs=1e-12)
    assert result.x_adv.item() == pytest.approx(0.56, abs=1e-12)


def test_checkpoints():
    # N = 100: stretches 22, 19, 16, 13, 10, 7, 6, 6, as in AutoAttack.
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    # N = 50: 11, then int(1.5) = 1 shorter each time; the next would be 51.
    assert checkpoints(50) == [11, 21, 30, 38, 45]
    # N = 20: 4, 3, 2, then 1 for ever.
    assert checkpoints(20) == [4, 7, 9, *range(10, 21)]
    assert checkpoints(10) == list(range(2, 11))
    assert checkpoints(1) == [1]


# --- promises ----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    norm=st.sampled_from(["Linf", "L2"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    eps=st.floats(1e-3, 2.0),
    steps=st.integers(1, 25),
    scale=st.floats(0.1, 3.0),
    random=st.booleans(),
    seed=st.integers(-(2**70), 2**70),
)
def test_ball_and_box_are_never_left_and_the_result_is_never_worse(norm, dtype, eps, steps, scale, random, seed):
    x = images(3, dtype=dtype)
    x[0] = x[0].round()  # corners of the box
    loss_fn = waves(3, dtype=dtype)
    spy = Spy(loss_fn)
    result = apgd(spy, x, eps=eps, steps=steps, norm=norm, random_start=random, step_scale=scale, seed=seed)
    ulp = torch.finfo(dtype).eps
    for point in [*spy.points, result.x_adv]:
        assert point.min() >= 0
        assert point.max() <= 1
        delta = (point.double() - x.double()).flatten(1)
        if norm == "Linf":
            assert delta.abs().max() <= eps + ulp * max(1, eps)
        else:
            # each of n values of point is rounded by up to ulp / 2
            assert delta.norm(dim=1).max() <= eps * (1 + 8 * ulp) + math.sqrt(delta.shape[1]) * ulp
    rows = list(range(3))
    visited = torch.stack([loss_fn(p, rows) for p in spy.points])
    assert torch.equal(result.loss, visited.amax(0))
    assert torch.equal(result.loss, loss_fn(result.x_adv, rows))
    assert (result.loss >= loss_fn(x, rows)).all()
    assert result.x_adv.dtype == result.loss.dtype == dtype
    assert result.steps.dtype == torch.long
    assert result.steps.tolist() == [steps] * 3
    assert not result.zero_grad.any()
    assert not result.succeeded.any()


def test_clean_image_wins_over_every_perturbation_when_it_is_the_maximum():
    x = images(2)
    result = apgd(lambda z, index: -((z - x[index]) ** 2).flatten(1).sum(1), x, eps=0.1, steps=7)
    assert torch.equal(result.x_adv, x)
    assert result.loss.tolist() == [0, 0]


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("with_success", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_do_not_see_their_batch(norm, with_success, dtype):
    count = 7
    x = images(count, dtype=dtype)
    loss_fn = waves(count, dtype=dtype)
    seeds = [11 * i for i in range(count)]

    def attack(rows):
        return apgd(
            lambda z, index: loss_fn(z, [rows[i] for i in index]),
            x[rows],
            eps=0.2,
            steps=40,
            norm=norm,
            restarts=2,
            seed=[seeds[r] for r in rows],
            success=(lambda z, index: loss_fn(z, [rows[i] for i in index]) > 20) if with_success else None,
        )

    whole = attack(list(range(count)))
    if with_success:
        assert 0 < whole.succeeded.sum() < count
    for rows in [*([i] for i in range(count)), [5, 0, 3]]:
        part = attack(rows)
        for name in ("x_adv", "loss", "steps", "zero_grad", "succeeded"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[rows]), (rows, name)


def test_l2_length_of_a_large_image_does_not_depend_on_its_batch():
    # On several threads torch splits the sum over one image and the sums over several images differently.
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        v = torch.randn(5, 3, 224, 224)
        whole = length(v, "L2")
        alone = torch.cat([length(v[i : i + 1], "L2") for i in range(5)])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(whole, alone)
    torch.testing.assert_close(whole.flatten().double(), v.double().flatten(1).norm(dim=1), rtol=1e-6, atol=0)


def test_what_holds_is_asked_ever_more_rarely_in_every_restart_and_each_sample_by_its_own_count():
    assert [n for n in range(101) if geometric_schedule(n)] == [1, 2, 3, 4, 6, 9, 13, 19, 28, 42, 63, 94]
    count, steps, asked = 5, 7, []

    def ask(x_adv, index):
        asked.extend(index)
        return x_adv.new_zeros(len(index), dtype=torch.bool)

    success = check_on(geometric_schedule, ask, count=count, steps=steps)
    result = apgd(waves(count), images(count), eps=0.1, steps=steps, restarts=2, seed=5, success=success, batch_size=2)
    assert sorted(asked) == sorted(2 * 5 * list(range(count)))  # after 1, 2, 3, 4 and 6 steps, twice
    assert not result.succeeded.any()
    assert result.steps.tolist() == [2 * steps] * count


def test_early_exit_follows_the_full_run_until_success():
    count, steps, bar = 6, 30, 20.0
    x = images(count)
    loss_fn = waves(count)
    full = Spy(loss_fn)
    apgd(full, x, eps=0.2, steps=steps, seed=5)
    iterates = full.points[1:]  # [0] is the clean image
    assert all(index == list(range(count)) for index in full.indices)
    first = []
    for i in range(count):
        hits = [n for n in range(steps + 1) if loss_fn(iterates[n][i : i + 1], [i]).item() > bar]
        first.append(hits[0] if hits else None)
    assert any(n is None for n in first)
    assert len({n for n in first if n is not None}) > 1

    asked = []

    def success(z, index):
        assert not z.requires_grad
        asked.append(list(index))
        return loss_fn(z, index) > bar

    exiting = Spy(loss_fn)
    result = apgd(exiting, x, eps=0.2, steps=steps, seed=5, success=success)
    uninterrupted = apgd(loss_fn, x, eps=0.2, steps=steps, seed=5)
    for i, n in enumerate(first):
        assert bool(result.succeeded[i]) == (n is not None)
        assert result.steps[i] == (steps if n is None else n)
        expected = uninterrupted.x_adv[i] if n is None else iterates[n][i]
        assert torch.equal(result.x_adv[i], expected)
        assert torch.equal(result.loss[i : i + 1], loss_fn(expected[None], [i]))
    live = [[i for i, n in enumerate(first) if n is None or n >= step] for step in range(steps + 1)]
    assert exiting.indices == [list(range(count)), *live]
    assert asked == live


def test_success_at_the_start_takes_no_step():
    x = images(3)
    spy = Spy(waves(3))
    result = apgd(
        spy, x, eps=0.1, steps=9, random_start=False, success=lambda z, index: torch.ones(len(index), dtype=torch.bool)
    )
    assert torch.equal(result.x_adv, x)
    assert result.steps.tolist() == [0, 0, 0]
    assert result.succeeded.all()
    assert not result.zero_grad.any()
    assert len(spy.points) == 1


def test_a_successful_iterate_is_kept_even_when_its_loss_is_low():
    # Success means "left of the start", the loss pulls to the right: the second restart's start may succeed.
    x = torch.full((8, 1, 1, 1), 0.5, dtype=torch.float64)

    def success(z, index):
        return (z < 0.5).flatten()

    result = apgd(lambda z, i: z.flatten(1).sum(1), x, eps=0.1, steps=3, restarts=2, success=success)
    assert result.succeeded.any()
    assert not result.succeeded.all()
    assert set(result.steps[result.succeeded].tolist()) == {0, 3}  # at once, or after one whole restart
    torch.testing.assert_close(result.x_adv.flatten(), torch.where(result.succeeded, 0.4, 0.6).double())
    assert torch.equal(result.loss, result.x_adv.flatten())


def test_restarts_never_hurt_and_sometimes_help():
    count = 6
    x = images(count)
    losses = [apgd(waves(count), x, eps=0.2, steps=15, restarts=r, seed=2) for r in (1, 2, 4)]
    assert (losses[1].loss >= losses[0].loss).all()
    assert (losses[2].loss >= losses[1].loss).all()
    assert (losses[2].loss > losses[0].loss).any()
    assert losses[2].steps.tolist() == [60] * count


def test_given_start_points_are_brought_into_the_ball_and_climbed_from():
    x = images(3)
    spy = Spy(waves(3))
    away = (x + 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)).clone()
    found = apgd(spy, x, eps=0.1, steps=6, random_start=False, start=away)
    clean, first = spy.points[:2]
    assert torch.equal(clean, x)  # it competes
    assert torch.equal(first, (torch.minimum(torch.maximum(away, x - 0.1), x + 0.1)).clamp(0, 1))
    assert bool((found.loss >= torch.maximum(waves(3)(x, [0, 1, 2]), waves(3)(first, [0, 1, 2]))).all())


def test_a_good_start_point_is_not_lost():
    x = images(4)
    best = apgd(waves(4), x, eps=0.1, steps=30, seed=1)
    again = apgd(waves(4), x, eps=0.1, steps=2, random_start=False, start=best.x_adv)
    assert bool((again.loss >= best.loss).all())


def test_seeds():
    x = images(4)
    loss_fn = waves(4)

    def run(seed):
        return apgd(loss_fn, x, eps=0.2, steps=5, seed=seed).x_adv

    assert torch.equal(run(7), run([7, 8, 9, 10]))
    assert torch.equal(run(7)[1], run([0, 8, 0, 0])[1])
    assert not torch.equal(run(7), run(8))


def test_vanishing_gradients_are_followed_and_zero_gradients_reported():
    x = torch.full((3, *SHAPE), 0.5)
    scale = torch.tensor([0.0, 1e-30, 1.0])  # 1e-30 squared is 0 in float32
    for norm in ("Linf", "L2"):
        result = apgd(
            lambda z, index: scale[index] * z.flatten(1).sum(1), x, eps=0.1, steps=4, norm=norm, seed=[1, 1, 1]
        )
        assert result.zero_grad.tolist() == [True, False, False]
        torch.testing.assert_close(result.x_adv[1], result.x_adv[2], rtol=0, atol=1e-6)
        assert (result.x_adv[1] > 0.51).all()


def test_what_is_not_finite_fails_alone_and_keeps_its_best_point():
    x = images(4)

    def nan_loss(z, index):
        bad = torch.tensor([i in (1, 3) for i in index])
        return torch.where(bad, torch.nan, 1.0) * z.flatten(1).sum(1)

    found = apgd(nan_loss, x, eps=0.1, steps=5, random_start=False)
    assert found.failed == [None, "loss is not finite at step 0", None, "loss is not finite at step 0"]
    assert torch.equal(found.x_adv[[1, 3]], x[[1, 3]])
    assert found.loss.isnan().tolist() == [False, True, False, True]
    assert found.steps.tolist() == [5, 0, 5, 0]
    alone = apgd(lambda z, index: z.flatten(1).sum(1), x, eps=0.1, steps=5, random_start=False)
    assert torch.equal(found.x_adv[[0, 2]], alone.x_adv[[0, 2]])
    assert apgd(nan_loss, x, eps=0.1, steps=5).failed[1] == "loss is not finite at the clean image"

    def infinite_slope(z, index):  # sqrt at 0
        return torch.sqrt((z - x[index]).abs()).flatten(1).sum(1) * torch.tensor([i == 2 for i in index])

    # nan * 0 as well: the root's slope is infinite for all of them
    reasons = apgd(infinite_slope, x, eps=0.1, random_start=False).failed
    assert reasons[2] == "gradient is not finite at step 0"

    calls = []

    def late(z, index):
        calls.append(index)
        return z.flatten(1).sum(1) * (torch.nan if len(calls) == 4 else 1.0)

    found = apgd(late, x[:1], eps=0.1)  # clean, start, step 1, step 2
    assert found.failed == ["loss is not finite at step 2"]
    assert found.steps.tolist() == [2]
    assert found.loss[0] > x[:1].sum()  # what step 1 had reached
    assert found.loss[0] == found.x_adv.sum()


def test_numbers_of_samples_are_the_callers_after_others_left():
    x = images(3)

    def loss_fn(z, index):
        return z.flatten(1).sum(1) * (torch.nan if index == [2] else 1.0)

    def success(z, index):
        return [i != 2 for i in index]

    found = apgd(loss_fn, x, eps=0.1, steps=3, random_start=False, success=success)
    assert found.failed == [None, None, "loss is not finite at step 1"]


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("restarts", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 6, 9])
def test_a_small_batch_gives_the_results_of_the_whole_one_and_stays_full(norm, restarts, batch_size):
    count, steps = 7, 12
    x = images(count)
    spy = Spy(waves(count))

    def success(z, index):  # some at once, some late, some never
        bar = torch.tensor([{4: -torch.inf, 2: torch.inf}.get(i, 12.0) for i in index])
        return waves(count)(z, index) > bar

    def attack(loss_fn, size):
        return apgd(
            loss_fn, x, eps=0.3, steps=steps, norm=norm, restarts=restarts, seed=3, success=success, batch_size=size
        )

    whole, pieces = attack(waves(count), None), attack(spy, batch_size)
    assert 1 < whole.succeeded.sum() < count
    for name in ("x_adv", "loss", "steps", "zero_grad", "succeeded"):
        assert torch.equal(getattr(pieces, name), getattr(whole, name)), name
    assert pieces.failed == whole.failed
    clean = -(-count // min(batch_size, count))
    widths = [len(index) for index in spy.indices[clean:]]
    assert max(widths) == min(batch_size, count)
    # the batch shrinks only when nobody waits any more
    assert widths == sorted(widths, reverse=True)
    full = spy.indices[clean : clean + widths.count(widths[0])]
    assert {i for index in full for i in index} == set(range(count))


@pytest.mark.parametrize("workers", [2, 3, 9])
def test_workers_give_the_results_of_one(workers):
    count = 7
    x = images(count)
    threads = torch.get_num_threads()
    seen = set()

    def loss_fn(z, index):
        seen.add((threading.get_ident(), torch.get_num_threads()))
        value = waves(count)(z, index)
        return torch.where((value > 10) & torch.tensor([i == 3 for i in index]), torch.nan, value)

    def success(z, index):
        return (waves(count)(z, index) > 12) & torch.tensor([i % 2 == 0 for i in index])

    def attack(**more):
        return apgd(loss_fn, x, eps=0.3, steps=10, restarts=2, seed=[9, 8, 7, 6, 5, 4, 3], success=success, **more)

    whole, shared = attack(), attack(workers=workers)
    for name in ("x_adv", "loss", "steps", "zero_grad", "succeeded"):
        assert torch.equal(getattr(shared, name).nan_to_num(), getattr(whole, name).nan_to_num()), name
    assert shared.failed == whole.failed
    assert shared.failed[3] is not None
    # a thread may take a second part where its first was over at once
    assert 1 < len({thread for thread, _ in seen}) <= 1 + min(workers, count)
    assert {number for thread, number in seen if thread != threading.get_ident()} == {
        max(1, threads // min(workers, count))
    }
    assert torch.get_num_threads() == threads


def test_one_workers_failure_ends_all_and_gives_the_threads_back():
    x = images(4)
    threads = torch.get_num_threads()
    calls = []

    def loss_fn(z, index):
        calls.append(index)
        if 3 in index and len(calls) > 20:
            raise RuntimeError("out of something")
        return z.flatten(1).sum(1)

    with pytest.raises(RuntimeError, match="out of something"):
        apgd(loss_fn, x, eps=0.1, steps=100_000, workers=2)
    assert torch.get_num_threads() == threads
    assert len(calls) < 10_000
    assert not [t for t in threading.enumerate() if t.name.startswith("attack")]


def test_workers_need_enough_samples_and_cores():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        assert [cpu_workers(n) for n in (1, 15, 16, 24, 500)] == [1, 1, 2, 3, 4]
        torch.set_num_threads(1)
        assert cpu_workers(500) == 1
    finally:
        torch.set_num_threads(threads)


def test_leaves_no_trace_on_model_and_input():
    model = torch.nn.Linear(48, 1)
    x = images(2, dtype=torch.float32).requires_grad_()
    before = x.detach().clone()
    with torch.no_grad():  # the attack turns gradients on for itself
        result = apgd(lambda z, index: model(z.flatten(1))[:, 0], x, eps=0.1, steps=3)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert x.grad is None
    assert torch.equal(x, before)
    assert not result.x_adv.requires_grad
    assert not result.loss.requires_grad


def test_half_precision_losses_are_kept_in_the_dtype_of_x():
    x = images(2, dtype=torch.float32)
    result = apgd(lambda z, index: z.half().flatten(1).sum(1), x, eps=0.1, steps=3)
    assert result.loss.dtype == torch.float32
    torch.testing.assert_close(result.x_adv, (x + 0.1).clamp(max=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": 0}, "eps must be"),
        ({"eps": -0.1}, "eps must be"),
        ({"eps": math.nan}, "eps must be"),
        ({"eps": math.inf}, "eps must be"),
        ({"eps": "4/255"}, "eps must be"),
        ({"norm": "L1"}, "norm must be one of Linf, L2"),
        ({"steps": 0}, "steps must be"),
        ({"steps": 2.5}, "steps must be"),
        ({"restarts": 0}, "restarts must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"workers": 0}, "workers must be"),
        ({"batch_size": 1.5}, "batch_size must be"),
        ({"restarts": 2, "random_start": False}, "restarts > 1"),
        ({"start": torch.zeros(2, *SHAPE)}, "exclude each other"),
        ({"start": torch.zeros(1, *SHAPE), "random_start": False}, "shaped as x"),
        ({"start": torch.full((2, *SHAPE), math.nan), "random_start": False}, "start must be finite"),
        ({"step_scale": 0.0}, "step_scale must be"),
        ({"seed": [1]}, "one int per sample"),
        ({"seed": 1.5}, "seed must be"),
        ({"seed": [1, 2.5]}, "seed must be"),
        ({"x": torch.full((2, *SHAPE), 1.01)}, r"\[0, 1\]"),
        ({"x": torch.full((2, *SHAPE), -0.01)}, r"\[0, 1\]"),
        ({"x": torch.full((2, *SHAPE), math.nan)}, r"\[0, 1\]"),
        ({"x": torch.zeros(SHAPE)}, r"\[B, C, H, W\]"),
        ({"x": torch.zeros(0, *SHAPE)}, "non-empty"),
        ({"x": torch.zeros(2, *SHAPE, dtype=torch.uint8)}, "float32 or float64"),
        ({"x": torch.zeros(2, *SHAPE, dtype=torch.float16)}, "float32 or float64"),
        ({"x": [[0.5]]}, "float32 or float64"),
        ({"loss_fn": lambda z, index: z.sum()}, "one loss per sample"),
        ({"loss_fn": lambda z, index: [0.0, 0.0]}, "one loss per sample"),
        ({"loss_fn": lambda z, index: z.detach().flatten(1).sum(1)}, "no gradient path"),
        ({"loss_fn": lambda z, index: torch.ones(2, requires_grad=True) * 2}, "no gradient path"),
        ({"success": lambda z, index: torch.ones(3, dtype=torch.bool)}, "success must return"),
        ({"success": lambda z, index: torch.ones(2)}, "success must return"),
    ],
)
def test_bad_arguments_are_named_in_one_line(change, message):
    arguments = {"loss_fn": lambda z, index: z.flatten(1).sum(1), "x": torch.zeros(2, *SHAPE), "eps": 0.1}
    with pytest.raises(ValueError, match=message) as caught:
        apgd(**{**arguments, **change})
    assert "\n" not in str(caught.value)
