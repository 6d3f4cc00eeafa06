"""The work of ``lazyfs cache``: what the cache folder holds, and making it smaller or well again.

    known.py    images and layers, as the kept documents tell; no registry is asked
    folder.py   the parts of the folder, opened together
    survey.py   ls and du
    removal.py  gc and clear
    check.py    verify

Everything is safe while mounts use the folder: chunks come and go under the lock of the store.
"""
