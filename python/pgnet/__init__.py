"""pgnet: HTTP as part of a PostgreSQL transaction."""

from __future__ import annotations

__version__ = "0.1"
