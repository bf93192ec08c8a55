"""A network that takes weights over without a second copy."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from scgpt_tl.models._weights import adopt, not_finite, skeleton


def test_a_skeleton_has_shapes_alone(make_model):
    model = make_model()
    bare = skeleton(model.config)
    assert {t.device.type for t in bare.state_dict().values()} == {"meta"}
    assert {k: v.shape for k, v in bare.state_dict().items()} == {
        k: v.shape for k, v in model.network.state_dict().items()
    }


def test_a_skeleton_does_not_load_torchs_compiler():
    """Drawing random numbers on shapes alone would: a second and 80 MB."""
    code = (
        "import sys; from scgpt_tl.core.config import ModelConfig; from scgpt_tl.models._weights import skeleton\n"
        "heads = ('gep', 'gepc', 'cls', 'dar', 'perturb')\n"
        "skeleton(ModelConfig(9, 6, 7, heads=heads, n_classes=2, n_batches=2, flag_unknown=True))\n"
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_adopted_weights_are_the_tensors_themselves(make_model):
    model = make_model()
    state = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    network = adopt(skeleton(model.config), state)
    assert not network.training
    assert {k: v.data_ptr() for k, v in network.state_dict().items()} == {k: v.data_ptr() for k, v in state.items()}
    assert all(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("bad", [[float("nan")], [float("inf")], [float("inf"), float("-inf")]])
def test_not_finite(bad: list[float]):
    state = {"a": torch.ones(3), "b": torch.tensor([1.0, *bad]), "large": torch.full((3,), 3e38), "n": torch.tensor(2)}
    assert not_finite(state) == ["b"]
