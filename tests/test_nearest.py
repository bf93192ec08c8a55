"""Names that are not there."""

from __future__ import annotations

import pytest

from scgpt_tl._nearest import check_choice, nearest, refuse_unknown


def test_the_nearest_name_or_all_of_them():
    assert nearest("epoch", ["epochs", "cells"]) == "did you mean 'epochs'?"
    assert nearest(7, {"epochs": 1, "cells": 2}) == "there are epochs, cells"
    assert nearest("a", []) == "there are none"


def test_a_choice_is_one_of_those_there_are():
    presets = {"auto": 1, "paper": 2}
    assert check_choice("preset", "paper", presets) == "paper"
    with pytest.raises(ValueError, match="preset='Auto' is unknown; did you mean 'auto'"):
        check_choice("preset", "Auto", presets)
    with pytest.raises(ValueError, match="preset=None is unknown; there are auto, paper"):
        check_choice("preset", None, presets)


def test_keywords_that_are_unknown():
    refuse_unknown({"device": "cpu"}, ["device", "dtype"])
    with pytest.raises(TypeError, match="unexpected argument 'layr'; did you mean 'layer'"):
        refuse_unknown({"device": "cpu", "layr": "x"}, ["device"], beside=["layer"])
