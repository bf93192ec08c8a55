"""Names that are not there."""

from __future__ import annotations

from scgpt_tl._nearest import nearest


def test_the_nearest_name_or_all_of_them():
    assert nearest("epoch", ["epochs", "cells"]) == "did you mean 'epochs'?"
    assert nearest(7, {"epochs": 1, "cells": 2}) == "there are epochs, cells"
    assert nearest("a", []) == "there are none"
