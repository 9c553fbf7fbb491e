"""Teach language models to read longer inputs and to write longer outputs."""

__version__ = "0.1.0"
