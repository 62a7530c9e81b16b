"""Does runs one after the other in each process of a launch: what a Python program may do.

    accelerate launch tests/launched_runs.py runs.json

The file holds a list of settings, of `PredictConfig` if they have `inputs`, else of `EmbedConfig`.
"""

import json
import sys
from pathlib import Path

from virnucpro import EmbedConfig, PredictConfig, embed, predict

for settings in json.loads(Path(sys.argv[1]).read_text()):
    if "inputs" in settings:
        result = predict(PredictConfig(**settings))
        sys.stdout.write(f"<{result.num_records} records>\n")
        sys.stdout.flush()
    else:
        embed(EmbedConfig(**settings))
