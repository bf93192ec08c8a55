"""The published package's folder: strict, of any age, both ways."""

from __future__ import annotations

import json
import shutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scgpt_tl.models.model import Model, load_model
from scgpt_tl.models.official import DEFAULTS, export_state

VARIANTS = [
    "plain", "ezp", "batch_dab", "dsbn", "bn", "category", "scaling", "wpool", "flash_pre", "pert", "pert_adapt",
    "mo_mod_batch", "mo_mod", "mo_batch", "mo_none",
]  # fmt: skip
Table = OrderedDict[str, torch.Tensor]
GENES, MIDDLE = "encoder.embedding.weight", "transformer_encoder.layers.0.linear1.weight"


@pytest.fixture(scope="module")
def modules(golden: Path) -> np.lib.npyio.NpzFile:
    return np.load(golden / "modules.npz")


def weights(folder: Path) -> Table:
    return torch.load(folder / "best_model.pt", weights_only=True)


def same(a: Table, b: Table) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


class TestReading:
    def test_what_args_json_says(self, tiny: Path):
        config = load_model(tiny).config
        assert (config.d_model, config.n_layers, config.n_heads, config.d_ff) == (64, 2, 4, 64)
        assert (config.n_bins, config.max_length, config.dropout) == (51, 1200, 0.2)
        assert (config.pad_value, config.mask_value, config.cls_value) == (-2, -1, -2)
        assert (config.ties, config.value_style, config.cell_style, config.n_layers_cls) == (
            "spread", "continuous", "cls", 3,
        )  # fmt: skip
        assert config.flag_unknown
        assert config.unknown_skips_projection

    def test_other_numbers_are_read_not_assumed(self, official: Path, edit_json):
        edit_json(official / "args.json", nheads=8, n_bins=31, max_seq_len=77, pad_value=-3, mask_value=-4, dropout=0.1)
        config = load_model(official).config
        assert (config.n_heads, config.n_bins, config.max_length, config.dropout) == (8, 31, 77, 0.1)
        assert (config.pad_value, config.mask_value, config.cls_value) == (-3, -4, -3)

    @pytest.mark.parametrize("value", [None, ...])
    def test_layers_of_a_head_that_is_not_there_need_no_number(self, official: Path, edit_json, value):
        edit_json(official / "args.json", n_layers_cls=value)
        assert load_model(official).config.n_layers_cls == 3

    def test_provenance(self, official: Path, edit_json):
        model = load_model(official)
        assert model.provenance["format"] == "official"
        assert model.provenance["args"]["embsize"] == 64
        assert model.provenance["assumed"] == {}

    def test_without_a_flag_encoder_unknown_genes_are_projected(self, official: Path, edit_weights):
        edit_weights(official, without("flag_encoder"))
        config = load_model(official).config
        assert not config.flag_unknown
        assert not config.unknown_skips_projection

    @pytest.mark.parametrize("key", DEFAULTS)
    def test_defaults_are_stated(self, official: Path, edit_json, key: str, caplog: pytest.LogCaptureFixture):
        edit_json(official / "args.json", **{key: ...})
        with caplog.at_level("INFO", logger="scgpt_tl"):
            model = load_model(official)
        assert model.provenance["assumed"] == {key: DEFAULTS[key]}
        assert f"does not say {key}" in caplog.text

    def test_special_tokens_are_appended_as_published(self, official: Path, edit_json):
        """The released vocabularies lack them; the tables have their rows, last."""
        names = json.loads((official / "vocab.json").read_text())
        for special in ("<pad>", "<cls>", "<eoc>"):
            names.pop(special)
        (official / "vocab.json").write_text(json.dumps(names))
        model = load_model(official)
        assert (model.vocab.pad_id, model.vocab.cls_id, model.vocab.eoc_id) == (1000, 1001, 1002)

    @pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no list of a process's mapped files")
    def test_weights_are_mapped_not_copied(self, official: Path, native: Path):
        """So that memory does not double."""
        for folder, name in ((official, "best_model.pt"), (native, "model.safetensors")):
            model = load_model(folder)
            mapped = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
            spans = [[int(x, 16) for x in line[0].split("-")] for line in mapped if line[-1] == str(folder / name)]
            for tensor in model.network.state_dict().values():
                assert any(start <= tensor.data_ptr() < end for start, end in spans)

    def test_category_values_have_their_special_values_behind_the_bins(self, modules, tmp_path: Path):
        state = OrderedDict(
            (name.removeprefix("sd/category/"), torch.from_numpy(modules[name]))
            for name in modules.files
            if name.startswith("sd/category/")
        )
        config = load_model(official_folder(tmp_path / "category", state, pad_value=-2, mask_value=-1)).config
        assert (config.value_style, config.pad_value, config.mask_value, config.cls_value) == ("category", 51, 52, 51)

    def test_half_precision_becomes_single(self, official: Path, edit_weights):
        edit_weights(official, lambda state: OrderedDict((k, v.half()) for k, v in state.items()))
        assert {p.dtype for p in load_model(official).network.parameters()} == {torch.float32}


