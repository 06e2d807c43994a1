"""Exchange with other verifiers: VNN-LIB properties, and the interface of VNN-COMP."""

from stbp_milp.interop.questions import combined, is_vnnlib, questions_key, read_questions, record_of_all, verify_all
from stbp_milp.interop.region import UnsafeBox, UnsafeRegion
from stbp_milp.interop.vnnlib import read_vnnlib
from stbp_milp.interop.writer import write_vnnlib

__all__ = [
    "UnsafeBox",
    "UnsafeRegion",
    "combined",
    "is_vnnlib",
    "questions_key",
    "read_questions",
    "read_vnnlib",
    "record_of_all",
    "verify_all",
    "write_vnnlib",
]
