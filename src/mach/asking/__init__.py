"""What a model is asked, and what it answers: for `mach predict` and `mach serve`."""
