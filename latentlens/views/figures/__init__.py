"""Figures: one function a question, a result in, a plotly Figure out. plotly is imported when one is drawn.

by_layer(sweep)             where in the model can the label be read?
steering_effect(effect)     does the direction change what the model does, and does any other?
"""

from latentlens.views.figures.probing import by_layer
from latentlens.views.figures.steering import steering_effect

__all__ = ["by_layer", "steering_effect"]
