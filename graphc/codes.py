"""The table of error codes: what ``graphc explain`` prints, and what `graphc.errors.error` may be given.

A code is one kind of error, found under the same number for ever: codes are never reused. The first two digits are the
part that complains.
"""

from __future__ import annotations

from graphc.codes_base import Code
from graphc.codes_model import MODEL
from graphc.codes_use import USE

__all__ = ["CODES", "Code"]

CODES: dict[str, Code] = MODEL | USE
