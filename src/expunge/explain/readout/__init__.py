"""Read-outs of residual knowledge: what can be read from the layers of a model that no longer says it."""

from expunge.explain.readout.lens import lens_evidence
from expunge.explain.readout.probe import ProbeScore, probe_scores
from expunge.explain.readout.profile import Profile, depth_profile
from expunge.explain.readout.tuned import TunedMap, tuned_maps

__all__ = [
    "ProbeScore",
    "Profile",
    "TunedMap",
    "depth_profile",
    "lens_evidence",
    "probe_scores",
    "tuned_maps",
]
