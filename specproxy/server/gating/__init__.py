"""The gate at work: evidence from live traffic, shadow pairs and audits moves a changed route until it serves.

``gate`` wires it together: ``intake`` turns an edit of the policy files into candidates, ``decider`` says which arm
serves a request, ``samples``, ``shadow`` and ``audits`` gather evidence, ``moves`` acts on it, ``book`` holds what is
known and ``ledger`` keeps it on disk, off the event loop. ``operator`` is the way in for people.
"""