def without(*beginnings: str) -> Callable[[Table], Table]:
    return lambda state: OrderedDict((k, v) for k, v in state.items() if not k.startswith(beginnings))


def renamed(old: str, new: str) -> Callable[[Table], Table]:
    return lambda state: OrderedDict((k.replace(old, new), v) for k, v in state.items())


class TestNamesOfAnyAge:
    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("self_attn.Wqkv.", "self_attn.in_proj_"),
            ("self_attn.", "self_attn._impl."),
            ("", "module."),
        ],
    )
    def test_spelling(self, official: Path, edit_weights, old: str, new: str):
        expected = load_model(official).sha256
        if old:
            edit_weights(official, renamed(old, new))
        else:
            edit_weights(official, lambda state: OrderedDict((new + k, v) for k, v in state.items()))
        model = load_model(official)
        assert model.sha256 == expected
        assert any(new in name for name in model.coverage.loaded)

    def test_files_from_before_zip(self, official: Path):
        expected = load_model(official).sha256
        torch.save(weights(official), official / "best_model.pt", _use_new_zipfile_serialization=False)
        assert load_model(official).sha256 == expected

    def test_the_same_weight_under_two_names(self, official: Path, edit_weights):
        def twice(state: Table) -> Table:
            return OrderedDict([*state.items(), ("module.decoder.fc.0.bias", torch.zeros(64))])

        edit_weights(official, twice)
        with pytest.raises(ValueError, match=r"twice, as 'decoder.fc.0.bias' and 'module.decoder.fc.0.bias'"):
            load_model(official)
        assert load_model(official, ignore="module.").coverage.left_out == ("module.decoder.fc.0.bias",)


