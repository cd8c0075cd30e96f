"""RAdaptConfig: defaults, validation, dict round trip."""

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvlm_radapt.defences.radapt.config import RAdaptConfig
from lvlm_radapt.utils.errors import UserError


def test_defaults_are_the_papers() -> None:
    assert RAdaptConfig().to_dict() == {
        "cutoff": 40.0,
        "cutoff_unit": "px224",
        "boundary": "reflect",
        "alpha": 1.0,
        "mix": "interpolate",
        "anchor": "white",
    }


def test_where_an_anchor_comes_from_is_told_in_words_and_kept() -> None:
    config = RAdaptConfig(anchor="guided", anchor_from="tiny-clip-fare", alpha=0.5)
    assert RAdaptConfig.from_dict(config.to_dict()) == config
    assert config.describe() == (
        "a Gaussian filter (cutoff 40) and the guided anchor from tiny-clip-fare (alpha 0.5, interpolate)"
    )
    assert "anchor_from" not in RAdaptConfig(anchor="learned").to_dict()
    for told in ("", " ", "two\nlines", 3):
        with pytest.raises(UserError, match="anchor_from is "):
            RAdaptConfig(anchor="learned", anchor_from=told)  # type: ignore[arg-type]


@given(
    cutoff=st.none() | st.floats(1e-6, 1e6) | st.integers(1, 1000),
    cutoff_unit=st.sampled_from(["px224", "image"]),
    boundary=st.sampled_from(["reflect", "periodic"]),
    alpha=st.floats(-1e6, 1e6) | st.integers(-5, 5),
    mix=st.sampled_from(["interpolate", "add"]),
)
def test_round_trip_through_json(**settings: Any) -> None:
    config = RAdaptConfig(**settings)
    assert RAdaptConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert type(config.alpha) is float
    assert config.cutoff is None or type(config.cutoff) is float


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cutoff", 0),
        ("cutoff", -1.0),
        ("cutoff", math.inf),
        ("cutoff", math.nan),
        ("cutoff", "40"),
        ("cutoff", True),
        ("cutoff_unit", "px"),
        ("cutoff_unit", None),
        ("boundary", "zeros"),
        ("alpha", math.nan),
        ("alpha", -math.inf),
        ("alpha", None),
        ("alpha", False),
        ("mix", "replace"),
        ("mix", ["add"]),
        ("anchor", "taught"),
        ("anchor_from", "a guide"),
    ],
)
def test_bad_values_are_named_in_one_line(field: str, value: object) -> None:
    with pytest.raises(UserError) as caught:
        RAdaptConfig(**{field: value})  # type: ignore[arg-type]
    assert str(caught.value).startswith(f"{field} is ")
    assert "\n" not in str(caught.value)


def test_unknown_keys_are_refused_and_missing_ones_default() -> None:
    with pytest.raises(UserError, match=r"beta, cut.*known are cutoff,"):
        RAdaptConfig.from_dict({"cut": 3, "beta": 1})
    assert RAdaptConfig.from_dict({"alpha": 0.5}) == RAdaptConfig(alpha=0.5)


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RAdaptConfig().alpha = 2.0  # type: ignore[misc]
