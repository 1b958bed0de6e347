"""latentlens: look into and steer the latent space of language models.

    import latentlens as ll
    lm   = ll.load()                                    # the embedded organism; or a hub id, a folder, a model
    acts = lm.activations(texts, sites="resid_post[*]", where="last")
    res  = ll.probe.fit(acts, labels, groups=topics)    # held-out AUROC with interval and controls
    runs = lm.generate(prompts, steer=[ll.Add(res.best().direction, 1.5)], samples=4, temperature=1, seed=0)
    ll.plots.by_layer(res)

Importing this package loads nothing heavy: every name is fetched when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import latentlens.views.figures as plots  # noqa: F401
    from latentlens import errors as errors
    from latentlens import organism as organism
    from latentlens import resistance as resistance
    from latentlens.access.editing.preventative import preventing as preventing
    from latentlens.access.formats.files import read_directions as read_directions
    from latentlens.access.formats.files import write_directions as write_directions
    from latentlens.access.formats.persona import convert_persona_pt as convert_persona_pt
    from latentlens.access.formats.steering_vectors import from_steering_vector as from_steering_vector
    from latentlens.access.formats.steering_vectors import to_steering_vector as to_steering_vector
    from latentlens.access.generation.sweep import sweep as sweep
    from latentlens.access.judging.attempt_judges import LikelihoodJudge as LikelihoodJudge
    from latentlens.access.judging.attempt_judges import SegmentJudge as SegmentJudge
    from latentlens.access.judging.attempt_judges import WrittenJudge as WrittenJudge
    from latentlens.access.judging.judge import LabelledJudge as LabelledJudge
    from latentlens.access.judging.judge import LocalJudge as LocalJudge
    from latentlens.access.judging.judge import LocalWriter as LocalWriter
    from latentlens.access.judging.judge import RuleJudge as RuleJudge
    from latentlens.access.judging.judge_endpoint import Endpoint as Endpoint
    from latentlens.access.judging.judge_endpoint import EndpointJudge as EndpointJudge
    from latentlens.access.judging.judge_endpoint import EndpointWriter as EndpointWriter
    from latentlens.access.judging.judged_sweep import judged_sweep as judged_sweep
    from latentlens.access.measures.cold import cold_gradients as cold_gradients
    from latentlens.access.measures.cold import cold_states as cold_states
    from latentlens.access.measures.contrast import contrast as contrast
    from latentlens.access.measures.doses import measure_doses as measure_doses
    from latentlens.access.measures.doses import per_token_kl as per_token_kl
    from latentlens.access.measures.doses import token_nll as token_nll
    from latentlens.access.measures.doses import unsteered_nll as unsteered_nll
    from latentlens.access.measures.overhead import overhead as overhead
    from latentlens.access.measures.reft import train_reft as train_reft
    from latentlens.access.measures.refusal import measure_refusal as measure_refusal
    from latentlens.access.measures.refusal import refusal_tokens as refusal_tokens
    from latentlens.access.measures.screening import screen as screen
    from latentlens.access.measures.style_runs import StyledTasks as StyledTasks
    from latentlens.access.measures.trait_doses import site_sweep as site_sweep
    from latentlens.access.measures.trait_doses import trait_doses as trait_doses
    from latentlens.access.measures.trait_writing import write_trait as write_trait
    from latentlens.access.measures.writes import token_writes as token_writes
    from latentlens.access.model import LensModel as LensModel
    from latentlens.access.model import load as load
    from latentlens.access.patching.mediators import mediators as mediators
    from latentlens.access.saes.preflight import preflight as preflight
    from latentlens.access.saes.sae import load_sae as load_sae
    from latentlens.access.saes.sae_training import train_sae as train_sae
    from latentlens.access.saes.steered_codes import measure_effects as measure_effects
    from latentlens.access.store.cache import ActivationCache as ActivationCache
    from latentlens.access.store.verdict_cache import cached as cached
    from latentlens.maths import agreement as agreement
    from latentlens.methods import act as act
    from latentlens.methods import answers as answers
    from latentlens.methods import calibrate as calibrate
    from latentlens.methods import code_language as code_language
    from latentlens.methods import directions as directions
    from latentlens.methods import early_stopping as early_stopping
    from latentlens.methods import esr as esr
    from latentlens.methods import gact as gact
    from latentlens.methods import intention as intention
    from latentlens.methods import latent_scores as latent_scores
    from latentlens.methods import latents as latents
    from latentlens.methods import mediation as mediation
    from latentlens.methods import neurons as neurons
    from latentlens.methods import off_topic as off_topic
    from latentlens.methods import persona as persona
    from latentlens.methods import persona_algebra as persona_algebra
    from latentlens.methods import persona_monitoring as persona_monitoring
    from latentlens.methods import persona_screening as persona_screening
    from latentlens.methods import probe as probe
    from latentlens.methods import psychometrics as psychometrics
    from latentlens.methods import recoverability as recoverability
    from latentlens.methods import selection as selection
    from latentlens.methods import signal_quality as signal_quality
    from latentlens.methods import trajectory as trajectory
    from latentlens.methods.class_probe import fit_classes as fit_classes
    from latentlens.methods.contrast_probe import fit_contrast as fit_contrast
    from latentlens.methods.dose import dose_response as dose_response
    from latentlens.methods.identity_test import identity_test as identity_test
    from latentlens.methods.judge_agreement import judge_agreement as judge_agreement
    from latentlens.methods.method_bench import method_bench as method_bench
    from latentlens.methods.probe_report import probe_report as probe_report
    from latentlens.methods.sdm import fit_sdm as fit_sdm
    from latentlens.methods.token_probe import fit_tokens as fit_tokens
    from latentlens.resistance.opening import open_study as open_study
    from latentlens.resistance.study import Study as Study
    from latentlens.values import judging as judging
    from latentlens.values import questions as questions
    from latentlens.values.activations import Activations as Activations
    from latentlens.values.adaptive import AdaptiveAdd as AdaptiveAdd
    from latentlens.values.adaptive import ShortfallAdd as ShortfallAdd
    from latentlens.values.answer_metrics import LogitDifference as LogitDifference
    from latentlens.values.attempts import attempts as attempts
    from latentlens.values.calibration import DoseResponse as DoseResponse
    from latentlens.values.calibration import KlBudget as KlBudget
    from latentlens.values.calibration import ScoreThreshold as ScoreThreshold
    from latentlens.values.codes import Codes as Codes
    from latentlens.values.concepts import Concept as Concept
    from latentlens.values.concepts import read_concepts as read_concepts
    from latentlens.values.direction_choice import DirectionChoice as DirectionChoice
    from latentlens.values.direction_table import cosines as cosines
    from latentlens.values.directions import Direction as Direction
    from latentlens.values.effect_model import EffectModel as EffectModel
    from latentlens.values.gates import Condition as Condition
    from latentlens.values.gates import Gate as Gate
    from latentlens.values.head_directions import HeadDirections as HeadDirections
    from latentlens.values.judging import Case as Case
    from latentlens.values.judging import Rubric as Rubric
    from latentlens.values.judging import Score as Score
    from latentlens.values.latent_patches import PatchLatents as PatchLatents
    from latentlens.values.latents import EditLatents as EditLatents
    from latentlens.values.latents import ablate as ablate
    from latentlens.values.mediation import Mediation as Mediation
    from latentlens.values.mediation import Patched as Patched
    from latentlens.values.mediators import Mediator as Mediator
    from latentlens.values.method_bench import MethodBench as MethodBench
    from latentlens.values.operations import Add as Add
    from latentlens.values.operations import Affine as Affine
    from latentlens.values.operations import Clamp as Clamp
    from latentlens.values.operations import ConceptEdit as ConceptEdit
    from latentlens.values.operations import ProjectOut as ProjectOut
    from latentlens.values.operations import RelativeAdd as RelativeAdd
    from latentlens.values.operations import Scale as Scale
    from latentlens.values.plan_files import load_plan as load_plan
    from latentlens.values.plan_files import save_plan as save_plan
    from latentlens.values.probe_report import ProbeReport as ProbeReport
    from latentlens.values.replacements import AddAt as AddAt
    from latentlens.values.replacements import Patch as Patch
    from latentlens.values.replacements import PatchAlong as PatchAlong
    from latentlens.values.replacements import PatchUnits as PatchUnits
    from latentlens.values.results import Arm as Arm
    from latentlens.values.results import Estimate as Estimate
    from latentlens.values.results import ProbeSweep as ProbeSweep
    from latentlens.values.results import SteeringEffect as SteeringEffect
    from latentlens.values.rollouts import Keep as Keep
    from latentlens.values.rollouts import Record as Record
    from latentlens.values.rollouts import Rollout as Rollout
    from latentlens.values.rollouts import Rollouts as Rollouts
    from latentlens.values.rotations import NormPreservingAdd as NormPreservingAdd
    from latentlens.values.rotations import Reflect as Reflect
    from latentlens.values.rotations import Rotate as Rotate
    from latentlens.values.rotations import Slerp as Slerp
    from latentlens.values.sae import SAE as SAE
    from latentlens.values.schedules import Schedule as Schedule
    from latentlens.values.sites import Site as Site
    from latentlens.values.style_effect import StyleEffect as StyleEffect
    from latentlens.values.traits import Trait as Trait
    from latentlens.values.where import PerRow as PerRow
    from latentlens.values.where import Where as Where
    from latentlens.views.compare import compare as compare_reports  # noqa: F401
    from latentlens.views.manifest import manifest as manifest
    from latentlens.views.report import Beside as Beside
    from latentlens.views.report import Captioned as Captioned
    from latentlens.views.report import Section as Section
    from latentlens.views.report import report as report

__version__ = "0.1.0"

# name -> (module, attribute or None for the module itself)
_LAZY = {
    "load": ("latentlens.access.model", "load"),
    "LensModel": ("latentlens.access.model", "LensModel"),
    "attempts": ("latentlens.values.attempts", "attempts"),
    "esr": ("latentlens.methods.esr", None),
    "LikelihoodJudge": ("latentlens.access.judging.attempt_judges", "LikelihoodJudge"),
    "off_topic": ("latentlens.methods.off_topic", None),
    "open_study": ("latentlens.resistance.opening", "open_study"),
    "resistance": ("latentlens.resistance", None),
    "SegmentJudge": ("latentlens.access.judging.attempt_judges", "SegmentJudge"),
    "Study": ("latentlens.resistance.study", "Study"),
    "WrittenJudge": ("latentlens.access.judging.attempt_judges", "WrittenJudge"),
    "ActivationCache": ("latentlens.access.store.cache", "ActivationCache"),
    "Activations": ("latentlens.values.activations", "Activations"),
    "Arm": ("latentlens.values.results", "Arm"),
    "Beside": ("latentlens.views.report", "Beside"),
    "Captioned": ("latentlens.views.report", "Captioned"),
    "Estimate": ("latentlens.values.results", "Estimate"),
    "ProbeSweep": ("latentlens.values.results", "ProbeSweep"),
    "Section": ("latentlens.views.report", "Section"),
    "SteeringEffect": ("latentlens.values.results", "SteeringEffect"),
    "AdaptiveAdd": ("latentlens.values.adaptive", "AdaptiveAdd"),
    "Add": ("latentlens.values.operations", "Add"),
    "AddAt": ("latentlens.values.replacements", "AddAt"),
    "Affine": ("latentlens.values.operations", "Affine"),
    "Clamp": ("latentlens.values.operations", "Clamp"),
    "ConceptEdit": ("latentlens.values.operations", "ConceptEdit"),
    "NormPreservingAdd": ("latentlens.values.rotations", "NormPreservingAdd"),
    "Patch": ("latentlens.values.replacements", "Patch"),
    "PatchAlong": ("latentlens.values.replacements", "PatchAlong"),
    "PatchLatents": ("latentlens.values.latent_patches", "PatchLatents"),
    "PatchUnits": ("latentlens.values.replacements", "PatchUnits"),
    "LogitDifference": ("latentlens.values.answer_metrics", "LogitDifference"),
    "Mediation": ("latentlens.values.mediation", "Mediation"),
    "Mediator": ("latentlens.values.mediators", "Mediator"),
    "Patched": ("latentlens.values.mediation", "Patched"),
    "mediation": ("latentlens.methods.mediation", None),
    "mediators": ("latentlens.access.patching.mediators", "mediators"),
    "ProjectOut": ("latentlens.values.operations", "ProjectOut"),
    "Reflect": ("latentlens.values.rotations", "Reflect"),
    "RelativeAdd": ("latentlens.values.operations", "RelativeAdd"),
    "Rotate": ("latentlens.values.rotations", "Rotate"),
    "Scale": ("latentlens.values.operations", "Scale"),
    "ShortfallAdd": ("latentlens.values.adaptive", "ShortfallAdd"),
    "Slerp": ("latentlens.values.rotations", "Slerp"),
    "Condition": ("latentlens.values.gates", "Condition"),
    "Gate": ("latentlens.values.gates", "Gate"),
    "Keep": ("latentlens.values.rollouts", "Keep"),
    "Record": ("latentlens.values.rollouts", "Record"),
    "Schedule": ("latentlens.values.schedules", "Schedule"),
    "Direction": ("latentlens.values.directions", "Direction"),
    "PerRow": ("latentlens.values.where", "PerRow"),
    "Rollout": ("latentlens.values.rollouts", "Rollout"),
    "Rollouts": ("latentlens.values.rollouts", "Rollouts"),
    "Site": ("latentlens.values.sites", "Site"),
    "Where": ("latentlens.values.where", "Where"),
    "DoseResponse": ("latentlens.values.calibration", "DoseResponse"),
    "KlBudget": ("latentlens.values.calibration", "KlBudget"),
    "ScoreThreshold": ("latentlens.values.calibration", "ScoreThreshold"),
    "convert_persona_pt": ("latentlens.access.formats.persona", "convert_persona_pt"),
    "dose_response": ("latentlens.methods.dose", "dose_response"),
    "from_steering_vector": ("latentlens.access.formats.steering_vectors", "from_steering_vector"),
    "measure_doses": ("latentlens.access.measures.doses", "measure_doses"),
    "per_token_kl": ("latentlens.access.measures.doses", "per_token_kl"),
    "read_directions": ("latentlens.access.formats.files", "read_directions"),
    "to_steering_vector": ("latentlens.access.formats.steering_vectors", "to_steering_vector"),
    "token_nll": ("latentlens.access.measures.doses", "token_nll"),
    "unsteered_nll": ("latentlens.access.measures.doses", "unsteered_nll"),
    "write_directions": ("latentlens.access.formats.files", "write_directions"),
    "Case": ("latentlens.values.judging", "Case"),
    "Score": ("latentlens.values.judging", "Score"),
    "Rubric": ("latentlens.values.judging", "Rubric"),
    "judging": ("latentlens.values.judging", None),
    "RuleJudge": ("latentlens.access.judging.judge", "RuleJudge"),
    "LabelledJudge": ("latentlens.access.judging.judge", "LabelledJudge"),
    "LocalJudge": ("latentlens.access.judging.judge", "LocalJudge"),
    "LocalWriter": ("latentlens.access.judging.judge", "LocalWriter"),
    "Endpoint": ("latentlens.access.judging.judge_endpoint", "Endpoint"),
    "EndpointJudge": ("latentlens.access.judging.judge_endpoint", "EndpointJudge"),
    "EndpointWriter": ("latentlens.access.judging.judge_endpoint", "EndpointWriter"),
    "cached": ("latentlens.access.store.verdict_cache", "cached"),
    "Trait": ("latentlens.values.traits", "Trait"),
    "contrast": ("latentlens.access.measures.contrast", "contrast"),
    "judged_sweep": ("latentlens.access.judging.judged_sweep", "judged_sweep"),
    "preventing": ("latentlens.access.editing.preventative", "preventing"),
    "site_sweep": ("latentlens.access.measures.trait_doses", "site_sweep"),
    "trait_doses": ("latentlens.access.measures.trait_doses", "trait_doses"),
    "screen": ("latentlens.access.measures.screening", "screen"),
    "write_trait": ("latentlens.access.measures.trait_writing", "write_trait"),
    "persona": ("latentlens.methods.persona", None),
    "psychometrics": ("latentlens.methods.psychometrics", None),
    "persona_algebra": ("latentlens.methods.persona_algebra", None),
    "persona_monitoring": ("latentlens.methods.persona_monitoring", None),
    "persona_screening": ("latentlens.methods.persona_screening", None),
    "agreement": ("latentlens.maths.agreement", None),
    "judge_agreement": ("latentlens.methods.judge_agreement", "judge_agreement"),
    "directions": ("latentlens.methods.directions", None),
    "method_bench": ("latentlens.methods.method_bench", "method_bench"),
    "MethodBench": ("latentlens.values.method_bench", "MethodBench"),
    "Concept": ("latentlens.values.concepts", "Concept"),
    "read_concepts": ("latentlens.values.concepts", "read_concepts"),
    "DirectionChoice": ("latentlens.values.direction_choice", "DirectionChoice"),
    "EffectModel": ("latentlens.values.effect_model", "EffectModel"),
    "HeadDirections": ("latentlens.values.head_directions", "HeadDirections"),
    "cold_gradients": ("latentlens.access.measures.cold", "cold_gradients"),
    "cold_states": ("latentlens.access.measures.cold", "cold_states"),
    "measure_effects": ("latentlens.access.saes.steered_codes", "measure_effects"),
    "measure_refusal": ("latentlens.access.measures.refusal", "measure_refusal"),
    "refusal_tokens": ("latentlens.access.measures.refusal", "refusal_tokens"),
    "train_reft": ("latentlens.access.measures.reft", "train_reft"),
    "calibrate": ("latentlens.methods.calibrate", None),
    "SAE": ("latentlens.values.sae", "SAE"),
    "Codes": ("latentlens.values.codes", "Codes"),
    "EditLatents": ("latentlens.values.latents", "EditLatents"),
    "ablate": ("latentlens.values.latents", "ablate"),
    "load_sae": ("latentlens.access.saes.sae", "load_sae"),
    "preflight": ("latentlens.access.saes.preflight", "preflight"),
    "train_sae": ("latentlens.access.saes.sae_training", "train_sae"),
    "latents": ("latentlens.methods.latents", None),
    "probe_report": ("latentlens.methods.probe_report", "probe_report"),
    "ProbeReport": ("latentlens.values.probe_report", "ProbeReport"),
    "fit_contrast": ("latentlens.methods.contrast_probe", "fit_contrast"),
    "fit_tokens": ("latentlens.methods.token_probe", "fit_tokens"),
    "fit_classes": ("latentlens.methods.class_probe", "fit_classes"),
    "identity_test": ("latentlens.methods.identity_test", "identity_test"),
    "fit_sdm": ("latentlens.methods.sdm", "fit_sdm"),
    "cosines": ("latentlens.values.direction_table", "cosines"),
    "act": ("latentlens.methods.act", None),
    "answers": ("latentlens.methods.answers", None),
    "code_language": ("latentlens.methods.code_language", None),
    "gact": ("latentlens.methods.gact", None),
    "StyledTasks": ("latentlens.access.measures.style_runs", "StyledTasks"),
    "StyleEffect": ("latentlens.values.style_effect", "StyleEffect"),
    "neurons": ("latentlens.methods.neurons", None),
    "overhead": ("latentlens.access.measures.overhead", "overhead"),
    "token_writes": ("latentlens.access.measures.writes", "token_writes"),
    "early_stopping": ("latentlens.methods.early_stopping", None),
    "intention": ("latentlens.methods.intention", None),
    "questions": ("latentlens.values.questions", None),
    "latent_scores": ("latentlens.methods.latent_scores", None),
    "recoverability": ("latentlens.methods.recoverability", None),
    "selection": ("latentlens.methods.selection", None),
    "signal_quality": ("latentlens.methods.signal_quality", None),
    "trajectory": ("latentlens.methods.trajectory", None),
    "errors": ("latentlens.errors", None),
    "organism": ("latentlens.organism", None),
    "plots": ("latentlens.views.figures", None),
    "probe": ("latentlens.methods.probe", None),
    "load_plan": ("latentlens.values.plan_files", "load_plan"),
    "save_plan": ("latentlens.values.plan_files", "save_plan"),
    "sweep": ("latentlens.access.generation.sweep", "sweep"),
    "report": ("latentlens.views.report", "report"),
    "manifest": ("latentlens.views.manifest", "manifest"),
    "compare_reports": ("latentlens.views.compare", "compare"),
}
__all__ = sorted(_LAZY)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'latentlens' has no attribute {name!r}; it has {', '.join(__all__)}")
    module, attribute = _LAZY[name]
    value = import_module(module)
    if attribute is not None:
        value = getattr(value, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
