"""scgpt_tl: the scGPT family of single-cell foundation models, in scanpy's manners.

`import scgpt_tl` loads the standard library alone; each room opens when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scgpt_tl._lazy import attach

if TYPE_CHECKING:
    from scgpt_tl import datasets as datasets
    from scgpt_tl import get as get
    from scgpt_tl import metrics as metrics
    from scgpt_tl import models as models
    from scgpt_tl import pl as pl
    from scgpt_tl import pp as pp
    from scgpt_tl import tl as tl
    from scgpt_tl.engine import TrainConfig as TrainConfig
    from scgpt_tl.genes import GeneVocab as GeneVocab
    from scgpt_tl.models import load_model as load_model

__version__ = "0.1.0.dev0"

__getattr__, __dir__, __all__ = attach(
    __name__,
    {"GeneVocab": "genes", "TrainConfig": "engine", "load_model": "models"},
    rooms=("datasets", "get", "metrics", "models", "pl", "pp", "tl"),
    also=("__version__",),
)
