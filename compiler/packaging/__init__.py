"""Packages: an artifact with the native program and every library that it needs, down to the C library."""

from __future__ import annotations

from cpuc.compiler.packaging.pipeline import Package, package

__all__ = ["Package", "package"]
