"""Random resize and pad: what a draw makes of an image, whatever else is in the batch, and how it is attacked."""

import pytest
import torch

from lvlm_radapt import load_model
from lvlm_radapt.defences.random_resize import RandomResize
from lvlm_radapt.embedded.scenes import render, sample_scene
from lvlm_radapt.utils.errors import UserError


def test_an_image_is_shrunk_and_put_somewhere_on_its_own_canvas() -> None:
    white = torch.ones(200, 3, 40, 60)
    made = RandomResize(smallest=0.5).pixels(white, range(200))
    assert made.shape == white.shape
    places = set()
    for image in made:
        rows, columns = (image[0] > 0.99).any(1).nonzero().flatten(), (image[0] > 0.99).any(0).nonzero().flatten()
        top, left = int(rows[0]), int(columns[0])
        high, wide = int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left
        assert 20 <= high <= 40
        assert 30 <= wide <= 60
        assert abs(high / 40 - wide / 60) < 0.03  # one share for both sides
        assert float((image > 0.99).float().mean()) == pytest.approx(high * wide / 2400)  # the rest is ground
        places.add((high, top, left))
    assert len(places) > 150
    assert {high for high, _, _ in places} == set(range(20, 41))  # every size from the smallest to the whole
    assert any(top + high == 40 and high < 40 for high, top, _ in places)  # down to the edge


def test_the_ground_has_the_value_that_was_asked_for() -> None:
    made = RandomResize(smallest=0.1, fill=0.5).pixels(torch.zeros(50, 3, 16, 16), range(50))
    assert set(made.unique().tolist()) == {0.0, 0.5}


def test_a_draw_belongs_to_the_image_and_its_seed_alone() -> None:
    x = torch.rand(5, 3, 32, 32)
    defence = RandomResize()
    together = defence.pixels(x, [7, 1, 2, 3, 4])
    alone = [defence.pixels(x[i : i + 1], [seed]) for i, seed in enumerate([7, 1, 2, 3, 4])]
    assert torch.equal(together, torch.cat(alone))
    assert not torch.equal(together, defence.pixels(x, [8, 9, 10, 11, 12]))


def test_a_model_draws_by_the_images_seeds() -> None:
    model = load_model("tiny-llava")
    batch = model.pixels([render(sample_scene("test", 0, 1))] * 3)
    RandomResize(smallest=0.6).attach(model)
    seen = model.pixel_values(batch.with_seeds([5, 6, 5]))
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[1], model.pixel_values(batch.with_seeds([5, 6, 5])[1])[0])


def test_the_gradient_is_exact() -> None:
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda images: RandomResize(smallest=0.7).seen(images, [3, 4]), (x,))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"smallest": 1}, "smallest is 1: give a share"),
        ({"smallest": 0.0}, "smallest is 0.0: give a share"),
        ({"smallest": float("nan")}, "smallest is nan"),
        ({"smallest": "half"}, "smallest is 'half'"),
        ({"fill": 1.5}, "fill is 1.5: give a value from 0 to 1"),
        ({"fill": True}, "fill is True"),
    ],
)
def test_settings_out_of_range(settings: dict[str, object], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        RandomResize(**settings)  # type: ignore[arg-type]
