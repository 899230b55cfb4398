"""aimport: batch mail import for many users at once.

The public names of the library; everything else may change between minor versions.
"""

from __future__ import annotations

__version__ = "0.1.0"

__all__ = ["__version__"]
