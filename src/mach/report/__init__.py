"""What does a run tell while it runs, and where does that go?"""

from mach.report.reporter import Reporter, Sink, build

__all__ = ["Reporter", "Sink", "build"]
