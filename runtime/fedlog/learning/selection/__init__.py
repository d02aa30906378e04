"""Who is asked to train in a round; one rule per file.

A selection is a function of the set of candidates, the job's seed and the round, so that a
restarted server asks the same clients.
"""