class TestRoundTrip:
    def test_official_native_official(self, tiny: Path, tmp_path: Path):
        native = load_model(tiny).save(tmp_path / "native")
        back = load_model(native).export_official(tmp_path / "back")
        assert same(weights(back), weights(tiny))
        assert json.loads((back / "args.json").read_text()) == json.loads((tiny / "args.json").read_text()) | {
            "input_style": "binned", "input_emb_style": "continuous",
        }  # fmt: skip
        assert load_model(back).vocab == load_model(tiny).vocab
        assert load_model(back).config == load_model(tiny).config

    @pytest.mark.parametrize("tag", VARIANTS)
    def test_fine_tuned_folders_of_every_kind(self, modules, tag: str, tmp_path: Path, edit_json):
        """Classifier, adversary, batch norms, batch and modality encoders: all load, and all go back by their names."""
        state = OrderedDict(
            (name.removeprefix(f"sd/{tag}/"), torch.from_numpy(modules[name]))
            for name in modules.files
            if name.startswith(f"sd/{tag}/")
        )
        folder = official_folder(tmp_path / tag, state)
        model = load_model(folder)
        assert len(model.coverage.loaded) == len(state)
        native = load_model(model.save(tmp_path / "native"))
        assert native.config == model.config
        spelling = "Wqkv" if any("Wqkv" in name for name in state) else "in_proj"
        back = native.export_official(tmp_path / "back", attention_names=spelling)
        assert same(weights(back), state)
        assert load_model(back).config == model.config

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        heads=st.sets(st.sampled_from(["gep", "gepc", "cls", "dar", "perturb"])),
        options=st.fixed_dictionaries(
            {
                "ties": st.sampled_from(["spread", "upper"]),
                "cls_value": st.sampled_from([-2.0, 0.0]),
                "pad_value": st.sampled_from([-2.0, 0.0]),
                "n_bins": st.integers(2, 99),
                "max_length": st.integers(2, 9999),
                "dropout": st.sampled_from([0.0, 0.1, 0.5]),
                "attn_dropout": st.sampled_from([0.0, 0.1]),
                "value_style": st.sampled_from(["continuous", "category", "scaling"]),
                "norm_scheme": st.sampled_from(["post", "published_pre"]),
                "input_norm": st.sampled_from(["none", "batch", "domain"]),
                "cell_style": st.sampled_from(["cls", "w-pool"]),
                "n_conditions": st.sampled_from([0, 3]),
                "flag_unknown": st.booleans(),
                "unknown_skips_projection": st.booleans(),
                "zero_probability": st.booleans(),
                "adaptive_offset": st.booleans(),
                "batch_in_heads": st.booleans(),
                "n_modalities": st.sampled_from([0, 2]),
                "context_in_queries": st.booleans(),
                "n_layers_cls": st.integers(1, 4),
                "gepc_style": st.sampled_from(["inner product", "concat query", "sum query"]),
            }
        ),
    )
    def test_any_model_of_ours(self, make_model, tmp_path_factory: pytest.TempPathFactory, heads: set, options: dict):
        """What args.json has no word for goes along in an object of its own."""
        labels = tuple(f"type/{i}" for i in range(4))
        model = make_model(
            heads=tuple(heads), n_classes=4, n_batches=3, labels=labels, batches=("a", "b", "c"), **options
        )
        folder = model.export_official(tmp_path_factory.mktemp("any") / "model")
        again = load_model(folder)
        assert again.sha256 == model.sha256
        assert set(again.config.heads) == heads
        assert again.config.to_dict() | {"heads": 0} == model.config.to_dict() | {"heads": 0}
        assert (again.labels, again.batches) == (model.labels, model.batches)

    def test_in_proj_names(self, tiny: Path, tmp_path: Path):
        folder = load_model(tiny).export_official(tmp_path / "torch", attention_names="in_proj")
        names = weights(folder).keys()
        assert "transformer_encoder.layers.1.self_attn.in_proj_weight" in names
        assert not any("Wqkv" in name for name in names)
        assert load_model(folder).sha256 == load_model(tiny).sha256
        with pytest.raises(ValueError, match="attention_names='qkv', expected 'Wqkv'"):
            load_model(tiny).export_official(tmp_path / "no", attention_names="qkv")

    def test_exports_are_plain_float32(self, make_model, tmp_path: Path):
        """No wrapper, no views of a larger file, nothing that needs this package."""
        model = make_model()
        model.network.bfloat16()
        state = weights(model.export_official(tmp_path / "half"))
        assert type(state) is OrderedDict
        assert all(t.dtype == torch.float32 and t.untyped_storage().nbytes() == 4 * t.numel() for t in state.values())

    def test_a_view_of_a_larger_tensor_does_not_take_it_along(self, make_model, tmp_path: Path):
        model = make_model()
        bias = model.backbone.genes.norm.bias
        bias.data = torch.cat([bias.data, torch.zeros(10_000)])[: len(bias)]
        state = weights(model.export_official(tmp_path / "view"))
        assert all(t.untyped_storage().nbytes() == 4 * t.numel() for t in state.values())

    def test_what_no_longer_holds_is_not_exported(self, make_model, tmp_path: Path):
        model = make_model()
        model.provenance["args"] = {
            "seed": 7,
            "embsize": 99,
            "scgpt_tl": {"labels": ["old"], "config": {"ties": "upper"}},
        }
        folder = model.export_official(tmp_path / "model")
        args = json.loads((folder / "args.json").read_text())
        assert (args["seed"], args["embsize"]) == (7, 16)
        assert "scgpt_tl" not in args
        assert load_model(folder).config == model.config

    def test_a_weight_that_has_no_published_name_is_refused(self, make_model, tmp_path: Path):
        model = make_model()
        model.network.backbone.novelty = torch.nn.Linear(2, 2)
        with pytest.raises(ValueError, match=r"no place for 'backbone.novelty.weight'; .*Model.save"):
            export_state(model)
        with pytest.raises(ValueError, match="no place for"):
            model.export_official(tmp_path / "model")
        assert list(tmp_path.iterdir()) == []


def official_folder(folder: Path, state: Table, **args: object) -> Path:
    """The 768 tokens, 64 wide, of the golden modules."""
    folder.mkdir()
    torch.save(state, folder / "best_model.pt")
    layers = {name.split(".")[2] for name in state if "transformer_encoder" in name}
    sizes = {"embsize": 64, "nheads": 4, "d_hid": 64, "nlayers": len(layers), "n_layers_cls": 3}
    sizes["d_hid"] = len(state["transformer_encoder.layers.0.linear1.weight"])
    (folder / "args.json").write_text(json.dumps(sizes | args))
    (folder / "vocab.json").write_text(json.dumps({f"G{i}": i for i in range(765)}))
    return folder


