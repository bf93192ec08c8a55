"""Learning to bring batches together, and doing it again for new cells. Knows no AnnData.

cells with batches -> fine-tuned with the recipe of a preset -> a model's folder that embeds cells of these batches,
                      and by a stated policy those of others

Where a network normalises each batch apart (preset "paper"), its statistics are taken when it has learned, over all
cells of a batch with nothing hidden, as cells are embedded. The published code keeps running means over cells with
hidden values, with which statistics of other batches, taken from their cells, could not be compared.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scgpt_tl._files import replacing
from scgpt_tl.core.scgpt import Network
from scgpt_tl.engine.config import FINETUNE, TrainConfig
from scgpt_tl.engine.finetune import finetune, in_words_of_a_task
from scgpt_tl.engine.predict import ROWS, Compute, Seen, embed_rows, minibatches
from scgpt_tl.engine.recipes import INTEGRATION, INTEGRATION_KIN, Recipe
from scgpt_tl.engine.run import another, data_card, earlier
from scgpt_tl.models.model import Model, load_model
from scgpt_tl.tokens.tokenize import Tokenizer, ahead

if TYPE_CHECKING:
    from pathlib import Path

    from scipy.sparse import csr_matrix

    from scgpt_tl.core.config import ModelConfig
    from scgpt_tl.engine.study import Source

#: What to do with cells of a batch that a model has not learned.
NEW_BATCHES = ("mean", "adapt", "refuse")
PRESETS: Mapping[str, Recipe] = {"auto": INTEGRATION_KIN, "paper": INTEGRATION}

_FORMAT = 2  # 1: before the first release, running statistics
SMALL = 256  # width below which a network takes larger steps than the published 51 M one
_SHOWN = 12_000  # cells that a small network is shown in all
_TOKENS = 32_768  # of a minibatch whose statistics are taken


def train_for(
    preset: str, config: ModelConfig, given: TrainConfig | Mapping[str, Any] | None, n_cells: int
) -> TrainConfig:
    """Training options: those of the preset with what the user gave.

    "paper": as published (section 4.5, and the integration tutorial): rate 1e-4, times 0.9 after each of 15 epochs, 64
    cells a step, zeros shown, the best of a tenth held out. "auto" drops zeros; a network that is small takes larger
    steps, with a cosine schedule, and is shown about 12,000 cells in 3 to 8 epochs.
    """
    train = _default(preset, config, n_cells).changed(given)
    if train.devices * train.nodes > 1:
        msg = (
            f"devices={train.devices}, nodes={train.nodes}: integration learns in one process; give devices=1, or "
            "tl.scgpt_finetune(recipe='integration') and its model as model= here"
        )
        raise ValueError(msg)
    return train


def _default(preset: str, config: ModelConfig, n_cells: int) -> TrainConfig:
    paper = replace(FINETUNE, epochs=15, cells=64, max_length=1201, zeros=True)
    if preset == "paper":
        return paper
    if config.d_model >= SMALL:
        return replace(paper, zeros=False)
    epochs = min(8, max(3, -(-_SHOWN // max(1, n_cells))))
    how: dict[str, Any] = {"schedule": "cosine", "warmup": 0.05, "held_out": 0.05, "keep": "last"}
    return replace(FINETUNE, epochs=epochs, cells=64, max_length=128, learning_rate=1e-3, **how)


@dataclass(frozen=True)
class Integrator:
    """A model that has learned to bring batches together."""

    model: Model
    """With `batches`."""
    preset: str
    genes: tuple[str, ...]
    """Names in the vocabulary of the genes that it learned from; it is shown no others."""
    zeros: bool
    """Shown the genes that a cell does not express, too."""
    seed: int
    """Of tied bins and of the samples of long cells."""

    @classmethod
    def of(cls, model: Model) -> Integrator:
        """The integrator that a model's folder holds.

        Raises
        ------
        ValueError
            The model has not learned to integrate, is of another version, or was changed after it learned.
        """
        kept = model.provenance.get("integration")
        if not isinstance(kept, Mapping) or model.batches is None:
            msg = (
                f"model {model.name!r} normalises batches apart and is no folder that tl.scgpt_integrate(..., save=) "
                "has made: give one of these, or the model from which to learn"
            )
            raise ValueError(msg)
        if kept.get("format") != _FORMAT:
            msg = (
                f"the integration of model {model.name!r} has format {kept.get('format')!r}, this scgpt_tl reads "
                f"{_FORMAT}: use the release that made it, or integrate anew from a model that has not learned to"
            )
            raise ValueError(msg)
        try:
            found = cls(model, kept["preset"], tuple(kept["genes"]), bool(kept["zeros"]), int(kept["seed"]))
            whole = kept["sha256"] == found.sha256
        except (KeyError, TypeError, ValueError):
            whole = False
        if not whole:
            msg = (
                f"the integration of model {model.name!r} does not belong to its weights, config, batches and genes: "
                "one of them was changed after it learned, by hand or by training on; take the folder as it was saved"
            )
            raise ValueError(msg)
        return found

    @property
    def sha256(self) -> str:
        """Of all that decides what is told."""
        model, own = self.model, [_FORMAT, self.preset, self.genes, self.zeros, self.seed]
        parts = [*own, model.batches, model.config.to_dict(), model.vocab.sha256, model.sha256]
        return sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def per_batch(self) -> bool:
        """Each batch is normalised by statistics of its own."""
        return self.model.config.input_norm == "domain"

    def bundle(self, **told: Any) -> Model:
        """The model, with what `of` reads and whatever else is `told` (plain values)."""
        kept = {"format": _FORMAT, "preset": self.preset, "genes": list(self.genes), "zeros": self.zeros}
        kept |= {"seed": self.seed, "sha256": self.sha256, **told}
        return replace(self.model, provenance={**self.model.provenance, "integration": kept})

    def tokenizer(self, column_ids: np.ndarray) -> Tokenizer:
        """For rows whose columns (n_vars,) are these ids of the vocabulary, -1: none."""
        learned = self.model.vocab.ids(list(self.genes))
        length = max(self.model.config.max_length, len(self.genes) + 1)  # every gene, as it was chosen
        return self.model.tokenizer(column_ids, genes=learned, max_length=length, zeros=self.zeros, seed=self.seed)

    def embed(
        self,
        rows: Iterator[tuple[int, csr_matrix]],
        column_ids: np.ndarray,
        codes: np.ndarray,
        *,
        compute: Compute,
        seen: Seen | None = None,
    ) -> np.ndarray:
        """(n, D) float32 of length 1; `codes` (n,) int64 says which batch each row is of. `seen` counts."""
        out = np.empty((len(codes), self.model.config.d_model), np.float32)
        batches = codes if self.per_batch else None
        how: dict[str, Any] = {"compute": compute, "total": len(codes), "batches": batches, "seen": seen}
        embed_rows(self.model.backbone, rows, self.tokenizer(column_ids), out, **how)
        return out

    def measured(self, rows: Iterator[tuple[int, csr_matrix]], column_ids: np.ndarray, codes: np.ndarray) -> Integrator:
        """With the statistics of each batch taken anew from these rows, all genes shown; no weight changes.

        `codes` (n,) int64 says which batch each row is of; -1: of none, it is not looked at. Batches without a row keep
        theirs.
        """
        if not self.per_batch:
            return self
        network = _copy(self.model)
        _measure(network, rows, self.tokenizer(column_ids), codes)
        return replace(self, model=replace(self.model, network=network))

    def extended(self, names: Sequence[str]) -> Integrator:
        """With more batches, each with the mean statistics, and the mean embedding, of those that were learned."""
        old = self.model
        config = replace(old.config, n_batches=old.config.n_batches + len(names))
        network = Network(config)
        state = {name: x.clone() for name, x in old.network.state_dict().items()}
        first, k = old.config.n_batches, len(names)
        for name in [name for name in state if name.startswith("heads.batches.table.") or ".dar.out." in name]:
            state[name] = torch.cat([state[name], state[name].mean(0, keepdim=True).expand(k, *state[name].shape[1:])])
        for part in ("running_mean", "running_var", "num_batches_tracked") if self.per_batch else ():
            known = torch.stack([state[f"backbone.input_norm.norms.{i}.{part}"] for i in range(first)])
            mean = known.double().mean(0).to(known.dtype)
            state |= {f"backbone.input_norm.norms.{i}.{part}": mean.clone() for i in range(first, first + k)}
        network.load_state_dict(state)
        batches = (*(old.batches or ()), *names)
        return replace(self, model=replace(old, config=config, network=network.eval(), batches=batches))


@dataclass(frozen=True)
class Lesson:
    """What is learned from."""

    source: Source
    """With batches. Columns not read are named ""."""
    genes: tuple[str, ...]
    """Of the vocabulary, sorted."""
    told: dict[str, Any]
    """What a model's folder says of the cells, plain values."""


