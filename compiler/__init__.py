"""The compiler: a Hugging Face model in, one bundle out."""

from __future__ import annotations

from cpuc.compiler.pipeline import compile

__all__ = ["compile"]
