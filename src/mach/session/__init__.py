"""What one rank does with its component, from the first step to the result."""

from mach.session.free import enlist, train_free, warm_up
from mach.session.ordered import train_ordered
from mach.session.seat import take_seat

__all__ = ["enlist", "take_seat", "train_free", "train_ordered", "warm_up"]
