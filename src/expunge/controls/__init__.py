"""One control, one file: what keeps unlearning from going too far."""

from typing import Any

from expunge.controls.base import CONTROLS, Control, NoBar, Scene

__all__ = ["CONTROLS", "Control", "NoBar", "Scene", "make_control"]


def make_control(name: str, **settings: Any) -> Control:
    """The control of this name with these settings; ConfigError on an unknown name or setting."""
    control: Control = CONTROLS.make(name, **settings)
    return control
