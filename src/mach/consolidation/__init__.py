"""A window whose student, bodies and head are trained together, once the run has made them.

In the run a student learns to be the child that it stands in for, and bodies and heads know nothing
of it. Here all of them learn what the whole chain says (Hinton et al., 2015), if need be through
assistants between the two (Mirzadeh et al., 2019).
"""
