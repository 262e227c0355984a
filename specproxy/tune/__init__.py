"""Tuning: which drafter, range of K and tree make a route fastest on this machine and these prompts.

``choices`` says what is tried, ``race`` decides by pairs, ``pairs`` measures them with the engine in this process,
``session`` goes from route to route, ``candidate`` writes what was found as policy files, ``report`` as tables.
"""
