"""The gate: a changed route becomes active by evidence, and every move is written down.

``statistics``, ``mismatches``, ``rates``, ``tails`` count; ``evidence`` holds the counts of one candidate; ``rules``
says what the policy asks for; ``assessment`` compares the two; ``machine`` moves by the result and ``orders`` by a
person's word; ``canary`` deals out traffic; ``store`` keeps it all through any crash. Nothing here reads a clock.
"""
