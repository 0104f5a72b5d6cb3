"""What an error code is."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Code"]


@dataclass(frozen=True, slots=True)
class Code:
    """One kind of error: ``title`` in a few words, what it ``means``, an ``example`` and the ``remedy``."""

    title: str
    means: str
    example: str
    remedy: str

    @property
    def explain(self) -> str:
        return f"{self.means}\n\nExample: {self.example}\n\n{self.remedy}"
