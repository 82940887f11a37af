"""One test, one file: yes-or-no questions about a forgetting, each with the evidence it rests on."""

from expunge.audit.verification.base import CHECKS, Check, Seen, verify_all

__all__ = ["CHECKS", "Check", "Seen", "verify_all"]
