"""ashnets: artificial-spiking vision-language models whose spiking encoder goes to the chip, every spike equal."""

__version__ = "0.1.0"
