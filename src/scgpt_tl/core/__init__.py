"""The transformer and its parts: torch and CellBatch only; no AnnData, no files, no task flags."""

from __future__ import annotations
