"""konomi (好み): tune a text-to-image diffusion model to your own taste."""

__version__ = "0.1.0"
