"""Rows become tensors: the only bridge from AnnData to the core."""

from __future__ import annotations
