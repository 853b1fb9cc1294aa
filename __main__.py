"""The ``xd3d`` command as ``python -m xd3d``, which ``torchrun -m xd3d train`` starts too."""

from .pipeline.cli import main

if __name__ == "__main__":
    main()