def learn(
    lesson: Lesson,
    *,
    model: Model,
    preset: str,
    train: TrainConfig,
    out: Path,
    kin: Callable[[], np.ndarray],
    seed: int = 0,
    overwrite: bool = False,
) -> Model:
    """An integrator in the folder `out`: the model that `Integrator.of` reads.

    A call that was cut off goes on where it was; one that has ended gives what it made.

    Parameters
    ----------
    lesson
        Cells and their batches.
    model
        To start from; it is left as it is.
    preset
        See `PRESETS`.
    train
        From `train_for`.
    out
        New or empty, or left by the same call.
    kin
        Makes the groups (n_cells,) int64 that the recipe of some presets asks for.
    seed
        Of everything.
    overwrite
        Replace what `out` holds, and do not go on with an earlier run.

    Raises
    ------
    FileExistsError
        `out` holds another model; before anything is learned.
    """
    recipe, run = PRESETS[preset], _run(lesson, model, preset, train, seed)
    if not overwrite and (done := _finished(out, run, lesson, model, recipe)):
        return done
    source, kept = lesson.source, out.with_name(f"{out.name}.kin-{run[:12]}.npz")
    if recipe.needs_labels:
        groups = _kept(kept, run, kin, anew=overwrite)
        source = replace(source, labels=groups.astype(str).astype(object))
    how: dict[str, Any] = {"recipe": recipe, "train": train, "seed": seed}
    with in_words_of_a_task():
        found = finetune([source], model=model, out=out, resume=not overwrite, overwrite=overwrite, **how)
    if recipe.needs_labels:  # groups were a means, and are no cell types
        config = found.config if "cls" in found.config.heads else replace(found.config, n_classes=0)
        found = replace(found, labels=None, config=config)
    names = {name: i for i, name in enumerate(found.batches or ())}
    codes = np.array([names[str(batch)] for batch in source.batches], np.int64)  # type: ignore[union-attr]
    made = Integrator(found, preset, lesson.genes, train.zeros, seed)
    made = made.measured(source.matrix.blocks(ROWS), found.vocab.ids(source.genes), codes)
    bundle = made.bundle(run=run, **lesson.told)
    bundle.save(out, card=_card(bundle), overwrite=True)
    for left in out.parent.glob(f"{glob.escape(out.name)}.kin-*.npz"):  # of runs that were given up, too
        left.unlink(missing_ok=True)
    return load_model(out)


