"""Blocks and backbone: work that is saved must not be seen in the result."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from scgpt_tl.core.config import ModelConfig
from scgpt_tl.core.encoders import ContinuousValueEncoder
from scgpt_tl.core.layers import DomainNorm, Linear, linear
from scgpt_tl.core.scgpt import Network
from scgpt_tl.tokens.batch import CellBatch, cumulative

SMALL = {"n_tokens": 40, "pad_id": 37, "cls_id": 38, "d_model": 32, "n_heads": 4, "n_layers": 3, "d_ff": 48}


def network(**options) -> Network:
    torch.manual_seed(0)
    net = Network(ModelConfig(**(SMALL | options))).eval()
    for parameter in net.parameters():  # biases and norms away from 0 and 1
        parameter.data += 0.05 * torch.randn(parameter.shape)
    return net


def cells(lengths=(9, 1, 14, 5), *, known: bool = False, n_bins: int = 51, seed: int = 1) -> CellBatch:
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.tensor(lengths)
    total, offsets = int(lengths.sum()), cumulative(lengths)
    ids, values = (
        torch.randint(0, 37, (total,), generator=rng),
        torch.randint(1, n_bins, (total,), generator=rng).float(),
    )
    ids[offsets[:-1]], values[offsets[:-1]] = 38, -2.0
    batch = CellBatch(ids, values, offsets, batch=torch.arange(len(lengths)) % 2)
    if known:
        place = torch.arange(total) - offsets[batch.cell_index]
        batch = replace(batch, known=place < (batch.lengths.float() * 0.6).ceil().long()[batch.cell_index])
    return batch


KINDS = {
    "post": {},
    "published_pre": {"norm_scheme": "published_pre"},
    "generative": {"flag_unknown": True, "unknown_skips_projection": True},
    "generative, projected": {"flag_unknown": True},
    "batch norm": {"input_norm": "batch"},
    "domain norm": {"input_norm": "domain", "n_batches": 2},
}


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("known", [False, True])
def test_cell_only_is_exact(kind: str, known: bool):
    backbone, batch = network(**KINDS[kind]).backbone, cells(known=known)
    full, short = backbone.encode(batch), backbone.encode(batch, cell_only=True)
    assert short.tokens is None
    assert full.tokens.shape == (29, 32)
    torch.testing.assert_close(short.cell, full.cell, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("known", [False, True])
def test_tokens_asked_for_are_exact(kind: str, known: bool):
    """Values and the gradient of every parameter; what is not asked for cannot be mistaken for an answer."""
    net, batch = network(**KINDS[kind]), cells(known=known)
    at = torch.tensor([28, 3, 8, 9, 16])  # in any order, a `<cls>` among them, unknown genes among them
    weights, gradients = torch.randn(5, 32), []
    for asked in (None, at):
        encoded = net.backbone.encode(batch, at=asked)
        net.zero_grad()
        ((encoded.tokens[at] * weights).sum() + encoded.cell.square().sum()).backward()
        gradients.append((encoded.cell, encoded.tokens[at], [p.grad for p in net.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-4, rtol=1e-4)
    rows = encoded.tokens.detach().isnan().all(1)
    assert rows.sum() == 29 - len({*at.tolist(), *batch.cls_index.tolist()})
    assert not encoded.tokens.detach()[~rows].isnan().any()


@torch.no_grad()
def test_tokens_asked_for_where_all_are_needed():
    backbone, batch, at = network(cell_style="w-pool").backbone, cells(), torch.tensor([3])
    torch.testing.assert_close(backbone.encode(batch, at=at).tokens, backbone.encode(batch).tokens)
    backbone = network().backbone
    encoded = backbone.encode(batch, at=at, capture=("layer.2",))
    torch.testing.assert_close(encoded.captured["layer.2"], backbone.encode(batch).tokens)
    none = backbone.encode(batch, at=torch.tensor([], dtype=torch.long))
    torch.testing.assert_close(none.cell, backbone.encode(batch, cell_only=True).cell)


@torch.no_grad()
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("style", ["continuous", "category", "scaling"])
def test_tables_are_exact(style: str, known: bool):
    backbone, batch = network(value_style=style, flag_unknown=True).backbone, cells(known=known)
    if style == "category":  # special values are rows of the table here
        backbone.config = replace(backbone.config, mask_value=52.0)
        batch = replace(batch, values=batch.values.where(batch.values >= 0, 51.0))
    plain, looked_up = backbone.encode(batch), backbone.encode(batch, tables=backbone.tables())
    torch.testing.assert_close(looked_up.tokens, plain.tokens, atol=2e-6, rtol=2e-6)


@torch.no_grad()
def test_tables_reach_from_the_lowest_special_value_to_the_highest_bin():
    net = network(n_bins=11, mask_value=-5.0)
    tables = net.backbone.tables()
    assert tables.value.shape == (5 + 11, 32)
    assert tables.lowest == -5
    values = torch.arange(-5.0, 11.0)
    torch.testing.assert_close(tables.value, net.backbone.values(values))


@torch.no_grad()
def test_a_cell_alone_is_the_cell_in_company():
    backbone = network().backbone
    batch = cells()
    together = backbone.encode(batch).cell
    for b in range(batch.n_cells):
        start, end = int(batch.cu_seqlens[b]), int(batch.cu_seqlens[b + 1])
        alone = CellBatch(batch.gene_ids[start:end], batch.values[start:end], torch.tensor([0, end - start]))
        torch.testing.assert_close(backbone.encode(alone).cell[0], together[b], atol=2e-6, rtol=2e-6)


@torch.no_grad()
def test_the_order_of_genes_does_not_matter():
    backbone, batch = network().backbone, cells((9,))
    order = torch.cat([torch.tensor([0]), 1 + torch.randperm(8)])
    shuffled = replace(batch, gene_ids=batch.gene_ids[order], values=batch.values[order])
    torch.testing.assert_close(backbone.encode(shuffled).cell, backbone.encode(batch).cell, atol=2e-6, rtol=2e-6)


@torch.no_grad()
def test_the_hidden_value_of_an_unknown_gene_is_not_shown():
    backbone, batch = network(flag_unknown=True).backbone, cells(known=True)
    other = replace(batch, values=torch.where(batch.known, batch.values, 7.0))
    assert torch.equal(backbone.encode(batch).tokens, backbone.encode(other).tokens)
    assert torch.equal(network().backbone.encode(batch).tokens, network().backbone.encode(other).tokens)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["post", "published_pre", "generative"])
def test_captured_maps_are_those_that_forward_uses(kind: str):
    """softmax rows sum to one, and the maps times the values give what the block's attention gave."""
    net, batch = network(**KINDS[kind]), cells(known=kind == "generative")
    names = {f"{what}.{i}" for what in ("layer", "attention") for i in range(3)}
    captured = net.backbone.encode(batch, capture=names).captured
    assert set(captured) == names
    block, x = net.backbone.blocks[1], captured["layer.0"]
    stream = x if block.post else block.norm1(x)
    value = stream @ block.attn.qkv.weight[64:].T + block.attn.qkv.bias[64:]
    for b, weights in enumerate(captured["attention.1"]):
        rows = slice(int(batch.cu_seqlens[b]), int(batch.cu_seqlens[b + 1]))
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)))
        context = torch.einsum("hqk,khe->qhe", weights, value[rows].view(-1, 4, 8)).flatten(1)
        update = block.attn.out(context)
        if kind == "generative":
            update = torch.where(batch.known[rows, None], update, context)
        after = stream[rows] + update
        after = block.norm1(after) if block.post else block.norm2(after)
        after = after + block.down(block.up(after).relu())
        after = block.norm2(after) if block.post else after
        torch.testing.assert_close(after, captured["layer.1"][rows], atol=2e-6, rtol=2e-6)


