"""Shapes and types of every circuitkeep function are checked while the tests run."""

import torch
from jaxtyping import install_import_hook

# Before anything imports circuitkeep: only modules imported later are checked.
install_import_hook("circuitkeep", "beartype.beartype")

# xdist already runs one process per core.
torch.set_num_threads(1)
