"""One component of the chain: it trains alone, in a notebook."""

from mach.component.component import Component
from mach.component.late import Late
from mach.component.predictor import GradientPredictor
from mach.component.recompute import Recomputing
from mach.component.student import Student
from mach.component.updates import Update
from mach.component.work import Ages

__all__ = ["Ages", "Component", "GradientPredictor", "Late", "Recomputing", "Student", "Update"]