@torch.no_grad()
@pytest.mark.parametrize("block", [0, 2])
@pytest.mark.parametrize("kind", ["post", "published_pre", "generative"])
def test_queries_and_keys_are_those_of_the_maps(kind: str, block: int):
    net, batch = network(**KINDS[kind]), cells()
    maps = net.backbone.encode(batch, capture=(f"attention.{block}",)).captured[f"attention.{block}"]
    q, k = net.backbone.queries_and_keys(batch, block)
    assert q.shape == k.shape == (29, 4, 8)
    for b, weights in enumerate(maps):
        rows = slice(int(batch.cu_seqlens[b]), int(batch.cu_seqlens[b + 1]))
        scores = torch.einsum("qhe,khe->hqk", q[rows], k[rows]) / 8**0.5
        torch.testing.assert_close(scores.softmax(-1), weights)


@torch.no_grad()
def test_queries_and_keys_run_no_more_than_they_need(monkeypatch: pytest.MonkeyPatch):
    backbone, asked = network().backbone, []
    for i, block in enumerate(backbone.blocks):
        kept = block.attn.attend
        counted = lambda *given, i=i, kept=kept, **options: asked.append(i) or kept(*given, **options)  # noqa: E731
        monkeypatch.setattr(block.attn, "attend", counted)
    for block, run in ((0, []), (1, [0]), (2, [0, 1])):
        asked.clear()
        backbone.queries_and_keys(cells(), block)
        assert asked == run


