"""Sizes and choices that make no network are refused by name."""

from __future__ import annotations

import pytest

from scgpt_tl.core.config import ModelConfig

SIZES = {"n_tokens": 20, "pad_id": 17, "cls_id": 18}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"cell_style": "avg"}, "cell_style='avg' is unknown; there are cls, w-pool"),
        ({"norm_scheme": "published-pre"}, "norm_scheme='published-pre' is unknown; did you mean 'published_pre'"),
        ({"value_style": 3}, "value_style=3 is unknown"),
        ({"ties": None}, "ties=None is unknown"),
        ({"dropout": 2}, "dropout=2: a share from 0 to below 1"),
        ({"attn_dropout": -1}, "attn_dropout=-1: a share"),
        ({"dropout": "much"}, "dropout='much': a finite number"),
        ({"pad_value": float("inf")}, "pad_value=inf: a finite number"),
        ({"cls_value": float("nan")}, "cls_value=nan: a finite number"),
        ({"mask_value": True}, "mask_value=True: a finite number"),
        ({"cls_value": 51}, "cls_value=51: a whole number of at most 50 is expected where n_bins is 51"),
        ({"cls_value": 0.5}, "cls_value=0.5: a whole number"),
        ({"pad_value": 53, "value_style": "category"}, "pad_value=53: a whole number of at most 52"),
        ({"n_heads": 0}, "n_heads=0: at least 1"),
        ({"n_heads": 5}, "d_model=512 is not a multiple of n_heads=5"),
        ({"n_bins": 1}, "n_bins=1: at least 2"),
        ({"n_bins": 51.0}, "n_bins=51.0: at least 2 is needed, a whole number"),
        ({"max_length": 1}, "max_length=1: at least 2"),
        ({"n_batches": -1}, "n_batches=-1: at least 0"),
        ({"n_layers_cls": "3"}, "n_layers_cls='3': at least 1 is needed, a whole number"),
        ({"n_classes": True}, "n_classes=True: at least 0 is needed, a whole number"),
        ({"flag_unknown": "no"}, "flag_unknown='no': true or false"),
        ({"cls_id": 20}, "cls_id=20 is no token: n_tokens is 20"),
    ],
)
def test_what_makes_no_network(changes: dict, says: str):
    with pytest.raises(ValueError, match=says):
        ModelConfig(**(SIZES | changes))


def test_a_head_alone_and_a_whole_value_of_either_kind():
    assert ModelConfig(**SIZES, heads="gep").heads == ("gep",)
    assert ModelConfig(**SIZES, pad_value=-2) == ModelConfig(**SIZES, pad_value=-2.0)
    assert ModelConfig(**SIZES, cls_value=0.5, value_style="scaling").cls_value == 0.5
