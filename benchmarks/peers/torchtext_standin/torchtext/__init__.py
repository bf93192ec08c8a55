"""The few lines of torchtext that scgpt 0.2.4 calls: torchtext itself is no longer built for current torch."""

__version__ = "0.0.0+standin"