@torch.no_grad()
@pytest.mark.parametrize("asked", [("attention.2", "layer.0"), ("layer.2",)])
def test_captures_with_cell_only(asked: tuple[str, ...]):
    """The last layer's output needs all of its tokens, so it is computed in full where it is asked for."""
    backbone, batch = network().backbone, cells()
    encoded, full = backbone.encode(batch, capture=asked, cell_only=True), backbone.encode(batch, capture=asked)
    torch.testing.assert_close(encoded.cell, full.cell, atol=2e-6, rtol=2e-6)
    assert set(encoded.captured) == set(asked)
    torch.testing.assert_close(encoded.captured, full.captured)


@pytest.mark.parametrize("cell_only", [False, True])
def test_a_capture_that_does_not_exist_is_refused(cell_only: bool):
    with pytest.raises(ValueError, match=r"cannot capture \['layer.7'\].*layer.N"):
        network().backbone.encode(cells(), capture=("layer.7",), cell_only=cell_only)


def test_domain_norm_follows_each_rows_domain():
    norm = DomainNorm(8, 2, affine=False)
    x, domain = torch.randn(20, 8), torch.arange(20) % 2
    out = norm(x, domain)
    for d in (0, 1):
        rows = domain == d
        expected = (x[rows] - x[rows].mean(0)) / (x[rows].var(0, unbiased=False) + 6.1e-5).sqrt()
        torch.testing.assert_close(out[rows], expected)
        torch.testing.assert_close(norm.norms[d].running_mean, 0.1 * x[rows].mean(0))


def domain_norm(n_domains: int) -> DomainNorm:
    """With running statistics away from 0 and 1."""
    torch.manual_seed(3)
    norm = DomainNorm(8, n_domains, affine=n_domains == 1).double()
    for one in norm.norms:
        one.running_mean.copy_(torch.randn(8))
        one.running_var.copy_(torch.rand(8) + 0.5)
    return norm


