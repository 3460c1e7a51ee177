"""The river valley of arXiv 2505.10559, motion in it, and the gradient noise of networks."""

from thermoopt.landscape.gradient_noise import GradientNoise, NoiseSpectrum, gradient_noise, noise_spectrum
from thermoopt.landscape.motion import Mean, Motion, average, simulate
from thermoopt.landscape.river_valley import RULES, RiverValley, greedy_rates, relaxation

__all__ = [
    "RULES",
    "GradientNoise",
    "Mean",
    "Motion",
    "NoiseSpectrum",
    "RiverValley",
    "average",
    "gradient_noise",
    "greedy_rates",
    "noise_spectrum",
    "relaxation",
    "simulate",
]
