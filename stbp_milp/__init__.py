"""Complete verification of video and volume networks against spatio-temporal perturbations."""

from stbp_milp.versions import VERSION as __version__

__all__ = ["__version__"]
