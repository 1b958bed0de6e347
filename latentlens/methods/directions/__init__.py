"""Find a direction: one function an estimator, rows in, a Direction (or the edit it parameterises) out.

    means        mean_difference  mean_centred  lda  concept_edit  act_add
    components   pair_component  plane
    heads        head_directions
    refusal      refusal_candidates  select_refusal
    latents      latent_direction  EffectFit  feature_guided
    transport    linear_transport
    capping      role_axis  capping
    cold         cold_edit  cold_direction  unit_kernel

Those that see many rows have a fitter as well, which takes them in pieces and keeps sums: `MeanDifference`,
`MeanCentring`, `LinearDiscriminant`, `ConceptMeans`, `RoleAxis`, `PairComponent` with `MajoritySign`, `HeadMoments`,
`RefusalMeans`, `EffectFit`, `FeatureContrast`; and `ProjectionBound`, which keeps a number a row. `linear_transport`
needs ranks and so all rows; the others see a few examples. What has to run a model for it stands beside them:
`ll.measure_refusal`, `ll.measure_effects`, `ll.train_reft`, `ll.cold_states`.
docs/directions.md says what each of them needs, and where it misleads.
"""

from latentlens.methods.directions.capping import ProjectionBound, RoleAxis, capping, role_axis
from latentlens.methods.directions.cold import cold_changes, cold_direction, cold_edit, unit_kernel
from latentlens.methods.directions.components import MajoritySign, PairComponent, pair_component, plane
from latentlens.methods.directions.heads import HeadMoments, head_directions
from latentlens.methods.directions.latents import EffectFit, FeatureContrast, feature_guided, latent_direction
from latentlens.methods.directions.means import (
    ConceptMeans,
    LinearDiscriminant,
    MeanCentring,
    MeanDifference,
    act_add,
    concept_edit,
    lda,
    mean_centred,
    mean_difference,
)
from latentlens.methods.directions.refusal import RefusalMeans, refusal_candidates, select_refusal
from latentlens.methods.directions.transport import linear_transport

__all__ = [
    "ConceptMeans",
    "EffectFit",
    "FeatureContrast",
    "HeadMoments",
    "LinearDiscriminant",
    "MajoritySign",
    "MeanCentring",
    "MeanDifference",
    "PairComponent",
    "ProjectionBound",
    "RefusalMeans",
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
