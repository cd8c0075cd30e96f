"""What stands in the axes is what was given: numbers, bands, places, pixels."""

import subprocess
import sys
from functools import partial

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.figure import Figure
from PIL import Image

from eval_tasks.metrics import bootstrap_ci
from lvlm_radapt import plot
from lvlm_radapt.plots.images import DIFFERENCE_GAIN
from lvlm_radapt.utils.errors import UserError
from tests.helpers.run_folders import CLEAN, RADAPT, Maker, attack, spread

matplotlib.use("Agg")


@pytest.fixture
def ax():
    return Figure().add_subplot()


@pytest.fixture
def make(tmp_path):
    return Maker(tmp_path)


def lines(axes):
    return {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}


def band(axes, place):
    """The corners of a band as a set of points."""
    return {tuple(point) for point in axes.collections[place].get_paths()[0].vertices.tolist()}


def test_scores_against_eps_are_the_runs_means_with_their_intervals_and_eps_0_is_clean(make, ax):
    stock = {levels: spread(60 - levels, levels) for levels in (2, 4)}
    own = {levels: spread(80 - levels, 10 + levels) for levels in (2, 4)}
    shown = {levels: spread(95 - levels, 20 + levels) for levels in (2, 4)}
    runs = [make(stock[levels], attacked=attack(levels=levels)) for levels in (2, 4)]
    runs += [make(own[levels], RADAPT, attack(levels=levels)) for levels in (2, 4)]
    runs += [make(shown[levels], RADAPT, attack("transfer", levels=levels)) for levels in (2, 4)]
    assert plot.score_against_eps(*(run.path for run in runs), ax=ax) is ax

    def expected(scores):
        return [[levels / 255, pytest.approx(np.mean(scores.get(levels, CLEAN)))] for levels in (0, 2, 4)]

    assert lines(ax) == {
        "tiny-llava, adaptive": expected(stock),
        "tiny-llava + R-Adapt, transfer": expected(shown),
        "tiny-llava + R-Adapt, adaptive": expected(own),
    }
    interval = bootstrap_ci(shown[4])
    assert {(4 / 255, interval.low), (4 / 255, interval.high)} <= band(ax, 1)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0", "2/255", "4/255"]
    assert ax.get_ylabel() == "CIDEr x100"
    assert ax.get_title() == "coco, e2e Linf, 10 steps, n = 24"
    styles = {line.get_label(): line.get_linestyle() for line in ax.get_lines()}
    assert {style for label, style in styles.items() if label.endswith("transfer")} == {"--"}
    assert {style for label, style in styles.items() if label.endswith("adaptive")} == {"-"}
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list(lines(ax))


def test_two_defences_of_one_model_keep_their_settings_in_the_legend(make, ax):
    runs = [make(spread(50, 1), {**RADAPT, "cutoff": cutoff}, attack()) for cutoff in (20.0, 40.0)]
    plot.score_against_eps(*runs, ax=ax)
    assert [label.split("(")[1][:9] for label in lines(ax)] == ["cutoff 20", "cutoff 40"]


def test_runs_that_should_not_share_a_picture_are_refused_in_one_line(make, ax, tmp_path):
    one = make(spread(50, 1), attacked=attack())
    for other in (
        make(spread(50, 1), attacked=attack(steps=20)),
        make(spread(50, 1), attacked=attack(), asked="vqav2"),
        make(spread(50, 1), attacked=attack(), preset="fare"),
        make(spread(50, 1), attacked=attack(), clean=CLEAN[:6]),
    ):
        with pytest.raises(UserError, match="share a picture") as error:
            plot.score_against_eps(one, other, ax=ax)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="nothing to draw"):
        plot.score_against_eps(make(None), ax=ax)
    with pytest.raises(UserError, match="runs"):
        plot.score_against_eps(tmp_path / "absent", ax=ax)


ROWS = [
    {"step": "none", "clean": 90.0, "clean_low": 88.0, "clean_high": 92.0, "transfer": 50.0, "adaptive": 5.0},
    {"step": "embedding", "clean": 85.0, "transfer": 60.0, "adaptive": None},
    {"step": "block1", "clean": 80.0, "transfer": 70.0, "adaptive": 30.0, "adaptive_low": 20, "adaptive_high": 45},
]


