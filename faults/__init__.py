"""The public fault suite: what a mount does when registry, network, cache disk or daemon fail.

    python -m faults            a table: fault, expected, seen, time

``docs/faults.md`` tells how to use it and how to add a fault. Each fault is one ``Fault`` in one of
the tables of this package (``answers``, ``mounting``, ...): a name, what happens, what is expected,
and the script that makes it happen and says what was seen. The same tables are run by
``tests/mount/test_faults.py``.
"""
