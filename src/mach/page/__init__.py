"""What does a run, or a sweep, look like to somebody who did not watch it?

`mach report` draws figures with matplotlib and puts them on one page that needs nothing else.
"""
