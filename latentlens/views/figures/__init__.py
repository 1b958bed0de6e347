"""Figures: one function a question, a result in, a plotly Figure out. plotly is imported when one is drawn.

by_layer(sweep)                 where in the model can the label be read?
steering_effect(effect)         does the direction change what the model does, and does any other?
token_layers(acts, direction)   where along the text and the depth is it?
highlight(acts, direction)      which tokens hold it? (coloured text)
logit_lens(lens)                what would the model say if it stopped here?
lens_at(lens, row=-1)           which block decides what follows?
paths(of)                       how do the states travel through a text?
regimes(values)                 does a metric tell the regimes apart?
by_regime(found)                how does it run along tokens or blocks, in each regime?
signal_quality(report)          do trajectory signals see reasoning, or count tokens?
dose_response(found)            how does the effect grow with strength, and where does the text break?
cosine_map(directions)          are these directions related?
latent_dashboard(codes, 17)     what is this latent? (a page)
calibration_curve(report)       can a probe's probabilities be believed?
sites_and_joins(report)         where can a concept be read, and is it more than words?
choices(selection)              what does choosing among answers gain, and save?
early_warning(curve)            how soon is a wrong text seen?
identity_matrix(found)          do directions and classifiers of concepts invert each other? identity_by_site: where?
patching_map(found)             where is the effect carried?
carriers(found)                 by which parts, and more than by chance?
cluster_probes(found)           where can a prompt's cluster be read?
style_shares(effects)           in which style does the model answer, by arm?
trait_doses(found)              does a trait's vector move it, and does anything else?
trait_monitor(panels)           does the projection foretell the trait of the answer?
method_bench(found)             which steering methods work at the same KL?
resistance_conditions(rates)    does the model start over, and does it help? (and further figures in `figures.esr`)
"""

from latentlens.views.figures.choices import choices, early_warning
from latentlens.views.figures.directions import cosine_map
from latentlens.views.figures.doses import dose_response
from latentlens.views.figures.esr import (
    ablation_dose,
    boost_curve,
    correction_traces,
    induced_correction,
    judge_agreement,
    raised_latents,
    resistance_conditions,
)
from latentlens.views.figures.gact import cluster_probes, style_shares
from latentlens.views.figures.identity import identity_by_site, identity_matrix
from latentlens.views.figures.intention import by_regime, regimes
from latentlens.views.figures.latents import latent_dashboard
from latentlens.views.figures.lens import lens_at, logit_lens
from latentlens.views.figures.method_bench import method_bench
from latentlens.views.figures.patching import carriers, patching_map
from latentlens.views.figures.paths import paths
from latentlens.views.figures.probe_checks import calibration_curve, sites_and_joins
from latentlens.views.figures.probing import by_layer
from latentlens.views.figures.signals import signal_quality
from latentlens.views.figures.steering import steering_effect
from latentlens.views.figures.tokens import highlight, token_layers
from latentlens.views.figures.traits import trait_doses, trait_monitor

__all__ = [
    "ablation_dose",
    "boost_curve",
    "by_layer",
    "by_regime",
    "calibration_curve",
    "carriers",
    "choices",
    "cluster_probes",
    "correction_traces",
    "cosine_map",
    "dose_response",
    "early_warning",
    "highlight",
    "identity_by_site",
    "identity_matrix",
    "induced_correction",
    "judge_agreement",
    "latent_dashboard",
    "lens_at",
    "logit_lens",
    "method_bench",
    "patching_map",
    "paths",
    "raised_latents",
    "regimes",
    "resistance_conditions",
    "signal_quality",
    "sites_and_joins",
    "steering_effect",
    "style_shares",
    "token_layers",
    "trait_doses",
    "trait_monitor",
]