@pytest.mark.parametrize("training", [True, False])
def test_a_mixed_minibatch_gives_each_domain_what_it_would_get_alone(training: bool):
    """Output, gradient and running statistics."""
    mixed = domain_norm(3).train(training)
    domain = torch.tensor([2, 0, 2, 2, 0, 2, 0, 2])  # 1 is absent
    x = torch.randn(8, 8, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(8, 8, dtype=torch.float64)
    out = mixed(x, domain)
    (out * weights).sum().backward()
    alone = domain_norm(3).train(training)
    for d in (0, 2):
        rows = domain == d
        part = x.detach()[rows].requires_grad_()
        expected = alone.norms[d](part)
        (expected * weights[rows]).sum().backward()
        torch.testing.assert_close(out[rows], expected)
        torch.testing.assert_close(x.grad[rows], part.grad)
    torch.testing.assert_close(dict(mixed.named_buffers()), dict(alone.named_buffers()))


@pytest.mark.parametrize("n_domains", [1, 2])
def test_a_single_token_is_normalised_by_the_running_statistics(n_domains: int):
    norm = domain_norm(n_domains).train()
    before = {name: x.clone() for name, x in norm.named_buffers()}
    x = torch.randn(1, 8, dtype=torch.float64)
    expected = (x - norm.norms[-1].running_mean) / (norm.norms[-1].running_var + norm.norms[-1].eps).sqrt()
    torch.testing.assert_close(norm(x, torch.tensor([n_domains - 1])), expected)
    torch.testing.assert_close(dict(norm.named_buffers()), before)


def test_domain_norm_needs_the_batch():
    with pytest.raises(ValueError, match=r"CellBatch.batch is needed"):
        network(**KINDS["domain norm"]).backbone.encode(replace(cells(), batch=None))


def test_gradients_reach_every_parameter():
    """In training mode, through both kinds of token and all heads that the batch feeds."""
    net = network(flag_unknown=True, heads=("gep", "gepc"), n_classes=0).train()
    batch = cells(known=True)
    encoded = net.backbone.encode(batch)
    told = net.heads.gene_expression(encoded, batch).value
    gepc = net.heads.cell_expression(encoded, batch, net.backbone.genes(batch.gene_ids)).value
    (told.square().sum() + gepc.square().sum()).backward()
    without = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert without == []


@pytest.mark.parametrize("rows", [1, 7, 300])
def test_linear_is_torchs_whatever_library_does_it(rows: int):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(rows, 256), torch.randn(48, 256), torch.randn(48)
    expected = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    for context in (torch.no_grad(), torch.enable_grad()):
        with context:
            torch.testing.assert_close(linear(x, weight, bias).double(), expected, atol=1e-4, rtol=1e-5)
    part = torch.nn.functional.linear(x, weight[16:], bias[16:])  # a slice of the weights, as for <cls> alone
    with torch.no_grad():
        torch.testing.assert_close(linear(x, weight[16:], bias[16:]), part, atol=1e-4, rtol=1e-5)
        assert linear(x[:0], weight, bias).shape == (0, 48)


def test_linear_leaves_autocast_to_torch():
    x, weight = torch.randn(4, 8), torch.randn(3, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight, None).dtype == torch.bfloat16


def test_the_stream_keeps_its_digits_in_half_precision():
    """What a block adds may be rounded, what it is added to is not."""
    block = network().backbone.blocks[0]
    x = torch.tensor([[1 + 2.0**-12, -(2.0**-9)]])
    found = block._add(x, torch.zeros(1, 2, dtype=torch.bfloat16))
    assert found.dtype == torch.float32
    assert torch.equal(found, x)
    same = torch.ones(1, 2)
    assert block._add(x, same) is same  # where it need not be rounded, a product's own memory serves


class Adapted(torch.nn.Module):
    """A layer in the place of another, with something added, as LoRA has it."""

    def __init__(self, base: torch.nn.Module):
        super().__init__()
        self.base = base
        self.added = torch.nn.Linear(base.in_features, base.out_features)

    @property
    def weight(self) -> torch.Tensor:
        return self.base.weight

    @property
    def bias(self) -> torch.Tensor:
        return self.base.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.added(x)


class Subclass(Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


@torch.no_grad()
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("kind", [Adapted, Subclass])
def test_what_stands_in_the_place_of_qkv_is_heard(kind: type, known: bool):
    """`cell_only` slices our own layer's weights; another's it must not."""
    backbone, batch = network().backbone, cells(known=known)
    before = backbone.encode(batch, cell_only=True).cell
    for block in backbone.blocks:
        if kind is Adapted:
            block.attn.qkv = Adapted(block.attn.qkv)
        else:
            block.attn.qkv.__class__ = Subclass
    short, full = backbone.encode(batch, cell_only=True).cell, backbone.encode(batch).cell
    torch.testing.assert_close(short, full, atol=2e-6, rtol=2e-6)
    assert (short - before).abs().max() > 1e-2


def step(net: Network, batch: CellBatch, **options) -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
    """Loss and gradients of all parameters, with dropout from one seed."""
    torch.manual_seed(5)
    net.zero_grad()
    encoded = net.backbone.encode(batch, **options)
    loss = encoded.cell.square().sum()
    if encoded.tokens is not None:
        loss = loss + net.heads.gene_expression(encoded, batch, at=options.get("at")).value.square().sum()
    loss.backward()
    return loss.detach(), {name: None if p.grad is None else p.grad.clone() for name, p in net.named_parameters()}


@pytest.mark.parametrize("options", [{}, {"cell_only": True}, {"at": torch.arange(6)}], ids=["all", "cell", "some"])
@pytest.mark.parametrize("attn_dropout", [0.0, 0.3])
@pytest.mark.parametrize("known", [False, True])
def test_recomputed_blocks_give_the_same_loss_and_gradients(known: bool, attn_dropout: float, options: dict):
    net = network(flag_unknown=True, dropout=0.4, attn_dropout=attn_dropout).train()
    batch = cells(known=known)
    kept = step(net, batch, **options)
    calls = []
    handle = net.backbone.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    net.backbone.recompute = True
    again = step(net, batch, **options)
    handle.remove()
    assert len(calls) == 2  # once in each direction
    torch.testing.assert_close(again, kept, atol=0, rtol=0)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's tracer looks at what it traces
def test_compiled_blocks_give_the_same_step_for_any_number_of_tokens():
    """By the backend that compiles nothing: what is asked is whether the blocks can be traced, attention left aside."""
    net = network(flag_unknown=True, dropout=0.4, n_layers=1).train()
    batches = [cells(lengths, known=known) for known in (True, False) for lengths in ((9, 1, 14, 5), (7, 30))]
    expected = [step(net, batch) for batch in batches]
    net.backbone.compile_blocks("eager")
    torch.testing.assert_close([step(net, batch) for batch in batches], expected)


@torch.no_grad()
def test_nothing_is_recomputed_without_gradients(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("scgpt_tl.core.scgpt.checkpoint", None)
    backbone = network().backbone
    backbone.recompute = True
    assert backbone.encode(cells()).cell.shape == (4, 32)


def test_values_that_repeat_are_encoded_once_and_alike():
    """Few distinct values take another way than many; both are the formula."""
    torch.manual_seed(0)
    encoder = ContinuousValueEncoder(16, 0.0, (-2, 50)).double()
    gradients = []
    for values in (torch.tensor([3.0, -2.0, 3.0, 600.0, 512.0, 3.0, 3.0, -2.0, 3.0, 3.0]), torch.arange(-2.0, 5.0)):
        x = values.double().clamp(max=512)[:, None]
        inner = torch.relu(x @ encoder.linear1.weight.T + encoder.linear1.bias)
        expected = encoder.norm(inner @ encoder.linear2.weight.T + encoder.linear2.bias)
        found = encoder(values)
        torch.testing.assert_close(found, expected)
        for out in (found, expected):
            encoder.zero_grad()
            (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
            gradients.append([p.grad.clone() for p in encoder.parameters()])
        torch.testing.assert_close(gradients[-2], gradients[-1])


def test_dropout_of_values_falls_on_every_token_by_itself():
    encoder = ContinuousValueEncoder(16, 0.5, (-2, 50)).train()
    out = encoder(torch.full((8,), 3.0))
    assert len((out == 0).unique(dim=0)) > 1