def test_replacement_curve_keeps_the_order_of_the_rows_and_leaves_out_what_was_not_measured(ax):
    plot.replacement_curve(ROWS, ax)
    assert lines(ax) == {
        "clean": [[0, 90], [1, 85], [2, 80]],
        "transfer": [[0, 50], [1, 60], [2, 70]],
        "adaptive": [[0, 5], [2, 30]],
    }
    assert {(0, 88), (0, 92), (1, 85)} <= band(ax, 0)
    assert {(2, 20), (2, 45), (0, 5)} <= band(ax, 2)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["none", "embedding", "block1"]
    assert ax.get_ylim()[0] == 0


def setting(name, cutoff, clean, adaptive):
    def cell(value):
        return {"value": value, "low": value - 5, "high": value + 4}

    scores = {"clean": cell(clean), "transfer": cell(adaptive + 20), "adaptive": cell(adaptive)}
    return {"name": name, "cutoff": cutoff, "alpha": 1.0, "mix": "interpolate", **scores}


def test_settings_are_drawn_over_their_knob_and_against_each_other(ax):
    rows = [setting("b", 40.0, 80.0, 30.0), setting("a", 20.0, 60.0, 35.0)]
    plot.clean_robust_curves(rows, ax)
    assert lines(ax)["adaptive"] == [[20, 35], [40, 30]]
    assert {(20, 30), (20, 39)} <= band(ax, 2)
    other = plot.tradeoff(rows, Figure().add_subplot(), undefended=setting("none", None, 90.0, 10.0))
    dots = {tuple(point) for dots in other.collections for point in dots.get_offsets().tolist()}
    assert {(80.0, 30.0), (60.0, 35.0), (90.0, 10.0)} <= dots


@pytest.mark.parametrize(
    ("draw", "rows", "said"),
    [
        (plot.replacement_curve, [], "no rows"),
        (plot.replacement_curve, [{"clean": 1.0}], "step"),
        (plot.replacement_curve, [{"step": "none", "robust": 1.0}], "hold no scores"),
        (plot.replacement_curve, [{"step": "none", "clean": float("nan")}], "finite"),
        (plot.replacement_curve, [{"step": "none", "clean": 1.0, "clean_low": "no"}], "finite"),
        (plot.clean_robust_curves, [], "no settings"),
        (partial(plot.tradeoff, undefended={}), [], "no settings"),
    ],
)
def test_rows_that_cannot_be_drawn_are_told_in_one_line(ax, draw, rows, said):
    with pytest.raises(UserError, match=said) as error:
        draw(rows, ax)
    assert "\n" not in str(error.value)


@settings(deadline=None, max_examples=20)
@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))), st.integers(0, 2**32 - 1))
def test_a_triplet_holds_both_images_and_their_difference_at_equal_size(before, seed):
    after = np.random.default_rng(seed).integers(0, 256, before.shape, dtype=np.uint8)
    axes = plot.sample_triplet(before, after, Figure().add_subplot())
    first, second, third = axes.get_images()
    assert (np.asarray(first.get_array()) == before).all()
    assert (np.asarray(second.get_array()) == after).all()
    y, x = np.random.default_rng(seed).integers(0, before.shape[:2])
    for channel in range(3):
        wanted = 128 + DIFFERENCE_GAIN * (int(after[y, x, channel]) - int(before[y, x, channel]))
        assert np.asarray(third.get_array())[y, x, channel] == min(max(wanted, 0), 255)
    extents = [image.get_extent() for image in axes.get_images()]
    assert {(right - left, low) for left, right, low, _ in extents} == {(before.shape[1], before.shape[0])}
    assert extents[0][1] < extents[1][0] < extents[1][1] < extents[2][0]


