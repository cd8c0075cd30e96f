"""The Gaussian filter against its definition in the frequency domain, and against plain convolution."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lvlm_radapt.defences.radapt.modules import AnchorMix, GaussianFilter, response, taps

SIZES = [(32, 32), (112, 112), (224, 224), (336, 336), (84, 196), (33, 50)]
CUTOFFS = [10.0, 30.0, 40.0, 60.0]


def gaussian_h(frequency: float, cutoff: float, side: int, unit: str) -> float:
    """H along an axis, from the definition: D in cycles per 224 px or per side; frequency per px."""
    distance = frequency * (224.0 if unit == "px224" else side)
    return math.exp(-distance * distance / (2.0 * cutoff * cutoff))


@pytest.mark.parametrize("unit", ["px224", "image"])
@pytest.mark.parametrize("cutoff", CUTOFFS)
@pytest.mark.parametrize("size", SIZES)
def test_reflected_cosines_are_scaled_by_h(size: tuple[int, int], cutoff: float, unit: str) -> None:
    # cos(pi k x / (n - 1)) goes on unchanged past a mirror at either edge pixel: an eigenfunction of any
    # symmetric filter under that boundary, so the measured factor is the response, with no border effect
    height, width = size
    low_pass = GaussianFilter(cutoff, unit)
    for share_y, share_x in [(0, 0), (0, 1), (1, 0), (1, 1), (0.1, 0.03), (0.25, 0.5), (0.75, 0.9), (0.4, 0.4)]:
        k, m = round(share_y * (height - 1)), round(share_x * (width - 1))
        wave_y = torch.cos(math.pi * k * torch.arange(height, dtype=torch.float64) / (height - 1))
        wave_x = torch.cos(math.pi * m * torch.arange(width, dtype=torch.float64) / (width - 1))
        image = torch.outer(wave_y, wave_x).float()
        expected = gaussian_h(k / (2 * (height - 1)), cutoff, height, unit) * gaussian_h(
            m / (2 * (width - 1)), cutoff, width, unit
        )
        measured = low_pass(image[None])[0]
        assert (measured - expected * image).abs().max() < 5e-6, (k, m)


def shifted_spectrum_filter(image: Tensor, cutoff: float, unit: str) -> Tensor:
    """The paper's filter word by word: FFT, shift, multiply by H of the distance from the centre, back."""
    height, width = image.shape[-2:]
    v = torch.arange(height, dtype=torch.float64) - height // 2
    u = torch.arange(width, dtype=torch.float64) - width // 2
    if unit == "px224":
        v, u = v * 224 / height, u * 224 / width
    distance = torch.sqrt(v[:, None] ** 2 + u[None, :] ** 2)
    h = torch.exp(-(distance**2) / (2 * cutoff**2))
    spectrum = torch.fft.fftshift(torch.fft.fft2(image.double()), dim=(-2, -1)) * h
    return torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(-2, -1))).real


@pytest.mark.parametrize("unit", ["px224", "image"])
@pytest.mark.parametrize("cutoff", CUTOFFS)
@pytest.mark.parametrize("size", [(32, 32), (224, 224), (84, 196), (33, 50), (1, 7), (2, 3)])
def test_periodic_form_is_the_product_in_fourier_space(size: tuple[int, int], cutoff: float, unit: str) -> None:
    image = torch.rand(2, 3, *size)
    ours = GaussianFilter(cutoff, unit, "periodic")(image)
    assert (ours - shifted_spectrum_filter(image, cutoff, unit)).abs().max() < 2e-6


@pytest.mark.parametrize("boundary", ["reflect", "periodic"])
@pytest.mark.parametrize("side", [1, 2, 3, 17, 32, 112, 224, 336, 513, 700])
def test_taps(side: int, boundary: str) -> None:
    frequencies = torch.linspace(0, 0.5, 997, dtype=torch.float64)
    for cutoff in (*CUTOFFS, 79.0, 300.0):
        kernel = taps(cutoff, side, boundary=boundary)
        reach = len(kernel) // 2
        assert len(kernel) == 2 * reach + 1
        assert kernel.dtype == torch.float64
        assert abs(kernel.sum().item() - 1) < 1e-12
        assert torch.equal(kernel, kernel.flip(0))
        phases = 2 * math.pi * frequencies[:, None] * torch.arange(-reach, reach + 1)
        measured = (torch.cos(phases) * kernel).sum(1)
        expected = torch.tensor([gaussian_h(f, cutoff, side, "px224") for f in frequencies.tolist()])
        assert (measured - expected).abs().max() < 1e-3
        assert torch.allclose(response(frequencies, cutoff, side), expected.double(), atol=1e-7)


