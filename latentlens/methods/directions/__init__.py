"""Find a direction: one function an estimator, rows in, a Direction (or the edit it parameterises) out.

    means        mean_difference  mean_centred  lda  concept_edit  act_add
    components   pair_component  plane
    heads        head_directions
    refusal      refusal_candidates  select_refusal
    latents      latent_direction  EffectFit  feature_guided
    transport    linear_transport
    capping      role_axis  capping
    cold         cold_edit  cold_direction  unit_kernel

Those that sums suffice for have a fitter as well, which takes rows in pieces: `MeanDifference`, `MeanCentring`,
`LinearDiscriminant`, `RoleAxis`, `PairComponent` with `MajoritySign`, `HeadMoments`, `EffectFit`. What has to run a
model for it stands beside them: `ll.measure_refusal`, `ll.measure_effects`, `ll.train_reft`, `ll.cold_states`.
docs/directions.md says what each of them needs, and where it misleads.
"""

from latentlens.methods.directions.capping import RoleAxis, capping, role_axis
from latentlens.methods.directions.cold import cold_changes, cold_direction, cold_edit, unit_kernel
from latentlens.methods.directions.components import MajoritySign, PairComponent, pair_component, plane
from latentlens.methods.directions.heads import HeadMoments, head_directions
from latentlens.methods.directions.latents import EffectFit, feature_guided, latent_direction
from latentlens.methods.directions.means import (
    LinearDiscriminant,
    MeanCentring,
    MeanDifference,
    act_add,
    concept_edit,
    lda,
    mean_centred,
    mean_difference,
)
from latentlens.methods.directions.refusal import refusal_candidates, select_refusal
from latentlens.methods.directions.transport import linear_transport

__all__ = [
    "EffectFit",
    "HeadMoments",
    "LinearDiscriminant",
    "MajoritySign",
    "MeanCentring",
    "MeanDifference",
    "PairComponent",
    "RoleAxis",
    "act_add",
    "capping",
    "cold_changes",
    "cold_direction",
    "cold_edit",
    "concept_edit",
    "feature_guided",
    "head_directions",
    "latent_direction",
    "lda",
    "linear_transport",
    "mean_centred",
    "mean_difference",
    "pair_component",
    "plane",
    "refusal_candidates",
    "role_axis",
    "select_refusal",
    "unit_kernel",
]
