"""One control, one file: what keeps unlearning from going too far."""

from expunge.controls.bar import Bar, Probe, choose_metric
from expunge.controls.base import CONTROLS, Control, Scene

__all__ = ["CONTROLS", "Bar", "Control", "Probe", "Scene", "choose_metric"]