class TestStrictness:
    def test_heads_may_be_absent_as_a_whole(self, official: Path, edit_weights):
        edit_weights(official, without("mvc_decoder"))
        model = load_model(official)
        assert model.config.heads == ("gep",)
        assert model.coverage.absent_heads == ("gepc", "cls", "dar", "perturb")
        assert "no weights in the file for the heads gepc, cls, dar, perturb" in str(model.coverage)

    @pytest.mark.parametrize(
        "name",
        [
            "encoder.enc_norm.bias",
            "value_encoder.linear2.weight",
            "transformer_encoder.layers.1.self_attn.out_proj.bias",
            "decoder.fc.2.bias",
            "mvc_decoder.W.weight",
        ],
    )
    def test_a_missing_weight_is_named(self, official: Path, edit_weights, name: str):
        edit_weights(official, without(name))
        with pytest.raises(ValueError, match=f"missing     {name}"):
            load_model(official)

    @pytest.mark.parametrize("name", ["encoder.embedding.weight", "transformer_encoder.layers.0.linear1.weight"])
    def test_a_file_of_something_else(self, official: Path, edit_weights, name: str):
        edit_weights(official, without(name))
        with pytest.raises(ValueError, match=f"lacks {name}, which every scGPT model has"):
            load_model(official)

    def test_every_amiss_name_is_told_at_once(self, official: Path, edit_weights):
        def change(state: Table) -> Table:
            state["foreign.weight"] = torch.zeros(3)
            state["decoder.fc.0.bias"] = torch.zeros(65)
            del state["decoder.fc.2.bias"], state["mvc_decoder.gene2query.bias"]
            return state

        edit_weights(official, change)
        with pytest.raises(ValueError, match="does not fit") as raised:
            load_model(official)
        for line in (
            "missing     decoder.fc.2.bias",
            "missing     mvc_decoder.gene2query.bias",
            "unexpected  foreign.weight (3,)",
            "misshapen   decoder.fc.0.bias has shape (65,), expected (64,)",
            "ignore=",
        ):
            assert line in str(raised.value)

    def test_foreign_weights_are_left_out_on_request(self, official: Path, edit_weights):
        expected = load_model(official).sha256
        edit_weights(official, lambda state: OrderedDict([*state.items(), ("sim.temp", torch.ones(1))]))
        with pytest.raises(ValueError, match=r"unexpected  sim.temp"):
            load_model(official)
        model = load_model(official, ignore=("sim.",))
        assert model.sha256 == expected
        assert model.coverage.left_out == ("sim.temp",)
        assert "left out    sim.temp" in str(model.coverage)

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("embsize", 32, "embsize is 32 and the weights have 64"),
            ("d_hid", 63, "d_hid is 63 and the weights have 64"),
            ("nlayers", 3, "nlayers is 3 and the weights have 2"),
            ("nheads", 5, "args.json: d_model=64 is not a multiple of n_heads=5"),
            ("nheads", ..., "nheads is None, expected a positive integer"),
            ("embsize", ..., "embsize is None"),
            ("nlayers", ..., "nlayers is None"),
            ("d_hid", ..., "d_hid is None"),
            ("embsize", "64", "embsize is '64'"),
            ("n_bins", 1, "n_bins=1: at least 2"),
            ("pad_value", "-2", "pad_value is '-2', expected a finite number"),
            ("mask_value", None, "mask_value is None, expected a finite number"),
            ("dropout", True, "dropout is True, expected a finite number"),
            ("dropout", 2, "dropout=2: a share from 0 to below 1"),
            ("pad_value", float("inf"), "pad_value is inf, expected a finite number"),
            ("mask_value", float("nan"), "mask_value is nan, expected a finite number"),
            ("max_seq_len", 1, "max_length=1: at least 2 .*max_length max_seq_len"),
            ("n_layers_cls", "3", "n_layers_cls='3': at least 1"),
            ("scgpt_tl", {"labels": 5}, "labels is not a list of names"),
            ("scgpt_tl", {"batches": "abc"}, "batches is not a list of names"),
            ("scgpt_tl", {"config": {"n_modalities": 2, "pad_modality": 5}}, "describes no network"),
            ("scgpt_tl", 3, "scgpt_tl is 3, expected an object"),
            ("scgpt_tl", {"config": {"tie": 1}}, "unknown model option 'tie'; did you mean 'ties'"),
            ("scgpt_tl", {"config": 4}, "scgpt_tl.config is not understood"),
        ],
    )
    def test_args_json(self, official: Path, edit_json, key: str, value: object, message: str):
        edit_json(official / "args.json", **{key: value})
        with pytest.raises(ValueError, match=message) as raised:
            load_model(official)
        assert "args.json" in str(raised.value)

    @pytest.mark.parametrize("n", [999, 1001])
    def test_the_vocabulary_of_another_model(self, official: Path, n: int):
        (official / "vocab.json").write_text(json.dumps({f"G{i}": i for i in range(n)}))
        with pytest.raises(ValueError, match=rf"vocab.json has {n + 3:,} names .* best_model.pt has 1,003 rows"):
            load_model(official)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_numbers_that_are_none(self, official: Path, edit_weights, value: float):
        def change(state: Table) -> Table:
            state["decoder.fc.2.bias"][3] = value
            return state

        edit_weights(official, change)
        with pytest.raises(ValueError, match=r"NaN or infinity in decoder.fc.2.bias"):
            load_model(official)