def _run(lesson: Lesson, model: Model, preset: str, train: TrainConfig, seed: int) -> str:
    """What makes two calls the same."""
    source = lesson.source
    parts = [_FORMAT, preset, train.learned, seed, model.sha256, source.manifest, source.genes]
    return sha256(json.dumps([*parts, list(map(str, source.batches))]).encode()).hexdigest()  # type: ignore[arg-type]


@in_words_of_a_task()
def _finished(out: Path, run: str, lesson: Lesson, model: Model, recipe: Recipe) -> Model | None:
    """What the same call has made before; another model is refused."""
    if (found := earlier(out)) is None:
        return None
    told = found.provenance
    if told.get("integration", {}).get("run") == run:
        return Integrator.of(found).model
    held = {"base": model.sha256, "recipe": recipe.name, "data": lesson.source.manifest["sha256"]}
    try:  # trained, and cut off before its statistics were taken: the same fine-tuning goes on from there
        said = {"base": told["base"]["sha256"], "recipe": told["recipe"]["name"], "data": told["data"][0]["sha256"]}
    except (KeyError, TypeError, IndexError):
        said = {}
    if "integration" in told or said != held:
        raise another(out, found)
    return None


def _kept(file: Path, run: str, make: Callable[[], np.ndarray], *, anew: bool) -> np.ndarray:
    """Groups of an earlier sitting of the same run, or new ones, kept until it ends.

    The last bit of an embedding may decide on a neighbour, and a run goes on with the same groups only.
    """
    if file.exists() and not anew:
        with np.load(file) as held:
            if str(held["run"]) == run:
                return held["groups"]
    groups = make()
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as beside, beside.open("wb") as stream:
        np.savez(stream, run=run, groups=groups)
    return groups


