"""lazyfs mounts container images straight from a registry and fetches only what is read.

Map of the package (arrows of import go downwards only, checked by import-linter):

    cli                    arguments, printing, exit status
    mount, convert, ...    one package or module per command's work (assembly)
    fuse, image, layer     drivers: move bytes between pure code and the world
    interfaces             what the drivers promise each other
    erofs, verity, seekable, overlay, plan    pure: bytes in, values out, no I/O
    steps, ondisk, model, errors              words that everything shares
"""

__version__ = "0.1.0"
