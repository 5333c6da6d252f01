"""`python -I -m teuthis.worker --requests-fd N`: the zygote, which becomes workers."""

import gc
import os
import sys

if __name__ == "__main__":
    # msgspec asks for it first, then for `typing`, which has all of it that is used here; it would
    # load a tenth as much again.
    sys.modules["typing_extensions"] = None  # type: ignore[assignment]

    gc.disable()  # nothing that is loaded now is garbage, however often one looks

    from teuthis.worker.zygote import main

    os._exit(main(sys.argv[1:]))  # nothing of it has to be taken down piece by piece