def _copy(model: Model) -> Network:
    network = Network(model.config)
    network.load_state_dict(model.network.state_dict())
    return network.eval()


@torch.no_grad()
def _measure(network: Network, rows: Iterable[tuple[int, csr_matrix]], tokenizer: Tokenizer, codes: np.ndarray) -> None:
    """Write mean and variance of the token inputs of each batch into its norm."""
    backbone, norm = network.backbone, network.backbone.input_norm
    n, width = network.config.n_batches, network.config.d_model
    sums, squares, counts = torch.zeros(n, width).double(), torch.zeros(n, width).double(), torch.zeros(n).double()
    tables = backbone.tables()
    for start, block in ahead(iter(rows), tokenizer):
        for some in minibatches(block.lengths, _TOKENS):
            cells = some[codes[start + some] >= 0]
            batch = block.batch(cells)
            x = tables.look_up(batch.gene_ids, batch.values).double()
            domain = torch.from_numpy(codes[start + cells])[batch.cell_index]
            sums.index_add_(0, domain, x)
            squares.index_add_(0, domain, x * x)
            counts.index_add_(0, domain, torch.ones(len(domain)).double())
    for i in torch.nonzero(counts > 1).flatten().tolist():
        mean = sums[i] / counts[i]
        norm.norms[i].running_mean.copy_(mean)  # type: ignore[union-attr]
        norm.norms[i].running_var.copy_((squares[i] / counts[i] - mean**2).clamp(min=0))  # type: ignore[union-attr]


def _card(model: Model) -> str:
    """MODEL_CARD.md, from what the folder knows."""
    kept, base = model.provenance["integration"], model.provenance["base"]
    names, batches = model.batches or (), ", ".join(model.batches or ())
    return f"""# {model.name}

Brings {len(names)} batches of `{kept["batch_key"]}` together ({batches}),
learned by `scgpt_tl.tl.scgpt_integrate` (preset "{kept["preset"]}") from `{base["name"]}` (weights
{base["sha256"][:12]}) on {len(kept["genes"]):,} genes of:

{data_card(model.provenance)}
Use: `scgpt_tl.tl.scgpt_integrate(cells, batch_key=..., model="this folder")`; cells of batches that it has not learned
are embedded as `new_batches=` says.

## Limits

It knows the batches above; what differs between them is taken for technical, whether or not it is. Compare with the
zero-shot embedding, with HVG + PCA, and with Harmony.
"""