class Payload:
    """What a malicious checkpoint would hold."""

    def __reduce__(self) -> tuple:
        return Path.touch, (Path("pwned"),)


class TestBrokenFiles:
    def test_pickled_code_is_refused_and_not_run(self, official: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.chdir(official)
        for zipped in (True, False):
            torch.save({"a": Payload()}, official / "best_model.pt", _use_new_zipfile_serialization=zipped)
            with pytest.raises(ValueError, match=r"best_model.pt holds pickled code .*nothing of it was run"):
                load_model(official)
        assert not (official / "pwned").exists()

    def test_a_whole_pickled_module_is_refused(self, official: Path):
        torch.save(torch.nn.Linear(2, 2), official / "best_model.pt")
        with pytest.raises(ValueError, match="holds pickled code"):
            load_model(official)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (torch.zeros(3), "holds a Tensor, expected a table"),
            ([torch.zeros(3)], "holds a list, expected a table"),
            ({"model_state_dict": {"a": torch.zeros(1)}, "epoch": 3}, "no tensors: model_state_dict, epoch"),
        ],
    )
    def test_other_content(self, official: Path, content: object, message: str):
        torch.save(content, official / "best_model.pt")
        with pytest.raises(ValueError, match=message):
            load_model(official)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda state: OrderedDict(enumerate(state.values())), "whose names are no text: 0, 1, 2"),
            (lambda state: state | {GENES: state[GENES].to_sparse()}, "sparse, .*: encoder.embedding.weight"),
            (lambda state: state | {GENES: state[GENES].to("meta")}, "without numbers: encoder.embedding.weight"),
            (lambda state: state | {GENES: state[GENES].to(torch.complex64)}, "complex .*: encoder.embedding.weight"),
            (lambda state: state | {GENES: torch.tensor(1.0)}, r"embedding.weight of shape \(\): two dimensions"),
            (lambda state: state | {MIDDLE: torch.ones(3)}, r"linear1.weight of shape \(3,\): two dimensions"),
        ],
    )
    def test_tensors_of_another_kind(self, official: Path, edit_weights, change, message: str):
        edit_weights(official, change)
        with pytest.raises(ValueError, match=rf"best_model.pt holds .*{message}"):
            load_model(official)

    @pytest.mark.parametrize("name", ["best_model.pt", "vocab.json"])
    def test_half_a_folder(self, official: Path, name: str):
        (official / name).unlink()
        with pytest.raises(FileNotFoundError, match=f"lacks {name}"):
            load_model(official)

    def test_a_folder_without_its_mark(self, official: Path):
        (official / "args.json").unlink()
        with pytest.raises(FileNotFoundError, match=r"not a model folder, which holds .*args.json"):
            load_model(official)

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        share=st.floats(0, 0.9999),
        name=st.sampled_from(["args.json", "vocab.json", "best_model.pt"]),
        zipped=st.booleans(),
    )
    def test_every_truncated_file_is_named(self, official: Path, share: float, name: str, zipped: bool):
        whole = official / "best_model.pt"
        torch.save(weights(whole.parent), whole, _use_new_zipfile_serialization=zipped)
        file = official / name
        content = file.read_bytes()
        file.write_bytes(content[: int(share * (len(content) - 2))])
        try:
            with pytest.raises(ValueError, match=name):
                load_model(official)
        finally:
            file.write_bytes(content)

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(junk=st.binary(max_size=200), name=st.sampled_from(["args.json", "vocab.json", "best_model.pt"]))
    def test_junk_is_named(self, official: Path, junk: bytes, name: str):
        file = official / name
        content = file.read_bytes()
        file.write_bytes(junk)
        try:
            with pytest.raises(ValueError, match=name):
                load_model(official)
        finally:
            file.write_bytes(content)


def test_a_folder_that_both_kinds_claim_is_native(native: Path, tiny: Path):
    """config.json is looked for first."""
    shutil.copy(tiny / "args.json", native)
    assert load_model(native).provenance["format"] == "official"
    assert isinstance(load_model(native), Model)
