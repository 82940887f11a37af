"""The one training loop and the axes a method is composed of."""

from expunge.training.finetune import finetune
from expunge.training.settings import TrainSettings
from expunge.training.workspace import LoraSettings, Workspace

__all__ = ["LoraSettings", "TrainSettings", "Workspace", "finetune"]