def test_taps_are_not_a_sampled_gaussian() -> None:
    # sigma = 224 / (2 pi 40) px: sampled and normalised, it passes twice as much at the Nyquist frequency
    sigma = 224 / (2 * math.pi * 40)
    positions = torch.arange(-20, 21, dtype=torch.float64)
    sampled = torch.exp(-(positions**2) / (2 * sigma**2))
    sampled /= sampled.sum()
    signs = (-1.0) ** positions.abs()
    nyquist = gaussian_h(0.5, 40, 224, "px224")
    assert (sampled * signs).sum() > 1.9 * nyquist
    kernel = taps(40, 224)
    signs = (-1.0) ** torch.arange(-(len(kernel) // 2), len(kernel) // 2 + 1).abs()
    assert abs((kernel * signs).sum().item() - nyquist) < 2e-4


@pytest.mark.parametrize(("boundary", "pad"), [("reflect", "reflect"), ("periodic", "wrap")])
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (2, 5), (9, 4), (40, 31)])
def test_equals_padding_and_convolving(size: tuple[int, int], boundary: str, pad: str) -> None:
    image = np.random.default_rng(0).random(size)
    expected = image
    for axis in (0, 1):
        kernel = taps(40, size[axis], boundary=boundary).numpy()
        reach = len(kernel) // 2
        widths = [(0, 0), (0, 0)]
        widths[axis] = (reach, reach)
        padded = np.pad(expected, widths, mode=pad)  # type: ignore[call-overload]
        expected = np.apply_along_axis(lambda line, k=kernel: np.convolve(line, k, "valid"), axis, padded)
    ours = GaussianFilter(40, boundary=boundary)(torch.from_numpy(image)[None])[0]
    assert ours.dtype == torch.float64
    assert np.abs(ours.numpy() - expected).max() < 1e-12


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 80),
    width=st.integers(1, 80),
    cutoff=st.floats(0.5, 500),
    unit=st.sampled_from(["px224", "image"]),
    boundary=st.sampled_from(["reflect", "periodic"]),
    level=st.floats(-3, 3),
)
def test_constant_images_stay(height: int, width: int, cutoff: float, unit: str, boundary: str, level: float) -> None:
    low_pass = GaussianFilter(cutoff, unit, boundary)
    exact = torch.full((2, 3, height, width), level, dtype=torch.float64)
    assert (low_pass(exact) - exact).abs().max() <= 1e-12 * max(1, abs(level))
    # float32: each pass rounds once a tap
    image = exact.float()
    rounding = torch.finfo(torch.float32).eps * (height + width) / 2
    assert (low_pass(image) - image).abs().max() <= max(1e-6, rounding) * max(1, abs(level))


def test_units_agree_at_224_and_differ_elsewhere() -> None:
    for side, same in ((224, True), (112, False)):
        image = torch.rand(1, side, side)
        difference = (GaussianFilter(30, "px224")(image) - GaussianFilter(30, "image")(image)).abs().max()
        assert bool(difference < 1e-7) is same


def test_each_image_and_channel_alone() -> None:
    images = torch.rand(2, 3, 30, 20)
    low_pass = GaussianFilter(20)
    together = low_pass(images)
    for b in range(2):
        for c in range(3):
            assert torch.allclose(together[b, c], low_pass(images[b, c]), atol=1e-6)


