"""Which of a run's models is good enough, and cheap enough?"""
