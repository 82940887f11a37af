"""A subject is a model, its tokenizer and how to ask it; weights as data."""

from expunge.subjects.adapters import attach_lora, merge, scale_lora
from expunge.subjects.subject import Subject, load_subject
from expunge.subjects.weights import fingerprint, save_subject
from expunge.subjects.wrapped import Wrapped

__all__ = [
    "Subject", "Wrapped", "attach_lora", "fingerprint", "load_subject", "merge", "save_subject", "scale_lora",
]  # fmt: skip