def test_half_precision_is_filtered_in_float32() -> None:
    image = torch.rand(3, 40, 40).bfloat16()
    low_pass = GaussianFilter(40)
    expected = low_pass(image.float()).bfloat16()
    assert torch.equal(low_pass(image), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(low_pass(image), expected)
        assert torch.equal(low_pass(image.float()), low_pass(image.float()))
        inside = low_pass(image.float())
    assert inside.dtype == torch.float32
    assert torch.equal(inside, low_pass(image.float()))


def test_gradients_after_a_first_use_in_inference_mode() -> None:
    low_pass = GaussianFilter(37.25)  # a cutoff no other test has put in the cache
    with torch.inference_mode():
        low_pass(torch.rand(3, 21, 22))
    image = torch.rand(3, 21, 22, requires_grad=True)
    low_pass(image).square().sum().backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0


def test_built_under_a_meta_device_it_filters_all_the_same() -> None:
    image = torch.rand(3, 19, 23)
    with torch.device("meta"):
        low_pass = GaussianFilter(36.5)
        inside = low_pass(image)
    assert torch.equal(inside, GaussianFilter(36.5)(image))
    assert low_pass.state_dict() == {}


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_graph_break(dynamic: bool) -> None:
    torch._dynamo.reset()
    low_pass = GaussianFilter(40)
    compiled = torch.compile(low_pass, backend="eager", fullgraph=True, dynamic=dynamic)
    for height, width in ((20, 30), (24, 30), (20, 30)):
        image = torch.rand(1, 3, height, width)
        assert torch.equal(compiled(image), low_pass(image))


@pytest.mark.parametrize("mix", ["interpolate", "add"])
@pytest.mark.parametrize("boundary", ["reflect", "periodic"])
def test_gradients_through_filter_and_mix_against_finite_differences(boundary: str, mix: str) -> None:
    low_pass = GaussianFilter(25, boundary=boundary)
    mixer = AnchorMix(torch.randn(7, 6, dtype=torch.float64), 0.7, mix)

    def chain(image: Tensor, anchor: Tensor) -> Tensor:
        return mixer(low_pass(image).tanh(), anchor).square()

    image = torch.randn(2, 7, 6, dtype=torch.float64, requires_grad=True)
    anchor = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(chain, (image, anchor))
    direction = torch.randn_like(image)
    step = 1e-6
    with torch.no_grad():
        numeric = (chain(image + step * direction, anchor) - chain(image - step * direction, anchor)).sum() / (2 * step)
    (gradient,) = torch.autograd.grad(chain(image, anchor).sum(), image)
    assert abs((gradient * direction).sum() - numeric) < 1e-6 * max(1.0, abs(numeric.item()))


@pytest.mark.parametrize("mix", ["interpolate", "add"])
@pytest.mark.parametrize("alpha", [-0.5, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("rows", [1, 5])
def test_mix_by_hand(rows: int, alpha: float, mix: str) -> None:
    anchor = torch.randn(rows, 4)
    r = torch.randn(3, 5, 4)
    out = AnchorMix(anchor, alpha, mix)(r)
    for b in range(3):
        for t in range(5):
            for d in range(4):
                value, a = r[b, t, d].item(), anchor[min(t, rows - 1), d].item()
                expected = (1 - alpha) * value + alpha * a if mix == "interpolate" else value + alpha * a
                assert abs(out[b, t, d].item() - expected) < 1e-5
    assert AnchorMix(anchor, alpha, mix)(r.bfloat16()).dtype == torch.bfloat16


def test_mix_of_alpha_zero_is_its_input() -> None:
    r = torch.randn(2, 5, 4)
    assert AnchorMix(torch.randn(5, 4), 0.0)(r) is r


def test_the_modules_refuse_what_does_not_fit() -> None:
    for bad in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="cutoff"):
            GaussianFilter(bad)
    with pytest.raises(ValueError, match="unit"):
        GaussianFilter(40, "px")
    with pytest.raises(ValueError, match="boundary"):
        GaussianFilter(40, boundary="zeros")
    with pytest.raises(ValueError, match="floating point"):
        GaussianFilter(40)(torch.zeros(3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="floating point"):
        AnchorMix(torch.zeros(4), 1.0)
    with pytest.raises(ValueError, match="alpha"):
        AnchorMix(torch.zeros(1, 4), math.nan)
    with pytest.raises(ValueError, match="mix"):
        AnchorMix(torch.zeros(1, 4), 1.0, "replace")
    with pytest.raises(ValueError, match="as many rows as tokens"):
        AnchorMix(torch.zeros(3, 4), 1.0)(torch.zeros(2, 5, 4))
