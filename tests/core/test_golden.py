"""Parity with the published package's own numbers, module by module (float32, atol 1e-5 + rtol 1e-5).

`avgpool` is left out: it is a mean over padding, which a packed model does not have.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from scgpt_tl.core.heads import CellExpressionHead, ClassHead, ReverseGradient
from scgpt_tl.core.scgpt import Encoded, Network
from scgpt_tl.models._names import infer_config, to_ours
from scgpt_tl.models.model import load_model
from scgpt_tl.tokens.batch import CellBatch

GOLDEN = Path(__file__).parents[1] / "golden"
MODULES = np.load(GOLDEN / "modules.npz")
GENERATIVE = np.load(GOLDEN / "generative.npz")
PAD = 765

VARIANTS = {
    "plain": {},
    "ezp": {},
    "batch_dab": {},
    "dsbn": {},
    "bn": {},
    "category": {},
    "scaling": {},
    "wpool": {"cell_style": "w-pool"},
    "flash_post": {},
    "flash_pre": {"norm_scheme": "published_pre"},
    "mo_mod_batch": {},
    "mo_mod": {},
    "mo_batch": {},
    "mo_none": {},
}
SHOWN = {"category": "model/cat_vals", "scaling": "model/scaling_vals"}


def tensor(name: str, source: np.lib.npyio.NpzFile = MODULES) -> torch.Tensor:
    return torch.from_numpy(source[name])


def network(source: np.lib.npyio.NpzFile, prefix: str, **known) -> Network:
    """A network that holds every one of the published parameters under `prefix`."""
    names = [name for name in source.files if name.startswith(prefix)]
    state = {to_ours(name.removeprefix(prefix)): tensor(name, source) for name in names}
    assert None not in state
    assert len(state) == len(names)
    net = Network(infer_config(state, n_heads=4, **known)).eval()
    net.load_state_dict(state, strict=True)
    return net


def variant(tag: str, **known) -> Network:
    return network(MODULES, f"sd/{tag}/", pad_id=PAD, cls_id=766, **known)


def cells(tag: str) -> tuple[CellBatch, torch.Tensor]:
    """The six cells of the golden file, packed, and where they lie in its padded matrices."""
    ids = tensor("model/ids")
    real = ids != PAD
    batch = CellBatch.from_padded(ids, tensor(SHOWN.get(tag, "model/vals")), pad_id=PAD, batch=tensor("model/batch"))
    return replace(batch, modality=tensor("mod/types")[real]), real


def check(found: torch.Tensor, expected: np.ndarray, real: torch.Tensor | None = None) -> None:
    if real is not None:
        expected = expected[real.numpy()]
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-5, rtol=1e-5)


def outputs(net: Network, batch: CellBatch) -> dict[str, torch.Tensor | None]:
    """Everything that the published forward gives, under its names."""
    heads = net.config.heads
    encoded = net.backbone.encode(batch)
    gep = net.heads.gene_expression(encoded, batch)
    found = {"cell_emb": encoded.cell, "mlm_output": gep.value, "mlm_zero_probs": gep.nonzero}
    if "cls" in heads:
        found["cls_output"] = net.heads.cls(encoded.cell)
    if "gepc" in heads:
        gepc = net.heads.cell_expression(encoded, batch, net.backbone.genes(batch.gene_ids))
        found |= {"mvc_output": gepc.value, "mvc_zero_probs": gepc.nonzero}
    if "dar" in heads:
        found["dab_output"] = net.heads.domain(encoded)
    return found


@torch.no_grad()
@pytest.mark.parametrize("tag", VARIANTS)
def test_variant(tag: str):
    batch, real = cells(tag)
    found = outputs(variant(tag, **VARIANTS[tag]), batch)
    expected = {name.split("/")[2]: MODULES[name] for name in MODULES.files if name.startswith(f"out/{tag}/")}
    expected = {name: x for name, x in expected.items() if not name.endswith("__slow") and not name.startswith("loss")}
    assert set(expected) <= set(found)
    for name, x in expected.items():
        check(found[name], x, real if x.shape == tuple(real.shape) else None)


@torch.no_grad()
def test_generate_shows_a_cell_embedding_in_place_of_cls():
    net = variant("generate")
    ids, prompt = tensor("model/ids"), tensor("model/gen_cell_emb")
    batch, real = cells("generate")
    encoded = net.backbone.encode(batch, cell_prompt=prompt)
    assert ids.shape == MODULES["out/generate/out"].shape
    check(net.heads.gene_expression(encoded, batch).value, MODULES["out/generate/out"], real)


@torch.no_grad()
@pytest.mark.parametrize(
    ("tag", "style", "name"),
    [
        ("mvc_inner_product_detach", "inner product", "pred"),
        ("mvc_concat_query", "concat query", "out"),
        ("mvc_sum_query", "sum query", "out"),
    ],
)
def test_gepc_styles(tag: str, style: str, name: str):
    head = CellExpressionHead(64, 64, style=style)
    prefix = f"sd/{tag}/"
    published = {n.removeprefix(prefix): tensor(n) for n in MODULES.files if n.startswith(prefix)}
    state = {to_ours(f"mvc_decoder.{n}").removeprefix("heads.gepc."): x for n, x in published.items()}
    head.load_state_dict(state, strict=True)
    genes, cell = tensor("model/gene_embs"), tensor("model/gen_cell_emb")
    owner = torch.arange(len(genes)).repeat_interleave(genes.shape[1])
    check(head(cell, genes.flatten(0, 1), owner).value.view(genes.shape[:2]), MODULES[f"out/{tag}/{name}"])


def test_gradient_reversal():
    """`grad_in`: of the mean cross-entropy with the classes 0, 1, 2, 0, 1, 2, through the reversal layer."""
    head = ClassHead(64, 3, leaky=True)
    prefix = "sd/dab/"
    published = {n.removeprefix(prefix): tensor(n) for n in MODULES.files if n.startswith(prefix)}
    names = {n: to_ours(f"grad_reverse_discriminator.{n}").removeprefix("heads.dar.") for n in published}
    head.load_state_dict({names[n]: x for n, x in published.items()}, strict=True)
    cell = tensor("model/gen_cell_emb").clone().requires_grad_()
    scores = head(ReverseGradient.apply(cell, 1.0))
    torch.nn.functional.cross_entropy(scores, torch.arange(6) % 3).backward()
    np.testing.assert_allclose(cell.grad.numpy(), MODULES["out/dab/grad_in"], atol=1e-8, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("tag", ["pert", "pert_adapt"])
def test_perturbation(tag: str):
    """No `<cls>`: the first gene stands in its place, as in the published perturbation code."""
    values, ids, flags = (tensor(f"pert/{name}") for name in ("values", "ids", "flags"))
    net = variant(tag, adaptive_offset=tag == "pert_adapt", pad_value=0.0)
    batch = CellBatch.from_padded(ids, values, pad_id=PAD)
    batch = replace(batch, condition=flags.flatten())
    encoded = net.backbone.encode(batch)
    shape = tuple(ids.shape)
    found = net.heads.perturb(encoded.tokens, batch.values, batch).value.view(shape)
    check(found, MODULES[f"out/{tag}/mlm_output"])
    check(net.heads.cls(encoded.cell), MODULES[f"out/{tag}/cls_output"])
    gepc = net.heads.cell_expression(encoded, batch, net.backbone.genes(batch.gene_ids))
    check(gepc.value.view(shape), MODULES[f"out/{tag}/mvc_output"])


@torch.no_grad()
@pytest.mark.parametrize(("scheme", "out"), [("post", "out_post"), ("published_pre", "out_pre")])
def test_generative_forward_both_passes(scheme: str, out: str):
    net = network(GENERATIVE, "sd/", pad_id=197, cls_id=198, norm_scheme=scheme, unknown_skips_projection=True)
    known_ids, shown, hidden_ids = (
        tensor(f"coll_both/{n}", GENERATIVE) for n in ("pcpt_gene", "pcpt_expr", "gen_gene")
    )
    ids = torch.cat([known_ids, hidden_ids], 1)
    values = torch.cat([shown, torch.zeros(hidden_ids.shape)], 1)
    known = torch.cat([torch.ones_like(known_ids), torch.zeros_like(hidden_ids)], 1).bool()
    real = ids != 197
    batch = replace(CellBatch.from_padded(ids, values, pad_id=197), known=known[real])
    golden = {n.split("/")[1]: GENERATIVE[n] for n in GENERATIVE.files if n.startswith(f"{out}/")}

    first = net.backbone.encode(batch)
    told = net.heads.gene_expression(first, batch).value
    check(first.cell, golden["cell_emb"])
    check(told[batch.known], golden["pcpt_preds"], known_ids != 197)
    check(told[~batch.known], golden["gen_preds"], hidden_ids != 197)
    gepc = net.heads.cell_expression(first, batch, net.backbone.genes(batch.gene_ids))
    check(gepc.value, golden["mvc_output"], real)

    second = net.backbone.encode(batch, cell_prompt=first.cell)
    told = net.heads.gene_expression(second, batch).value
    check(told[~batch.known], golden["gen_preds_2nd_pass"], hidden_ids != 197)


@torch.no_grad()
@pytest.mark.parametrize("tag", ["len1200", "len1200_slowpath", "len128"])
@pytest.mark.parametrize("fast", [True, False], ids=["as embedded", "in full"])
def test_embedding_of_given_tokens(tag: str, fast: bool):
    golden = np.load(GOLDEN / "tiny" / "embed.npz")
    backbone = load_model(GOLDEN / "tiny" / "ckpt").backbone
    ids, values = tensor(f"{tag}_tok_genes", golden), tensor(f"{tag}_tok_expr", golden)
    batch = CellBatch.from_padded(ids, values, pad_id=backbone.config.pad_id)
    encoded: Encoded = backbone.encode(batch, cell_only=fast, tables=backbone.tables() if fast else None)
    cell = torch.nn.functional.normalize(encoded.cell, dim=1)
    np.testing.assert_allclose(cell.numpy(), golden[f"{tag}_emb"], atol=1e-5, rtol=0)