def test_pixels_are_read_from_pil_arrays_and_tensors_alike(ax):
    levels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    tensor = torch.from_numpy(levels).permute(2, 0, 1).float() / 255  # as PixelBatch.x[0]
    for image in (levels, Image.fromarray(levels), tensor, levels / 255.0):
        axes = plot.sample_triplet(image, levels, Figure().add_subplot())
        assert (np.asarray(axes.get_images()[0].get_array()) == levels).all()
        assert (np.asarray(axes.get_images()[2].get_array()) == 128).all()
    for bad, said in (
        (levels[..., 0], "must be"),
        (levels.astype(np.int64), "uint8"),
        (levels / 255.0 - 1, "uint8"),
        (np.full((4, 6, 3), np.nan), "uint8"),
        (levels[:, :3], "differ in size"),
    ):
        with pytest.raises(UserError, match=said):
            plot.sample_triplet(bad, levels, ax)


def test_attention_lies_on_its_patches_and_its_largest_weight_is_1(ax):
    image, weights = np.zeros((8, 12, 3), np.uint8), np.arange(6.0).reshape(2, 3)
    plot.attention_map(image, weights, ax)
    under, over = ax.get_images()
    assert (np.asarray(over.get_array()) == weights / 5).all()
    assert tuple(over.get_extent()) == tuple(under.get_extent()) == (0, 12, 8, 0)
    assert over.get_clim() == (0, 1)
    for bad in (np.ones(4), np.zeros((2, 2)), -np.ones((2, 2)), np.full((2, 2), np.inf), np.empty((0, 2))):
        with pytest.raises(UserError, match="grid"):
            plot.attention_map(image, bad, ax)


def test_cka_is_drawn_from_0_to_1_with_the_first_layers_below(ax):
    matrix = np.array([[1.0, 0.2, 0.1], [0.3, 0.9, 0.4]])
    plot.cka_heatmap(matrix, ax, x_label="FARE", y_label="CLIP")
    (shown,) = ax.get_images()
    assert (np.asarray(shown.get_array()) == matrix).all()
    assert shown.get_clim() == (0, 1)
    assert shown.origin == "lower"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("FARE", "CLIP")
    for bad, said in ((np.ones(3), "rows"), (2 * matrix, r"\[0, 1\]"), (matrix * np.nan, "finite")):
        with pytest.raises(UserError, match=said):
            plot.cka_heatmap(bad, ax)


@pytest.mark.parametrize("size", [7, 8])
def test_a_spectrum_has_its_zero_frequency_at_zero_and_symmetric_colours(ax, size):
    wave = np.cos(2 * np.pi * 2 * np.arange(size) / size)  # two cycles along x
    spectrum = np.fft.fftshift(np.abs(np.fft.fft2(np.tile(wave, (size, 1)))))
    plot.spectral_shift(spectrum, ax)
    (shown,) = ax.get_images()
    assert shown.get_clim() == (-spectrum.max(), spectrum.max())
    left, right, bottom, top = shown.get_extent()
    row, column = np.unravel_index(spectrum.argmax(), spectrum.shape)
    assert abs(left + (column + 0.5) * (right - left) / size) == pytest.approx(2)
    assert bottom + (row + 0.5) * (top - bottom) / size == pytest.approx(0)
    plot.spectral_shift(np.zeros((3, 3)), ax)
    with pytest.raises(UserError, match="spectral shift map"):
        plot.spectral_shift(np.ones(3), ax)


def test_without_axes_a_pyplot_figure_is_made_which_notebooks_show():
    from matplotlib import pyplot

    pyplot.close("all")
    axes = plot.cka_heatmap(np.eye(2))
    assert pyplot.figure(pyplot.get_fignums()[0]) is axes.figure
    pyplot.close("all")


def test_every_public_function_is_in_the_list_and_the_drawing_itself_knows_no_runs():
    assert all(callable(getattr(plot, name)) for name in plot.__all__)
    code = "import sys, lvlm_radapt.plots.curves, lvlm_radapt.plots.images, lvlm_radapt.plots.matrices; "
    code += "print([name for name in sys.modules if name.split('.')[0] in ('eval_tasks', 'attacks', 'torch')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
