"""What tells two runs apart, in a few words."""

from __future__ import annotations

from typing import Any

import pytest

from scgpt_tl.engine._differences import differences

A = {"name": "a", "cells": 40, "sha256": "0" * 64}
B = {"name": "b", "cells": 25, "sha256": "1" * 64}
HELD = {"seed": 0, "train": {"epochs": 3}, "data": [A, B], "labels": ["T", "B"], "columns": ["2" * 64, "3" * 64]}


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"train": {"epochs": 4}}, "train.epochs was 3 and is 4"),
        (
            {"data": [A | {"cells": 41, "sha256": "4" * 64}, B]},
            "data: 'a': cells was 40 and is 41; data: 'a': sha256 was 000000000000... and is 444444444444...",
        ),
        ({"data": [A, B | {"name": "c"}]}, "data: 'c' is new; data: 'b' is missing"),
        ({"data": [B, A]}, "data: the order is another"),
        ({"validate": [A]}, "validate: 'a (validate)' is new"),
        ({"labels": ["T", "NK"]}, "labels: 'NK' is new; labels: 'B' is missing"),
        ({"labels": None}, "labels: 'T' is missing; labels: 'B' is missing"),
        (
            {"columns": ["2" * 64, "5" * 64]},
            "columns: 'b': labels, batches or genes was 333333333333... and is 555555555555...",
        ),
        ({"base": {"name": "m"}}, "see its run.json"),
    ],
)
def test_study_and_field_are_named(ours: dict[str, Any], said: str):
    assert differences(HELD, HELD | ours, sorted(ours)) == said


def test_a_few_are_enough():
    data = [{"name": f"study{i}"} for i in range(9)]
    assert differences(HELD, {"data": data}, ["data"]).count(";") == 4
