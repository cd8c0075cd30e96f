"""eps as users write it."""

import contextlib
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attacks.eight_bit import from_8bit, to_8bit
from attacks.eps import budget_text, eps_8bit, eps_text
from attacks.norms import Norm
from eval_tasks.crafting.make_attack import make_attack
from eval_tasks.crafting.noise import Noise
from lvlm_radapt.chat.commands import parse
from lvlm_radapt.utils.budget import parse_eps
from lvlm_radapt.utils.errors import UserError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4/255", 4 / 255),
        (" 8 / 255 ", 8 / 255),
        ("0.0157", 0.0157),
        (".5", 0.5),
        ("1", 1.0),
        ("1e-2", 0.01),
        ("255/255", 1.0),
        ("0.5/255", 0.5 / 255),
    ],
)
def test_reads_fractions_and_decimals(text: str, value: float) -> None:
    assert parse_eps(text) == value


BAD = ["4", "0", "0/255", "-4/255", "4/-255", "1.0001", "256/255", "4/0", "nan", "inf", "", " ", "4/255/2"]
BAD += ["4 255", "four", "٤/255", "1e-999", "1e999", "1e999/1e999", "4/255;", "0x1", "1_0/255", "4/255\n8/255"]


@pytest.mark.parametrize("text", [*BAD, "9" * 5000])
def test_refuses_what_is_no_budget_on_one_line(text: str) -> None:
    with pytest.raises(UserError, match="write 4/255") as caught:
        parse_eps(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(("text", "value"), [("2", 2.0), ("0.5", 0.5), ("128/255", 128 / 255), ("1e2", 100.0)])
def test_an_l2_budget_is_a_length(text: str, value: float) -> None:
    assert parse_eps(text, "L2") == value
    assert eps_text(value, "L2") == repr(value)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "1e9", ""])
def test_an_l2_budget_that_is_no_length_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"write 2\.0"):
        parse_eps(text, "L2")


@given(st.integers(1, 255))
def test_whole_levels_come_back_as_fractions(level: int) -> None:
    assert eps_text(level / 255) == f"{level}/255"
    assert parse_eps(f"{level}/255") == level / 255
    # 3 * (1 / 255) is not the same float as 3 / 255.
    assert eps_text(level * (1 / 255)) == f"{level}/255"


@given(st.floats(0, 1, exclude_min=True, allow_subnormal=True))
def test_any_budget_reads_back(eps: float) -> None:
    assert math.isclose(parse_eps(eps_text(eps)), eps, rel_tol=1e-12)


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_fractions_agree_with_exact_arithmetic(over: int, under: int) -> None:
    text = f"{over}/{under}"
    if Fraction(over, under) <= 1:
        assert parse_eps(text) == float(Fraction(over, under))
    else:
        with pytest.raises(UserError):
            parse_eps(text)


@given(st.text())
def test_text_is_a_budget_or_a_user_error(text: str) -> None:
    with contextlib.suppress(UserError):
        assert 0 < parse_eps(text) <= 1


@pytest.mark.parametrize(
    ("eps", "left"), [(4 / 255, 4), (0.0157, 4), (0.0078, 1), (7.9 / 255, 7), (1 / 255, 1), (1.0, 255), (0.5 / 255, 0)]
)
def test_8bit_images_have_whole_levels_of_a_budget(eps: float, left: int) -> None:
    clean = from_8bit(torch.full((1, 3, 2, 2), 0 if left == 255 else 100))
    furthest = to_8bit((clean + eps).clamp(0, 1), clean, eps=eps, norm="Linf").double() - (clean.double() * 255).round()
    assert eps_8bit(eps, "Linf") == left / 255 == float(furthest.max()) / 255


def test_a_budget_says_what_8bit_images_have_of_it() -> None:
    assert budget_text(4 / 255) == "4/255"
    assert budget_text(0.0078) == "0.0078 (1/255 in 8 bits)"
    assert budget_text(3.0, "L2") == "3.0"


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("text", ["0.5/255", "1e-5", "0.0039"])
def test_an_attack_whose_images_round_to_the_clean_ones_is_refused(text: str, norm: Norm) -> None:
    with pytest.raises(UserError, match="less than one level of an 8-bit image") as caught:
        make_attack("embedding", eps=text, norm=norm)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="less than one level"):
        Noise(name="noise", eps=parse_eps(text, norm), norm=norm)
    with pytest.raises(UserError, match="less than one level"):
        parse(f"/attack eps={text}")
