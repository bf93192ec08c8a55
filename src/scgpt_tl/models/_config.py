"""What the JSON file of a model folder says, read alike in both kinds of folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scgpt_tl.core.config import ModelConfig
from scgpt_tl.models._weights import skeleton

if TYPE_CHECKING:
    from scgpt_tl.core.scgpt import Network


def described(values: dict[str, Any], file: Path) -> Network:
    """A network of shapes alone, by the values of a config.

    Raises
    ------
    ValueError
        There is no such network; the message names `file`.
    """
    try:
        return skeleton(ModelConfig.from_dict(values))
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:  # torch asserts some of its arguments
        msg = f"{file} describes no network of this package ({error}); fetch it again or use a newer release"
        raise ValueError(msg) from error


def names_of(values: Mapping[str, Any], key: str, file: Path) -> tuple[str, ...] | None:
    """Labels or batches; None where the file has none.

    Raises
    ------
    ValueError
        It holds something else; the message names `file`.
    """
    found = values.get(key)
    if found is None:
        return None
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        msg = f"{file}: {key} is not a list of names"
        raise ValueError(msg)
    return tuple(found)


def digest(head: Mapping[str, Any]) -> str:
    """sha256 of what a head says of the network and its outputs; as JSON has it, so that tuples are lists."""
    told = {key: head.get(key) for key in ("config", "labels", "batches")}
    return sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
