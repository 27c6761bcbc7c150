"""The families of networks mach can cut, and how components are built of them."""

from mach.models.build import (
    build_body,
    build_head,
    build_predictor,
    build_student,
    cost,
    family_of,
    targets_of_a_sample,
)
from mach.models.family import Family
from mach.models.precision import autocast_dtypes

__all__ = [
    "Family",
    "autocast_dtypes",
    "build_body",
    "build_head",
    "build_predictor",
    "build_student",
    "cost",
    "family_of",
    "targets_of_a_sample",
]
